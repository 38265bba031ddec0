from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.routing import wait_s
from shared import ids
from shared.context import HEADER, CallContext
from tests.gateway.echo import SECRET, Echo
from tests.gateway.house import House, house
from tests.gateway.serving import served
from tests.gateway.test_edge import problem
from tests.redis_server import RedisServer, free_port

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def service() -> Echo:
    return Echo()


@pytest.fixture
def echo(service: Echo) -> Echo:
    """The echo service, as if it had not been called yet."""
    service.forget()
    return service


@pytest.fixture(scope="module", params=["mounted", "remote"])
async def gateway(
    request: pytest.FixtureRequest, server: RedisServer, home: Path, service: Echo
) -> AsyncIterator[House]:
    """The echo service behind the gateway, in both ways that a service can be."""
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "mounted":
            yield await stack.enter_async_context(house(server, home, {"echo": service}))
        else:
            url = await stack.enter_async_context(served(service))
            yield await stack.enter_async_context(house(server, home, {}, services=f"echo={url}"))


@pytest.fixture
async def api(gateway: House, echo: Echo) -> httpx.AsyncClient:
    return await gateway.api()


def received(response: httpx.Response) -> dict[str, list[str]]:
    """The headers that reached the service, by name."""
    assert response.status_code == 200, response.text
    headers: dict[str, list[str]] = {}
    for name, value in response.json()["headers"]:
        headers.setdefault(name, []).append(value)
    return headers


class TestAnOperation:
    async def test_reaches_its_service_with_body_and_query_untouched(self, api: httpx.AsyncClient) -> None:
        body = bytes(range(256)) * 5000
        response = await api.post("/v1/echo/mirror?a=1&b=%20x&a=2", content=body, headers={"Content-Type": "a/b"})
        seen = response.json()
        assert (seen["path"], seen["query"]) == ("/v1/echo/mirror", "a=1&b=%20x&a=2")
        assert (seen["bytes"], seen["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
        assert received(response)["content-type"] == ["a/b"]

    async def test_is_vouched_for_by_the_signed_context(self, gateway: House, api: httpx.AsyncClient) -> None:
        response = await api.post("/v1/echo/mirror", headers={"X-Request-ID": "request-1"})
        context = CallContext.verified(received(response)[HEADER][0], SECRET)
        principal, _ = await gateway.principal()
        assert (context.tenant, context.principal, frozenset(context.scopes)) == (
            "acme",
            principal.id,
            principal.scopes,
        )
        assert (context.method, context.operation, context.request_id) == ("echo", "mirror", "request-1")
        assert re.fullmatch(ids.pattern("job"), context.job_id)
        assert context.lease is None
        assert context.expires_at == pytest.approx(time.time() + 600, abs=20)

    async def test_has_a_new_job_name_every_time(self, api: httpx.AsyncClient) -> None:
        first, second = await api.post("/v1/echo/mirror"), await api.post("/v1/echo/mirror")
        assert first.json()["context"]["job_id"] != second.json()["context"]["job_id"]

    async def test_answers_with_the_headers_of_the_service(self, api: httpx.AsyncClient) -> None:
        response = await api.post("/v1/echo/mirror")
        job = f"/v1/jobs/{response.json()['context']['job_id']}"
        assert response.headers["location"] == job
        assert response.headers["link"] == f'<{job}>; rel="job"'
        assert response.headers["content-type"] == "application/json"
        assert response.headers.get_list("x-request-id") == received(response)["x-request-id"]

    async def test_passes_prefer_idempotency_key_and_trace_on(self, api: httpx.AsyncClient) -> None:
        trace = f"00-{'a' * 32}-{'b' * 16}-01"
        given = {"Prefer": "wait=3", "Idempotency-Key": "k", "traceparent": trace, "Accept": "image/png"}
        seen = received(await api.post("/v1/echo/mirror", headers=given))
        assert {name: seen[name.lower()] for name in given} == {name: [value] for name, value in given.items()}

    async def test_does_not_pass_a_trace_on_that_is_none(self, api: httpx.AsyncClient) -> None:
        assert "traceparent" not in received(await api.post("/v1/echo/mirror", headers={"traceparent": "00-1-2-3"}))

    async def test_without_a_body_is_called_without_one(self, api: httpx.AsyncClient) -> None:
        response = await api.send(api.build_request("POST", "/v1/echo/mirror"))
        assert response.json()["bytes"] == 0


class TestForgery:
    async def test_headers_that_only_the_gateway_may_set_do_not_pass(self, api: httpx.AsyncClient) -> None:
        forged = CallContext("victim", "prn_1", ("recover",), "echo", "mirror", "job_1", "req_1", time.time() + 99)
        response = await api.post(
            "/v1/echo/mirror",
            headers=[
                ("x-tenfold-context", forged.signed(SECRET)),
                ("X-Tenfold-Context", forged.signed(SECRET)),
                ("X-Tenfold-Door", "0"),
                ("x-tenfold-anything", "1"),
            ],
        )
        seen = received(response)
        assert [name for name in seen if name.startswith("x-tenfold-")] == [HEADER]
        assert len(seen[HEADER]) == 1
        assert response.json()["context"]["tenant"] == "acme"

    async def test_the_api_key_and_cookies_stay_at_the_door(self, api: httpx.AsyncClient) -> None:
        seen = received(await api.post("/v1/echo/mirror", headers={"Cookie": "a=b", "Proxy-Authorization": "x"}))
        assert not {"authorization", "cookie"} & seen.keys()

    async def test_a_context_header_is_no_api_key(self, gateway: House, echo: Echo) -> None:
        context = CallContext("acme", "prn_1", ("use",), "echo", "mirror", "job_1", "req_1", time.time() + 99)
        nobody = await gateway.client()
        response = await nobody.post("/v1/echo/mirror", headers={HEADER: context.signed(SECRET)})
        problem(response, 401, "api_key_missing")
        assert echo.calls == 0

    async def test_headers_that_the_caller_ties_to_the_connection_do_not_pass(
        self, server: RedisServer, home: Path, echo: Echo
    ) -> None:
        async with served(echo) as url, house(server, home, {}, services=f"echo={url}") as gateway:
            api = await gateway.api()
            given = {"Connection": "keep-alive, X-Private", "X-Private": "1", "TE": "trailers", "Keep-Alive": "9"}
            seen = received(await api.post("/v1/echo/mirror", headers=given))
        assert not {"x-private", "te", "keep-alive"} & seen.keys()


class TestWhoMay:
    async def test_nobody_without_an_api_key(self, gateway: House, echo: Echo) -> None:
        response = await (await gateway.client()).post("/v1/echo/mirror", content=b"x")
        problem(response, 401, "api_key_missing")
        assert "Bearer" in response.headers["www-authenticate"]
        assert echo.calls == 0

    @pytest.mark.parametrize("header", ["Basic dXNlcjpwYXNz", "Bearer", "Bearer  ", "tf_1", ""])
    async def test_nobody_with_another_kind_of_authorization(self, gateway: House, header: str) -> None:
        response = await (await gateway.client()).post("/v1/echo/mirror", headers={"Authorization": header})
        problem(response, 401, "api_key_missing")

    async def test_nobody_with_an_unknown_key(self, gateway: House, echo: Echo) -> None:
        stranger = await gateway.client("tf_abcdefgh_" + "x" * 43)
        response = await stranger.post("/v1/echo/mirror")
        problem(response, 401, "api_key_invalid")
        assert response.headers["www-authenticate"]
        assert echo.calls == 0

    @pytest.mark.parametrize("role", ["officer", "custodian"])
    async def test_nobody_without_the_operations_scope(self, gateway: House, echo: Echo, role: Any) -> None:
        response = await (await gateway.api(role)).post("/v1/echo/mirror")
        assert problem(response, 403, "scope_missing")["scope"] == "use"
        assert echo.calls == 0


class TestLease:
    async def test_is_opened_where_the_description_says_so(self, gateway: House) -> None:
        officer = await gateway.api("officer")
        response = await officer.post("/v1/echo/hide")
        lease = response.json()["context"]["lease"]
        assert lease
        assert len(await gateway.custody.file_key(lease)) == 32

    async def test_names_the_key_asked_for_which_the_service_does_not_see(self, gateway: House) -> None:
        custodian = await gateway.api("custodian")
        key_id = (await custodian.post("/v1/keys", json={})).json()["key_id"]
        response = await (await gateway.api()).post(f"/v1/echo/veil?a=%20&key={key_id}&b=")
        assert response.json()["query"] == "a=+&b="
        assert response.json()["context"]["lease"]

    async def test_without_a_key_needs_the_tenants_default(self, gateway: House, echo: Echo) -> None:
        keyless = await gateway.api("app", "keyless")
        assert "default" in problem(await keyless.post("/v1/echo/veil"), 404, "key_not_found")["detail"]
        assert echo.calls == 0
        custodian = await gateway.api("custodian", "keyless-no-more")
        await custodian.post("/v1/keys", json={"default": True})
        response = await (await gateway.api("app", "keyless-no-more")).post("/v1/echo/veil")
        assert response.json()["context"]["lease"]

    async def test_is_not_opened_on_another_tenants_key(self, gateway: House, echo: Echo) -> None:
        custodian = await gateway.api("custodian", "other")
        key_id = (await custodian.post("/v1/keys", json={})).json()["key_id"]
        problem(await (await gateway.api()).post(f"/v1/echo/veil?key={key_id}"), 404, "key_not_found")
        assert echo.calls == 0

    async def test_that_was_refused_is_in_the_audit_trail(self, gateway: House, api: httpx.AsyncClient) -> None:
        await api.post("/v1/echo/hide", headers={"X-Request-ID": "refused-1"})
        officer = await gateway.api("officer")
        entries = (await officer.get("/v1/audit?limit=1000")).json()["entries"]
        events = [json.loads(entry["event"]) for entry in entries]
        mine = [event for event in events if event.get("request_id") == "refused-1"]
        assert [(event["action"], event["decision"]) for event in mine] == [("lease.open", "denied")] * len(mine)
        assert mine

    async def test_is_refused_to_a_principal_that_may_not_recover(self, api: httpx.AsyncClient, echo: Echo) -> None:
        assert problem(await api.post("/v1/echo/hide"), 403, "scope_missing")["scope"] == "recover"
        assert echo.calls == 0

    @pytest.mark.parametrize("key", ["", "key_1", "key_" + "0" * 26 + "&key=key_" + "0" * 26, "../keys"])
    async def test_a_malformed_key_name_is_invalid(self, gateway: House, key: str) -> None:
        officer = await gateway.api("officer")
        body = problem(await officer.post(f"/v1/echo/hide?key={key}"), 422, "invalid_request")
        assert body["errors"][0]["place"] == "query.key"

    async def test_a_key_for_an_operation_without_a_lease_is_invalid(self, api: httpx.AsyncClient) -> None:
        response = await api.post(f"/v1/echo/mirror?key={ids.random_id('key')}")
        problem(response, 422, "invalid_request")


class TestUnknown:
    async def test_method_is_answered_with_those_there_are(self, api: httpx.AsyncClient) -> None:
        assert problem(await api.post("/v1/nothing/mirror"), 404, "method_not_found")["methods"] == ["echo"]

    async def test_operation_is_answered_with_those_there_are(self, api: httpx.AsyncClient) -> None:
        body = problem(await api.post("/v1/echo/nothing"), 404, "operation_not_found")
        assert body["operations"] == ["mirror", "drip", "silent", "abrupt", "hide", "veil"]

    @pytest.mark.parametrize(
        "path", ["/v1/echo/mirror/", "/v1/echo/mirror/more", "/v1/echo", "/v1//mirror", "/v1/echo/%2e%2e"]
    )
    async def test_path_does_not_reach_the_service(self, api: httpx.AsyncClient, echo: Echo, path: str) -> None:
        assert (await api.post(path)).status_code == 404
        assert echo.calls == 0

    @pytest.mark.parametrize("path", ["/v1/jobs/mirror", "/v1/files/mirror", "/v1/methods/echo"])
    async def test_post_to_a_path_of_the_gateways_own_is_not_an_operation(
        self, api: httpx.AsyncClient, path: str
    ) -> None:
        problem(await api.post(path), 405, "http_method_not_allowed")

    async def test_verb_on_an_operation_names_post(self, api: httpx.AsyncClient) -> None:
        assert problem(await api.get("/v1/echo/mirror"), 405, "http_method_not_allowed")["allowed"] == ["POST"]


class TestStreaming:
    async def test_an_answer_passes_as_it_comes(self, gateway: House, api: httpx.AsyncClient, echo: Echo) -> None:
        async with (
            gateway.streaming() as streaming,
            asyncio.timeout(10),
            streaming.stream("POST", "/v1/echo/drip") as response,
        ):
            chunks = response.aiter_raw()
            assert await anext(chunks) == b"one"  # although the service has not sent more
            echo.go_on.set()
            assert b"".join([chunk async for chunk in chunks]) == b"twothree"

    async def test_a_body_passes_as_it_comes(self, gateway: House, echo: Echo) -> None:
        held = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.wait_for(held.wait(), 10)
            yield b"second"

        async with gateway.streaming() as streaming:
            sending = asyncio.create_task(streaming.post("/v1/echo/mirror", content=body()))
            await asyncio.wait_for(echo.was_called.wait(), 10)
            held.set()  # only now does the rest leave the caller: the service was called before
            assert (await sending).json()["bytes"] == len(b"firstsecond")

    async def test_half_an_answer_is_not_taken_for_whole(self, gateway: House) -> None:
        async with gateway.streaming() as streaming:
            with pytest.raises(httpx.RemoteProtocolError):
                await streaming.post("/v1/echo/abrupt")

    async def test_the_service_hears_that_the_caller_left(self, gateway: House, echo: Echo) -> None:
        async with gateway.streaming() as streaming:
            leaving = asyncio.create_task(streaming.post("/v1/echo/silent", content=b"x"))
            async with asyncio.timeout(10):
                await echo.has_begun.wait()
                leaving.cancel()
                await echo.was_left.wait()


class TestAServiceThatIsDown:
    async def test_is_503_with_the_time_to_come_back(self, server: RedisServer, home: Path) -> None:
        async with house(server, home, {}, services=f"gone=http://127.0.0.1:{free_port()}") as gateway:
            response = await (await gateway.api()).post("/v1/gone/anything", content=b"x")
            assert problem(response, 503, "service_unavailable")["method"] == "gone"
            assert int(response.headers["retry-after"]) >= 1

    async def test_does_not_take_the_others_down(self, server: RedisServer, home: Path, echo: Echo) -> None:
        services = f"gone=http://127.0.0.1:{free_port()}"
        async with house(server, home, {"echo": echo}, services=services) as gateway:
            api = await gateway.api()
            assert (await api.post("/v1/echo/mirror")).status_code == 200
            assert (await api.get("/readyz")).json()["status"] == "ready"
            listed = {one["method"]: one for one in (await api.get("/v1/methods")).json()["methods"]}
            assert listed["echo"]["available"] is True
            assert listed["gone"]["available"] is False
            assert listed["gone"]["error"]["code"] == "service_unavailable"

    async def test_that_was_there_before_is_503_and_comes_back(
        self, server: RedisServer, home: Path, echo: Echo
    ) -> None:
        async with contextlib.AsyncExitStack() as stack:
            url = await stack.enter_async_context(served(echo))
            gateway = await stack.enter_async_context(house(server, home, {}, services=f"echo={url}"))
            api = await gateway.api()
            assert (await api.post("/v1/echo/mirror")).status_code == 200
        async with house(server, home, {}, services=f"echo={url}") as gateway:
            api = await gateway.api()
            problem(await api.post("/v1/echo/mirror", content=b"x"), 503, "service_unavailable")

    async def test_that_was_not_reached_leaves_no_lease_behind(
        self, server: RedisServer, home: Path, echo: Echo
    ) -> None:
        async with contextlib.AsyncExitStack() as serving:
            url = await serving.enter_async_context(served(echo))
            async with house(server, home, {}, services=f"echo={url}") as gateway:
                officer = await gateway.api("officer", "released")
                assert (await officer.post("/v1/echo/hide")).status_code == 200
                await serving.aclose()
                problem(await officer.post("/v1/echo/hide", content=b"x"), 503, "service_unavailable")
                entries = (await officer.get("/v1/audit?limit=1000")).json()["entries"]
        events = [json.loads(entry["event"]) for entry in entries]
        opened, released = (
            [event["lease"] for event in events if event["action"] == f"lease.{done}"] for done in ("open", "release")
        )
        assert released == opened[1:]

    async def test_that_does_not_answer_in_time_names_the_job(
        self, server: RedisServer, home: Path, echo: Echo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.upstream.ANSWER_MARGIN_S", 0.0)
        async with served(echo) as url:
            settings: dict[str, Any] = {"services": f"echo={url}", "upstream_timeout_s": 0.3}
            async with house(server, home, {}, **settings) as gateway:
                api = await gateway.api()
                response = await api.post("/v1/echo/silent", content=b"x", headers={"Prefer": "wait=0"})
        assert re.fullmatch(ids.pattern("job"), problem(response, 504, "upstream_timeout")["job_id"])


class TestPrefer:
    @pytest.mark.parametrize(
        ("prefer", "seconds"),
        [
            ([], 7.0),
            (["wait=3"], 3.0),
            (["wait = 3"], 3.0),
            (['respond-async, wait="9"'], 0.0),
            (["handling=lenient", "wait=12"], 12.0),
            (["respond-async"], 0.0),
            (["nowait=3"], 7.0),
            (["wait=soon"], 7.0),
        ],
    )
    def test_says_how_long_the_gateway_lets_a_service_wait(self, prefer: list[str], seconds: float) -> None:
        assert wait_s(prefer, 7.0) == seconds


async def test_what_is_not_known_of_a_caller_is_never_said_to_a_service(
    server: RedisServer, home: Path, echo: Echo
) -> None:
    async with house(server, home, {"echo": echo}) as gateway:
        seen = (await (await gateway.api()).post("/v1/echo/mirror")).text
        assert "tf_" not in seen
        assert json.loads(seen)["context"]["scopes"] == ["use", "verify"]
