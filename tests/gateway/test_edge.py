from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from structlog.testing import capture_logs

from gateway import failures
from gateway.edge import Edge
from gateway.metrics import Metrics
from shared.problems import ApiKeyMissing, ServiceUnavailable
from tests.gateway.serving import served

pytestmark = pytest.mark.anyio

LIMIT_BYTES = 1000


def application() -> FastAPI:
    app = FastAPI()
    app.router.redirect_slashes = False
    failures.install(app, LIMIT_BYTES)
    app.add_middleware(Edge, body_limit_bytes=LIMIT_BYTES, metrics=Metrics())

    @app.get("/one/{number}")
    async def one(number: int) -> int:
        return number

    @app.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    @app.post("/form")
    async def form(request: Request) -> int:
        return len(await request.form())

    @app.post("/json")
    async def parsed(value: dict[str, Any]) -> int:
        return len(value)

    @app.get("/bug")
    async def bug() -> None:
        raise KeyError("the secret of the house")

    @app.get("/half")
    async def half() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"half"
            raise KeyError("the secret of the house")

        return StreamingResponse(body())

    @app.post("/eager")
    async def eager(request: Request) -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            async for _ in request.stream():
                pass

        return StreamingResponse(body())

    @app.get("/down")
    async def down() -> None:
        raise ServiceUnavailable

    @app.get("/keyless")
    async def keyless() -> None:
        raise ApiKeyMissing

    return app


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=application())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem that an answer must be, complete and told from the request it belongs to."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert (body["code"], body["status"], body["type"]) == (code, status, f"/problems/{code}")
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == response.headers["x-request-id"]
    return body


async def pieces(count: int, size_bytes: int, head: bytes = b"") -> AsyncIterator[bytes]:
    """A body without a declared length."""
    yield head
    for _ in range(count):
        yield bytes(size_bytes)


class TestRequestId:
    async def test_every_answer_has_one(self, client: httpx.AsyncClient) -> None:
        first, second = await client.get("/one/1"), await client.get("/one/1")
        assert first.headers["x-request-id"].startswith("req_")
        assert first.headers["x-request-id"] != second.headers["x-request-id"]

    @pytest.mark.parametrize("given", ["abcd1234", "A-b_c.d-e_f", "x" * 64])
    async def test_a_safe_one_is_taken_over(self, client: httpx.AsyncClient, given: str) -> None:
        response = await client.get("/one/1", headers={"X-Request-ID": given})
        assert response.headers.get_list("x-request-id") == [given]

    @pytest.mark.parametrize("given", ["short", "x" * 65, "has space", "new\tline1", "é" * 10, "a" * 7, '"quoted"'])
    async def test_another_is_replaced(self, client: httpx.AsyncClient, given: str) -> None:
        response = await client.get("/one/1", headers=[(b"X-Request-ID", given.encode())])
        assert response.headers["x-request-id"].startswith("req_")

    async def test_the_log_line_carries_it_and_no_query_string(self, client: httpx.AsyncClient) -> None:
        with capture_logs(processors=[merge]) as lines:
            await client.get("/one/1?purpose=private", headers={"X-Request-ID": "request-77"})
        (line,) = [line for line in lines if line["event"] == "request.answered"]
        assert (line["request_id"], line["path"], line["status"]) == ("request-77", "/one/1", 200)
        assert "private" not in json.dumps(line)


def merge(logger: Any, name: str, event: Any) -> Any:
    """What the configured pipeline does first."""
    import structlog

    return structlog.contextvars.merge_contextvars(logger, name, event)


class TestProblems:
    async def test_an_unknown_path(self, client: httpx.AsyncClient) -> None:
        assert "/nowhere" in problem(await client.get("/nowhere"), 404, "route_not_found")["detail"]

    async def test_a_path_with_a_slash_too_many_is_not_redirected(self, client: httpx.AsyncClient) -> None:
        problem(await client.get("/one/1/"), 404, "route_not_found")

    async def test_a_wrong_http_method_names_the_right_ones(self, client: httpx.AsyncClient) -> None:
        response = await client.delete("/one/1")
        assert problem(response, 405, "http_method_not_allowed")["allowed"] == ["GET"]
        assert response.headers["allow"] == "GET"

    async def test_an_invalid_field_names_its_place(self, client: httpx.AsyncClient) -> None:
        body = problem(await client.get("/one/two"), 422, "invalid_request")
        assert body["errors"][0]["place"] == "path.number"

    async def test_the_value_that_was_sent_is_not_repeated(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/json", json="a secret in the wrong place")
        problem(response, 422, "invalid_request")
        assert "secret" not in response.text

    async def test_a_form_without_its_boundary(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/form", content=b"x", headers={"Content-Type": "multipart/form-data"})
        problem(response, 400, "bad_syntax")

    async def test_an_unforeseen_exception_is_logged_and_tells_nothing(self, client: httpx.AsyncClient) -> None:
        with capture_logs() as lines:
            response = await client.get("/bug")
        problem(response, 500, "internal_error")
        assert "secret" not in response.text
        (line,) = [line for line in lines if line["event"] == "request.failed"]
        assert (line["error"], line["exc_info"], line["log_level"]) == ("KeyError", True, "error")

    async def test_unavailable_always_says_when_to_come_back(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/down")
        body = problem(response, 503, "service_unavailable")
        assert int(response.headers["retry-after"]) == body["retry_after_s"] > 0

    async def test_a_missing_key_says_which_kind_is_needed(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/keyless")
        problem(response, 401, "api_key_missing")
        assert response.headers["www-authenticate"].startswith("Bearer ")


class TestBodyLimit:
    @pytest.mark.parametrize("path", ["/size", "/form", "/json", "/one/1", "/nowhere"])
    async def test_a_declared_length_over_the_limit_is_refused_unread(
        self, client: httpx.AsyncClient, path: str
    ) -> None:
        response = await client.post(path, content=bytes(LIMIT_BYTES + 1))
        assert problem(response, 413, "body_too_large")["limit_bytes"] == LIMIT_BYTES

    @pytest.mark.parametrize(
        ("path", "content_type", "head"),
        [
            ("/size", "application/octet-stream", b""),
            ("/json", "application/json", b""),
            ("/form", "application/x-www-form-urlencoded", b""),
            ("/form", "multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n'),
        ],
    )
    async def test_a_body_without_a_length_is_refused_where_it_passes_the_limit(
        self, client: httpx.AsyncClient, path: str, content_type: str, head: bytes
    ) -> None:
        response = await client.post(path, content=pieces(11, 100, head), headers={"Content-Type": content_type})
        assert problem(response, 413, "body_too_large")["limit_bytes"] == LIMIT_BYTES

    async def test_a_path_may_have_a_limit_of_its_own(self) -> None:
        app = Edge(
            application(), body_limit_bytes=LIMIT_BYTES, metrics=Metrics(), limits_bytes={("POST", "/size"): 100}
        )
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            for content in (bytes(101), pieces(2, 100)):
                response = await client.post("/size", content=content)
                assert problem(response, 413, "body_too_large")["limit_bytes"] == 100
            assert (await client.post("/size", content=bytes(100))).json() == 100
            assert (await client.post("/form", content=bytes(101))).status_code == 200

    async def test_a_body_of_exactly_the_limit_passes(self, client: httpx.AsyncClient) -> None:
        assert (await client.post("/size", content=bytes(LIMIT_BYTES))).json() == LIMIT_BYTES
        assert (await client.post("/size", content=pieces(10, 100))).json() == LIMIT_BYTES


class TestHalfAnAnswer:
    async def test_the_connection_is_cut_so_that_nobody_takes_it_for_whole(self) -> None:
        async with served(application()) as url, httpx.AsyncClient(base_url=url) as client:
            with capture_logs() as lines, pytest.raises(httpx.RemoteProtocolError):
                await client.get("/half")
        assert [line["error"] for line in lines if line["event"] == "request.failed"] == ["KeyError"]

    async def test_a_body_that_passes_the_limit_after_the_answer_began_cuts_it(self) -> None:
        async with served(application()) as url, httpx.AsyncClient(base_url=url) as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post("/eager", content=pieces(11, 100))
