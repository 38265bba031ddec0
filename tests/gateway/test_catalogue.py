from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from gateway.catalogue import Catalogue
from gateway.upstream import Call, Mounted
from shared.problems import MethodNotFound, OperationNotFound, ServiceUnavailable
from tests.gateway.echo import Echo, operation

pytestmark = pytest.mark.anyio


class Switched:
    """A service that can be taken away: its description is that of `echo`."""

    def __init__(self, echo: Echo) -> None:
        self.echo = Mounted("echo", echo)
        self.is_up = True
        self.fetches = 0
        self.was_asked_thrice = asyncio.Event()

    async def fetch(self, path: str) -> dict[str, Any]:
        self.fetches += 1
        if self.fetches == 3:
            self.was_asked_thrice.set()
        await asyncio.sleep(0.01)
        if not self.is_up:
            raise ServiceUnavailable("The method echo does not answer.")
        return await self.echo.fetch(path)

    async def forward(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        await self.echo.forward(call, scope, receive, send)


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def service(echo: Echo) -> Switched:
    return Switched(echo)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalogue(service: Switched, clock: Clock) -> Catalogue:
    return Catalogue({"echo": service}, now=clock)


async def test_a_description_is_asked_for_once_however_many_wait(catalogue: Catalogue, service: Switched) -> None:
    found = await asyncio.gather(*(catalogue.operation("echo", "mirror") for _ in range(20)))
    assert {one.name for one in found} == {"mirror"}
    assert service.fetches == 1


async def test_a_description_that_is_known_outlives_its_service(catalogue: Catalogue, service: Switched) -> None:
    await catalogue.operation("echo", "mirror")
    service.is_up = False
    assert (await catalogue.operation("echo", "mirror")).wait_s == 2.0


async def test_a_service_that_was_never_heard_of_is_unavailable(catalogue: Catalogue, service: Switched) -> None:
    service.is_up = False
    with pytest.raises(ServiceUnavailable):
        await catalogue.operation("echo", "mirror")
    assert catalogue.unavailable == ("echo",)


async def test_many_callers_do_not_wait_one_after_the_other_for_a_dead_address(
    catalogue: Catalogue, service: Switched
) -> None:
    service.is_up = False
    calls = (catalogue.operation("echo", "mirror") for _ in range(20))
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(failure, ServiceUnavailable) for failure in failures)
    assert service.fetches == 1


async def test_a_service_that_comes_back_is_available_again(
    catalogue: Catalogue, service: Switched, clock: Clock
) -> None:
    service.is_up = False
    with capture_logs() as lines:
        for _ in range(3):
            with pytest.raises(ServiceUnavailable):
                await catalogue.described("echo")
            clock.at += 5
        service.is_up = True
        await catalogue.described("echo")
    assert catalogue.unavailable == ()
    assert [line["event"] for line in lines] == ["method.unavailable", "method.available"], "one line a change"


async def test_an_operation_that_is_new_is_found_without_waiting_for_the_next_refresh(
    catalogue: Catalogue, echo: Echo, clock: Clock
) -> None:
    with pytest.raises(OperationNotFound):
        await catalogue.operation("echo", "brand-new")
    echo.operations.append(operation("brand-new"))
    clock.at += 2
    assert (await catalogue.operation("echo", "brand-new")).name == "brand-new"


async def test_an_unknown_operation_does_not_ask_the_service_every_time(
    catalogue: Catalogue, service: Switched
) -> None:
    for _ in range(10):
        with pytest.raises(OperationNotFound):
            await catalogue.operation("echo", "nothing")
    assert service.fetches == 1


async def test_an_unknown_method_asks_nobody(catalogue: Catalogue, service: Switched) -> None:
    with pytest.raises(MethodNotFound):
        await catalogue.operation("nothing", "mirror")
    assert service.fetches == 0


@pytest.mark.parametrize(
    "change",
    [
        {"method": "other"},
        {"operations": [{"name": "mirror"}]},
        {"operations": None},
        {"operations": [operation("x", lease="all")]},
    ],
)
async def test_a_service_that_describes_itself_wrongly_is_unavailable(
    catalogue: Catalogue, echo: Echo, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {**echo.description(), **change}
    monkeypatch.setattr(echo, "description", lambda: wrong)
    with capture_logs() as lines, pytest.raises(ServiceUnavailable):
        await catalogue.operation("echo", "mirror")
    assert lines[0]["event"] == "method.misdescribed"


async def test_the_list_keeps_what_is_known_of_a_service_that_is_down(
    catalogue: Catalogue, service: Switched, clock: Clock
) -> None:
    (up,) = await catalogue.listed()
    assert up["available"]
    assert up["live"]["workers"] == 1
    service.is_up = False
    clock.at += 5
    (down,) = await catalogue.listed()
    assert not down["available"]
    assert down["operations"] == up["operations"]
    assert "live" not in down, "numbers of the moment that are not of this moment"
    assert down["error"]["code"] == "service_unavailable"


async def test_services_are_asked_again_and_again_while_kept_fresh(
    service: Switched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.catalogue.REFRESH_S", 0.01)
    async with Catalogue({"echo": service}).kept_fresh():
        await asyncio.wait_for(service.was_asked_thrice.wait(), 10)
    fetched = service.fetches
    await asyncio.sleep(0.05)
    assert service.fetches == fetched
