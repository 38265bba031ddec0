"""Who may come in, decided before a body is read: the limits of an API key, and how long a method's queue is.

One round trip to broker Redis a request. Jobs, pixels and bytes are checked again in the step that uses them up, by the
job store and the ledger: requests that come at the same time cannot slip through together.

The answer carries the fields of draft-ietf-httpapi-ratelimit-headers-11 (May 2026): `RateLimit-Policy` says what an API
key may use, `RateLimit` what it has left (`r`) and in how many seconds there is more (`t`). The unit "pixels" is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import structlog
from redis.exceptions import RedisError
from starlette.requests import HTTPConnection

from gateway.catalogue import Operation
from gateway.metrics import Metrics
from gateway.principals import Principal
from shared import jobs, limits
from shared.limits import BYTES, JOBS, PIXELS, REQUESTS, Limits
from shared.problems import BodyTooLarge, Overloaded, ServiceUnavailable

STATE = "ratelimit"
"""Where the edge finds the header fields of a request's answer, in its scope's state."""

_SCRIPT = limits.LUA + files("gateway").joinpath("throttle.lua").read_text()
_MINUTE_S, _HOUR_S = 60, 3600
_QUEUE = "queue"
_LARGEST = 10**15 - 1  # an integer of a structured field has 15 digits (RFC 9651)

log = structlog.get_logger()


@dataclass(frozen=True)
class Standing:
    """What a principal has left, once a request was let in or refused. `_until_s`: when there is one more."""

    limits: Limits
    requests: int
    requests_until_s: float
    pixels: int
    pixels_until_s: float
    jobs: int
    """Unfinished ones."""
    bytes: int
    """Stored ones."""

    def headers(self, shown: frozenset[str]) -> dict[str, str]:
        """The two fields, of those policies that `shown` names and that have a limit."""
        may, policies, left = self.limits, [], []

        def show(name: str, quota: int, unit: str, rest: int, window_s: int = 0, until_s: float = 0) -> None:
            if quota and name in shown:
                window, until = (f";w={window_s}", f";t={math.ceil(until_s)}") if window_s else ("", "")
                policies.append(f'"{name}";q={min(quota, _LARGEST)};qu="{unit}"{window}')
                left.append(f'"{name}";r={min(max(0, rest), _LARGEST)}{until}')

        show(REQUESTS, may.requests_per_minute, "requests", self.requests, _MINUTE_S, self.requests_until_s)
        show(PIXELS, may.pixels_per_hour, "pixels", self.pixels, _HOUR_S, self.pixels_until_s)
        show(JOBS, may.running_jobs, "concurrent-requests", may.running_jobs - self.jobs)
        show(BYTES, may.stored_bytes, "content-bytes", may.stored_bytes - self.bytes)
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)} if policies else {}


_OF_ANY = frozenset({REQUESTS})
_OF_AN_UPLOAD = frozenset({REQUESTS, BYTES})
_OF_A_CALL = frozenset({REQUESTS, PIXELS, JOBS, BYTES})


class Throttle:
    """Lets requests in or refuses them. What a principal may use is `defaults`, changed by what was said of it."""

    def __init__(self, client: Any, defaults: Limits, patience_s: float, metrics: Metrics) -> None:
        self._script = client.register_script(_SCRIPT)
        self._metrics = metrics
        self._defaults = defaults
        self._patience_s = patience_s

    def limits_of(self, principal: Principal) -> Limits:
        """What this principal may use."""
        return self._defaults._replace(**dict(principal.limits))

    async def admit(self, request: HTTPConnection, principal: Principal) -> None:
        """Let any request in. Raises `RateLimited`.

        Where the counts are out of reach it is let in: keys can be disabled while the broker is away.
        """
        may = self.limits_of(principal)._replace(stored_bytes=0)
        if not may.requests_per_minute:
            return
        try:
            await self._decide(request, principal, may, _OF_ANY)
        except ServiceUnavailable as problem:
            log.warning("throttle.unreachable", detail=problem.detail)

    async def admit_upload(self, request: HTTPConnection, principal: Principal) -> Standing:
        """Let a file in. Raises `RateLimited`, `QuotaExceeded`, `BodyTooLarge`, `ServiceUnavailable`."""
        return await self._decide(request, principal, self.limits_of(principal), _OF_AN_UPLOAD)

    async def admit_call(
        self, request: HTTPConnection, principal: Principal, method: str, operation: Operation, *, waits: bool
    ) -> Limits:
        """Let a call in, and return what its principal may use.

        waits  the caller waits for the answer, and so the queue must be short; else only so short that the job begins
               before its deadline

        Raises `RateLimited`, `QuotaExceeded`, `BodyTooLarge`, `Overloaded`, `ServiceUnavailable`.
        """
        may = self.limits_of(principal)
        patience_s = self._patience_s if waits and operation.kind == "compute" else operation.deadline_s
        queue = ".train" if operation.kind == "train" else ""
        # Who recovers a picture does not stand back behind a rush.
        patience_ms = 0 if operation.lease == "recover" else max(1, round(patience_s * 1000))
        await self._decide(request, principal, may, _OF_A_CALL, method, queue, patience_ms)
        return may

    async def _decide(
        self,
        request: HTTPConnection,
        principal: Principal,
        may: Limits,
        shown: frozenset[str],
        method: str | None = None,
        queue: str = "",
        patience_ms: int = 0,
    ) -> Standing:
        brought = _declared_bytes(request.headers)
        if may.stored_bytes and brought > may.stored_bytes:
            detail = f"This API key may store {may.stored_bytes} bytes in all."
            raise BodyTooLarge(detail, limit_bytes=may.stored_bytes)
        keys = [limits.prefix(principal.id), *([jobs.prefix(method)] if method else [])]
        arguments = [*may, brought, queue, patience_ms]
        try:
            line: str = await self._script(keys=keys, args=arguments)
        except RedisError as error:
            raise ServiceUnavailable("The store of limits does not answer.", retry_after_s=2) from error
        refused, _, numbers = line.partition(" ")
        wait_ms, requests, requests_ms, pixels, pixels_ms, unfinished, held = map(int, numbers.split())
        standing = Standing(may, requests, requests_ms / 1000, pixels, pixels_ms / 1000, unfinished, held)
        if fields := standing.headers(shown):
            request.scope["state"][STATE] = fields
        if refused:
            violated = refused.split(",")
            self._metrics.refused.labels(violated[0]).inc()
            raise _refusal(violated, wait_ms / 1000, may, method)
        return standing


def _refusal(refused: list[str], wait_s: float, may: Limits, method: str | None) -> Exception:
    policies = [policy for policy in refused if policy != _QUEUE]
    if policies:  # what concerns the caller comes before what concerns everybody
        return limits.too_much(policies[0], may, wait_s, *policies)
    return Overloaded(f"Jobs of {method} wait too long for their turn at the moment.", retry_after_s=wait_s)


def _declared_bytes(headers: Mapping[str, str]) -> int:
    declared = headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else 0
