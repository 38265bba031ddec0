"""The header by which a service knows its caller: only the gateway makes it, and each one counts once."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from shared import ids
from shared.context import CALL_SKEW_S, HEADER, CallContext
from shared.problems import CallNotSigned
from tests.gateway.house import House, house
from tests.redis_server import RedisServer
from tests.stack import SECRET, Stack

JSON = {"Content-Type": "application/json"}


def context(**changes: Any) -> CallContext:
    """A call of `noop` that the gateway might sign."""
    good = CallContext(
        tenant="acme",
        principal="prn_1",
        scopes=("use",),
        method="diagnostic",
        operation="noop",
        job_id=ids.ordered_id("job"),
        request_id=ids.ordered_id("req"),
        expires_at=time.time() + 600,
    )
    return replace(good, **changes)


def sent(stack: Stack, header: str | bytes | None, operation: str = "noop", body: bytes = b"{}") -> httpx.Response:
    raw = [(b"content-type", b"application/json")]
    if header is not None:
        raw.append((HEADER.encode(), header if isinstance(header, bytes) else header.encode()))
    return stack.http.post(f"/v1/diagnostic/{operation}", content=body, headers=raw)


def refused(response: httpx.Response) -> bool:
    return (response.status_code, response.json()["code"]) == (403, "call_not_signed")


@contextmanager
def nothing_made(stack: Stack) -> Iterator[None]:
    """No file and no job more, and no job changed."""

    def state() -> tuple[Any, ...]:
        keys = sorted(key for key in stack.redis.scan_iter(match="tf:diagnostic:job:*", _type="hash"))
        return sorted(map(str, stack.files())), [(key, stack.redis.hgetall(key)) for key in keys]

    before = state()
    yield
    assert state() == before


def signed_elsewhere(fields: dict[str, Any], secret: str = SECRET) -> str:
    """A header with whatever fields, signed as the gateway signs."""
    good = context().signed(secret)
    payload = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()
    assert good != payload
    return f"{payload}.{good.partition('.')[2]}"


class TestAService:
    @pytest.mark.parametrize(
        "header", [None, "", ".", "a.b.c", "e30.x", "null", ".." * 2000, "e30=." + "A" * 44, b"\xff\xfe.\xff"]
    )
    def test_refuses_what_is_no_signature(self, stack: Stack, header: str | bytes | None) -> None:
        with nothing_made(stack):
            assert refused(sent(stack, header))

    def test_refuses_every_altered_character(self, stack: Stack) -> None:
        """Of payload and tag. The last of a base64 text may hold bits that count for nothing: it is taken as text."""
        good = context().signed(SECRET)
        with nothing_made(stack):
            for place in range(0, len(good), 5):
                other = "A" if good[place] != "A" else "B"
                assert refused(sent(stack, good[:place] + other + good[place + 1 :])), place
            assert refused(sent(stack, good[:-1]))
            assert refused(sent(stack, good + "A"))

    def test_refuses_another_payload_under_a_good_tag(self, stack: Stack) -> None:
        fields = json.loads(base64.urlsafe_b64decode(context().signed(SECRET).partition(".")[0]))
        with nothing_made(stack):
            for change in ({"tenant": "victim"}, {"scopes": ["use", "recover", "keys"]}, {"expires_at": 1e12}):
                assert refused(sent(stack, signed_elsewhere(fields | change)))

    def test_refuses_another_secret(self, stack: Stack) -> None:
        with nothing_made(stack):
            assert refused(sent(stack, context().signed(SECRET + "x")))

    def test_refuses_a_call_for_another_method_or_operation(self, stack: Stack) -> None:
        with nothing_made(stack):
            assert refused(sent(stack, context(method="ifadit").signed(SECRET)))
            assert refused(sent(stack, context(operation="sleep").signed(SECRET)))
            assert refused(sent(stack, context().signed(SECRET), "sleep"))

    def test_refuses_an_expired_call(self, stack: Stack) -> None:
        with nothing_made(stack):
            assert refused(sent(stack, context(expires_at=time.time() - 1).signed(SECRET)))

    def test_refuses_an_old_call_that_has_not_expired(self, stack: Stack) -> None:
        old = "job_" + ids._base32(int((time.time() - CALL_SKEW_S - 5) * 1000) << 80)
        with nothing_made(stack):
            assert refused(sent(stack, context(job_id=old).signed(SECRET)))
            assert refused(sent(stack, context(job_id="job_1").signed(SECRET)))

    @pytest.mark.parametrize("body", [b'{"text": "first"}', b'{"text": "another"}'])
    def test_takes_a_header_once(self, stack: Stack, body: bytes) -> None:
        """Somebody's copy, with the same body or another: the job stays as it was."""
        header = context().signed(SECRET)
        first = sent(stack, header, body=b'{"text": "first"}')
        assert first.json()["result"]["text"] == "first"
        with nothing_made(stack):
            assert refused(sent(stack, header, body=body))

    def test_takes_a_header_once_while_its_job_waits_too(self, stack: Stack) -> None:
        header = context(operation="sleep").signed(SECRET)
        raw = [(HEADER, header), ("content-type", "application/json"), ("prefer", "respond-async")]
        answers = [stack.http.post("/v1/diagnostic/sleep", content=b"{}", headers=raw) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 403, 403]
        stack.wait_for(answers[0].json()["id"], "succeeded")

    def test_a_refused_copy_leaves_no_file(self, stack: Stack, picture: Any) -> None:
        header = {HEADER: context(operation="blur").signed(SECRET)}
        files = {"image": ("a.png", picture())}
        assert stack.http.post("/v1/diagnostic/blur", headers=header, files=files).status_code == 200
        stack.until(lambda: len(stack.files()) == len(set(stack.files())))
        before = set(stack.files())
        assert refused(stack.http.post("/v1/diagnostic/blur", headers=header, files=files))
        assert set(stack.files()) <= before


class TestFreshness:
    def test_a_name_says_when_it_was_made(self) -> None:
        assert abs(ids.born_at(ids.ordered_id("job")) - time.time()) < 5

    @pytest.mark.parametrize("late_s", [-CALL_SKEW_S - 1, CALL_SKEW_S + 1])
    def test_a_minute_is_the_limit(self, late_s: float) -> None:
        call = context()
        born = ids.born_at(call.job_id)
        call.check_fresh(born + late_s / 2)
        with pytest.raises(CallNotSigned):
            call.check_fresh(born + late_s)


@pytest.fixture(scope="module")
async def gateway(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """Before the service's API, over HTTP."""
    settings: dict[str, Any] = {
        "services": f"diagnostic=http://127.0.0.1:{stack.port}",
        "broker_url": stack.env["TENFOLD_BROKER_URL"],
        "internal_secret": SECRET,
        "kek_path": tmp_path_factory.mktemp("kek") / "kek.json",
    }
    with RedisServer(tmp_path_factory.mktemp("custody")) as custody:
        async with house(custody, tmp_path_factory.mktemp("home"), {}, **settings) as gateway:
            yield gateway


class TestTheGateway:
    pytestmark = pytest.mark.anyio

    @pytest.mark.parametrize("name", [HEADER, "X-Tenfold-Context", "x-tenfold-door", "X-TENFOLD-CONTEXT"])
    async def test_strips_what_comes_from_outside(self, gateway: House, stack: Stack, name: str) -> None:
        """Even what is signed with the true secret."""
        principal, _ = await gateway.principal("app")
        forged = context(tenant="victim", scopes=("use", "recover", "keys")).signed(SECRET)
        headers = [(name, forged), (name, "x"), ("x-tenfold-tenant", "victim")]
        response = await (await gateway.api("app")).post("/v1/diagnostic/noop", json={}, headers=headers)
        assert response.status_code == 200, response.text
        record = stack.record(response.json()["id"])
        assert (record["tenant"], record["principal"]) == (principal.tenant, principal.id)
        assert not record["call"], "a call without a lease is not kept"

    @pytest.mark.parametrize("token", [HEADER, "x-request-id, X-Tenfold-Context", "keep-alive, x-tenfold-context"])
    async def test_no_connection_header_takes_our_own_away(self, gateway: House, token: str) -> None:
        api = await gateway.api("app")
        response = await api.post("/v1/diagnostic/noop", json={}, headers={"Connection": token})
        assert response.status_code == 200, response.text

    async def test_lets_nobody_in_by_the_internal_header_alone(self, gateway: House) -> None:
        nobody = await gateway.client()
        for name in (HEADER, "x-tenfold-principal"):
            response = await nobody.post("/v1/diagnostic/noop", json={}, headers={name: context().signed(SECRET)})
            assert (response.status_code, response.json()["code"]) == (401, "api_key_missing")

    async def test_shows_no_internal_path(self, gateway: House) -> None:
        api = await gateway.api("app")
        for path in ("/internal/records/check", "/internal/leases/l/redeem", "/v1/../internal/records/check"):
            assert (await api.post(path, json={})).status_code == 404
