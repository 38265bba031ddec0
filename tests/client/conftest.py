"""A service to call, and both ways of calling it."""

from __future__ import annotations

import asyncio
import inspect
import io
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from tenfold import AsyncClient, Client
from tests.client.contract import API_KEY, Contract


@pytest.fixture(scope="session")
def _contract() -> Iterator[Contract]:
    with Contract() as contract:
        yield contract


@pytest.fixture
def contract(_contract: Contract) -> Contract:
    """The service, as new."""
    _contract.reset()
    return _contract


@pytest.fixture
def client(contract: Contract) -> Iterator[Client]:
    with Client(contract.url, API_KEY) as client:
        yield client


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A small photograph on disk."""
    path = tmp_path / "photo.jpg"
    PIL.Image.linear_gradient("L").convert("RGB").save(path)
    return path


@pytest.fixture
def png() -> bytes:
    out = io.BytesIO()
    PIL.Image.linear_gradient("L").save(out, "PNG")
    return out.getvalue()


class Way:
    """One of the two clients, seen as one: each step is given what the step before came to."""

    def __init__(self, client: Client | AsyncClient, runner: asyncio.Runner) -> None:
        self.client = client
        self.is_async = isinstance(client, AsyncClient)
        self._runner = runner

    def __call__(self, *steps: Callable[[Any], Any], **options: Any) -> Any:
        value: Any = self.client.with_options(**options)
        value._driver.draw = lambda: 0.0  # no jitter: what is waited for is what the server asks for
        return self._runner.run(self._await(value, steps)) if self.is_async else self._block(value, steps)

    def _block(self, value: Any, steps: tuple[Callable[[Any], Any], ...]) -> Any:
        for step in steps:
            value = step(value)
            value = list(value) if isinstance(value, Iterator) else value
        return value

    async def _await(self, value: Any, steps: tuple[Callable[[Any], Any], ...]) -> Any:
        for step in steps:
            value = step(value)
            value = await value if inspect.isawaitable(value) else value
            value = [item async for item in value] if isinstance(value, AsyncIterator) else value
        return value


@pytest.fixture(scope="session", params=[False, True], ids=["Client", "AsyncClient"])
def _way(request: pytest.FixtureRequest, _contract: Contract) -> Iterator[Way]:
    with asyncio.Runner() as runner:
        if request.param:
            client = AsyncClient(_contract.url, API_KEY)
            yield Way(client, runner)
            runner.run(client.close())
        else:
            with Client(_contract.url, API_KEY) as blocking:
                yield Way(blocking, runner)


@pytest.fixture
def way(_way: Way, contract: Contract) -> Way:
    return _way
