"""A method's service, mounted in this process or behind HTTP: asked for its description, and handed calls to.

A call passes through unread. What the caller sent as `x-tenfold-*`, its API key and its cookies stay here; the context
that the gateway signed goes in their place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.failures import UpstreamTimeout
from shared import tracing
from shared.context import HEADER
from shared.problems import ServiceUnavailable

RawHeaders = list[tuple[bytes, bytes]]

CONNECT_S = 2.0  # inside one installation it takes milliseconds; what takes longer leads to a machine that is gone
POOL_S = 1.0
ANSWER_MARGIN_S = 5.0  # a method answers 202 when its wait is over: so much later at the latest
FETCH_S = 5.0
RETRY_S = 5.0

# Of one connection, not of the message (RFC 9110, 7.6.1). `expect` was answered by the server in front of us.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding"
    b" upgrade expect".split()
)
_KEPT_HERE = frozenset({b"authorization", b"cookie", b"x-request-id", tracing.HEADER.encode()})
_OURS = b"x-tenfold-"
_SET_BY_OUR_SERVER = frozenset({b"server", b"date", b"x-request-id"})
_ASGI_KEYS = ("type", "asgi", "http_version", "method", "scheme", "client", "server", "extensions")


@dataclass(frozen=True)
class Call:
    """One call of an operation, as the service shall see it."""

    method: str
    operation: str
    query_string: bytes
    context: str
    """The signed header."""
    request_id: str
    job_id: str
    wait_s: float
    """How long the service may hold the answer back."""

    @property
    def path(self) -> str:
        return f"/v1/{self.method}/{self.operation}"

    def headers(self, given: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
        """The caller's headers without what is not for the service, and ours."""
        passed = [(n, v) for n, v in given if n not in _KEPT_HERE and not n.startswith(_OURS)]
        ours = [(HEADER.encode(), self.context.encode()), (b"x-request-id", self.request_id.encode())]
        if (traceparent := tracing.current().traceparent) is not None:
            ours.append((tracing.HEADER.encode(), traceparent.encode()))
        return [*passed, *ours]


class Upstream(Protocol):
    """Where one method is served."""

    async def fetch(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`. Raises `ServiceUnavailable`."""
        ...

    async def forward(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on and its answer back, both as they come. Raises a `Problem` while nothing was sent back."""
        ...


class Mounted:
    """A service application in this process: no hop, no copy."""

    def __init__(self, method: str, app: ASGIApp) -> None:
        self._method = method
        self._app = app

    async def fetch(self, path: str) -> dict[str, Any]:
        transport = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://mounted", timeout=FETCH_S) as client:
            return await _fetched(client, self._method, path)

    async def forward(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        inner = {key: scope[key] for key in _ASGI_KEYS if key in scope}
        inner |= {"path": call.path, "raw_path": call.path.encode(), "root_path": "", "state": {}}
        inner |= {"query_string": call.query_string, "headers": call.headers(scope["headers"])}
        await self._app(inner, receive, send)


class Remote:
    """A service behind HTTP. `client` lives as long as the gateway and is shared by all of them."""

    def __init__(self, method: str, base_url: str, client: httpx.AsyncClient, timeout_s: float) -> None:
        self._method = method
        self._base_url = base_url.rstrip("/")
        self._client = client
        self._timeout_s = timeout_s

    async def fetch(self, path: str) -> dict[str, Any]:
        return await _fetched(self._client, self._method, self._base_url + path)

    async def forward(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope["headers"]}
        body = _Body(receive, is_empty=names.isdisjoint((b"content-length", b"transfer-encoding")))
        request = self._request(call, scope["headers"], body)
        await _unless_gone(self._relay(call, request, send), body)

    def _request(self, call: Call, given: RawHeaders, body: _Body) -> httpx.Request:
        is_chunked = any(name == b"transfer-encoding" for name, _ in given)
        dropped = {b"host", b"content-length"} if is_chunked else {b"host"}
        read_s = max(self._timeout_s, call.wait_s + ANSWER_MARGIN_S)
        timeout = httpx.Timeout(connect=CONNECT_S, pool=POOL_S, write=self._timeout_s, read=read_s)
        return httpx.Request(
            "POST",
            httpx.URL(self._base_url + call.path, query=call.query_string or None),
            headers=call.headers(_end_to_end(given, dropped)),  # in this order: no `Connection` of a caller names ours
            content=b"" if body.is_empty else body.stream(),
            extensions={"timeout": timeout.as_dict()},
        )

    async def _relay(self, call: Call, request: httpx.Request, send: Send) -> None:
        try:
            response = await self._client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ServiceUnavailable(
                f"The method {call.method} does not answer.", retry_after_s=RETRY_S, method=call.method
            ) from error
        except httpx.TimeoutException as error:
            raise UpstreamTimeout(
                f"The method {call.method} took the request and did not answer in time.", job_id=call.job_id
            ) from error
        except httpx.HTTPError as error:
            raise ServiceUnavailable(
                f"The connection to the method {call.method} broke.", retry_after_s=RETRY_S, job_id=call.job_id
            ) from error
        try:
            headers = _end_to_end(response.headers.raw, _SET_BY_OUR_SERVER)
            await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()


class _Body:
    """The body of a request, as it comes, and afterwards the news that the caller left."""

    def __init__(self, receive: Receive, *, is_empty: bool) -> None:
        self._receive = receive
        self.is_empty = is_empty
        self._is_over = asyncio.Event()
        if is_empty:
            self._is_over.set()

    async def stream(self) -> AsyncIterator[bytes]:
        while not self._is_over.is_set():
            message: Message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            if not message.get("more_body", False):
                self._is_over.set()
            if message.get("body"):
                yield message["body"]

    async def gone(self) -> None:
        """Return when the caller has left. Waits until the body is over: there is one reader at a time."""
        await self._is_over.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def _unless_gone(work: Coroutine[Any, Any, None], body: _Body) -> None:
    """Do `work`, or give it up when the caller leaves: nobody is there to read the answer."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(body.gone())
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        await working
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


def _end_to_end(headers: Iterable[tuple[bytes, bytes]], dropped: Iterable[bytes] = ()) -> RawHeaders:
    """`headers` without those of one connection, without those that `Connection` names, and without `dropped`."""
    pairs = [(name.lower(), value) for name, value in headers]
    named = {token.strip().lower() for name, value in pairs if name == b"connection" for token in value.split(b",")}
    gone = _HOP_BY_HOP | named | set(dropped)
    return [(name, value) for name, value in pairs if name not in gone]


async def _fetched(client: httpx.AsyncClient, method: str, url: str) -> dict[str, Any]:
    try:
        response = await client.get(url, timeout=httpx.Timeout(FETCH_S, connect=CONNECT_S, pool=POOL_S))
        response.raise_for_status()
        found = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ServiceUnavailable(
            f"The method {method} does not answer.", retry_after_s=RETRY_S, method=method
        ) from error
    if not isinstance(found, dict):
        raise ServiceUnavailable(f"The method {method} does not speak our language.", method=method)
    return found
