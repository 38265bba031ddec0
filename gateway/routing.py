"""`POST /v1/{method}/{operation}`: who may, under which job and lease, and on to the method's service."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from gateway.auth import authenticate, require_scope
from gateway.catalogue import Catalogue, Operation
from gateway.custody.service import Custody
from gateway.failures import UpstreamTimeout
from gateway.metrics import Metrics
from gateway.principals import Principal
from gateway.throttle import Throttle
from gateway.upstream import Call
from shared import ids, tracing
from shared.context import CallContext
from shared.http import request_id_of
from shared.limits import Limits
from shared.problems import InvalidRequest, QuotaExceeded, RateLimited, ServiceUnavailable

OWN_PATHS = frozenset({"audit", "files", "jobs", "keys", "methods", "models"})  # no method may be named so

_PREFERRED_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,4})\"?", re.IGNORECASE)
_RESPOND_ASYNC = re.compile(r"(?:^|[,;\s])respond-async(?:$|[,;\s])", re.IGNORECASE)


class OperationRoute(Route):
    """Matches every operation of every method, whether it exists or not, but none of the gateway's own paths."""

    def __init__(self, endpoint: Operations) -> None:
        super().__init__("/v1/{method}/{operation}", endpoint, methods=["POST"], include_in_schema=False)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match is not Match.NONE and child["path_params"]["method"] in OWN_PATHS:
            return Match.NONE, {}
        return match, child


class Operations:
    """ASGI endpoint of all operations."""

    def __init__(
        self,
        catalogue: Catalogue,
        custody: Custody,
        throttle: Throttle,
        metrics: Metrics,
        secret: str,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._catalogue = catalogue
        self._metrics = metrics
        self._custody = custody
        self._throttle = throttle
        self._secret = secret
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        principal = await authenticate(request)
        method, name = scope["path_params"]["method"], scope["path_params"]["operation"]
        upstream = self._catalogue.upstream(method)
        operation = await self._catalogue.operation(method, name)
        scope["state"]["route"] = f"/v1/{method}/{name}"  # both are known now, so metrics cannot be flooded with names
        limits = await self._admitted(request, principal, method, operation)
        call, context = await self._call(request, principal, method, operation, limits)
        try:
            await upstream.forward(call, scope, receive, send)
        except (ServiceUnavailable, UpstreamTimeout) as problem:
            self._metrics.upstream_failures.labels(method, problem.code).inc()
            if context.lease and "job_id" not in problem.extras:  # the call did not get there: no job comes of it
                await self._custody.release_lease(context, context.lease)
            raise

    async def _admitted(self, request: Request, principal: Principal, method: str, operation: Operation) -> Limits:
        waits = wait_s(request.headers.getlist("prefer"), operation.wait_s) > 0
        try:
            return await self._throttle.admit_call(request, principal, method, operation, waits=waits)
        except (RateLimited, QuotaExceeded):
            if operation.lease == "recover":
                await self._custody.limiter.note_block(principal, "limit", request_id_of(request) or "")
            raise

    async def _call(
        self, request: Request, principal: Principal, method: str, operation: Operation, limits: Limits
    ) -> tuple[Call, CallContext]:
        job_id = ids.ordered_id("job")
        request_id = request_id_of(request) or ids.ordered_id("req")
        expires_at = self._now() + operation.deadline_s
        key_id, query_string = _without_key(request, operation)
        lease = None
        if operation.lease:  # custody comes before our own check of the scope: it keeps an account of refusals
            with tracing.entered(tracing.current().child("open_lease", job_id=job_id)):
                lease = await self._custody.open_lease(
                    principal,
                    job_id=job_id,
                    method=method,
                    operation=operation.name,
                    kind=operation.lease,
                    key_id=key_id,
                    expires_at=expires_at,
                    request_id=request_id,
                )
        require_scope(principal, operation.scope)
        context = CallContext(
            tenant=principal.tenant,
            principal=principal.id,
            scopes=tuple(sorted(principal.scopes)),
            method=method,
            operation=operation.name,
            job_id=job_id,
            request_id=request_id,
            expires_at=expires_at,
            lease=lease,
            limits=limits,
        )
        call = Call(
            method=method,
            operation=operation.name,
            query_string=query_string,
            context=context.signed(self._secret),
            request_id=request_id,
            job_id=job_id,
            wait_s=wait_s(request.headers.getlist("prefer"), operation.wait_s),
        )
        return call, context


def wait_s(prefer: list[str], default_s: float) -> float:
    """How long the caller lets itself be kept waiting (RFC 7240), in seconds."""
    wish = ",".join(prefer)
    if _RESPOND_ASYNC.search(wish):
        return 0.0
    found = _PREFERRED_WAIT.search(wish)
    return float(found[1]) if found else default_s


def _without_key(request: Request, operation: Operation) -> tuple[str | None, bytes]:
    """`?key=` is for custody; the rest of the query is the service's."""
    query = request.scope["query_string"]
    keys = request.query_params.getlist("key")
    if not keys:
        return None, query
    if operation.lease is None or len(keys) > 1 or not re.fullmatch(ids.pattern("key"), keys[0]):
        message = "takes one name of a secret key" if operation.lease else "is for operations that use a secret key"
        raise InvalidRequest(f"query.key {message}.", errors=[{"place": "query.key", "message": message}])
    rest = [(n, v) for n, v in parse_qsl(query.decode("latin-1"), keep_blank_values=True) if n != "key"]
    return keys[0], urlencode(rest).encode()
