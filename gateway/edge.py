"""What happens to every request before and after anything else: its name, its limit, its line in the log.

Pure ASGI, so that bodies and answers stream through untouched.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import failures, throttle
from gateway.metrics import Metrics, http_method
from shared import ids, tracing
from shared.problems import BodyTooLarge, Problem

_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds: logged at debug
_CLIENT_LEFT = 499  # a status for the log alone: nobody is there to receive it

log = structlog.get_logger()


class Edge:
    """Outermost middleware of ours. Answers what nobody else did: bodies over the limit and unforeseen exceptions."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        body_limit_bytes: int,
        metrics: Metrics,
        limits_bytes: Mapping[tuple[str, str], int] | None = None,
    ) -> None:
        """Wrap `app`.

        limits_bytes  the limits of bodies that are not `body_limit_bytes`, by verb and path
        """
        self._app = app
        self._limit_bytes = body_limit_bytes
        self._limits_bytes = dict(limits_bytes or {})
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _SAFE_REQUEST_ID.fullmatch(given) else ids.ordered_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        limit_bytes = self._limits_bytes.get((scope["method"], scope["path"]), self._limit_bytes)
        exchange = _Exchange(receive, send, request_id, limit_bytes, scope["state"])
        span = _span(scope, headers, request_id)
        with (
            structlog.contextvars.bound_contextvars(request_id=request_id),
            self._metrics.in_flight.track_inprogress(),
            tracing.entered(span),
        ):
            try:
                await self._answer(exchange, scope, headers)
            finally:
                self._record(exchange, scope, span)

    async def _answer(self, exchange: _Exchange, scope: Scope, headers: Headers) -> None:
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > exchange.limit_bytes:
            await exchange.answer(scope, exchange.too_large())
            return
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = exchange.status or _CLIENT_LEFT
            return
        except Exception as error:
            if exchange.is_started or not exchange.is_over_limit:
                log.exception("request.failed", error=type(error).__name__)
                if exchange.is_complete:
                    return
                if exchange.is_started:
                    raise  # half an answer is out: only cutting the connection tells the caller
                await exchange.answer(scope, Problem())
                return
        if exchange.is_over_limit and not exchange.is_started:
            await exchange.answer(scope, exchange.too_large())

    def _record(self, exchange: _Exchange, scope: Scope, span: tracing.Span) -> None:
        seconds = time.perf_counter() - exchange.began
        route = scope["state"].get("route") or getattr(scope.get("route"), "path", "unknown")
        status = exchange.status or _CLIENT_LEFT
        verb = http_method(scope["method"])
        self._metrics.requests.labels(route, verb, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        self._metrics.received.inc(exchange.received_bytes)
        self._metrics.sent.inc(exchange.sent_bytes)
        span.rename(f"{verb} {route}")
        span.set(route=route, http_method=verb, status=status)
        if status >= 500:
            span.fail(str(status))
        say = log.debug if scope["path"] in _QUIET_PATHS else log.info
        say(
            "request.answered",
            http_method=scope["method"],
            path=scope["path"],  # without the query string: it may hold what belongs in no log
            status=status,
            seconds=round(seconds, 4),
            bytes=exchange.received_bytes,
            principal=scope["state"].get("principal"),
        )


def _span(scope: Scope, headers: Headers, request_id: str) -> tracing.Span:
    if scope["path"] in _QUIET_PATHS:
        return tracing.NO_TRACE
    return tracing.begin("request", headers.get(tracing.HEADER), kind="server", request_id=request_id)


class _Exchange:
    """One request and its answer, as they pass."""

    def __init__(
        self, receive: Receive, send: Send, request_id: str, limit_bytes: int, state: Mapping[str, Any]
    ) -> None:
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._state = state
        self.limit_bytes = limit_bytes
        self.began = time.perf_counter()
        self.received_bytes = 0
        self.sent_bytes = 0
        self.status = 0
        self.is_over_limit = False
        self.is_complete = False

    @property
    def is_started(self) -> bool:
        return self.status != 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.received_bytes += len(message.get("body", b""))
            if self.received_bytes > self.limit_bytes:
                self.is_over_limit = True
                raise self.too_large()
        return message

    async def send(self, message: Message) -> None:
        if self.is_over_limit and not self.is_started:
            return  # the application's own idea of what is wrong; ours follows
        await self._pass(message)

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            headers["x-content-type-options"] = "nosniff"
            headers.update(self._state.get(throttle.STATE, {}))
        elif message["type"] == "http.response.body":
            self.sent_bytes += len(message.get("body", b""))
            self.is_complete = not message.get("more_body", False)
        await self._send(message)

    def too_large(self) -> Problem:
        """What a body over the limit is answered with."""
        return BodyTooLarge(f"At most {self.limit_bytes} bytes are accepted.", limit_bytes=self.limit_bytes)

    async def answer(self, scope: Scope, problem: Problem) -> None:
        """Say `problem` instead of what the application would have said."""
        await failures.answer(problem, self._request_id)(scope, self._receive, self._pass)
