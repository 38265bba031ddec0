"""Problems over HTTP, the same in the gateway and in every service."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.telemetry import TelemetryConfig
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException as StarletteHTTPException

from shared.problems import (
    MEDIA_TYPE,
    ApiKeyInvalid,
    ApiKeyMissing,
    BadSyntax,
    BodyTooLarge,
    HttpMethodNotAllowed,
    InvalidRequest,
    Problem,
    RouteNotFound,
    StorageFull,
    UnsupportedMediaType,
    is_full,
)

log = structlog.get_logger()

OWN_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
"""For every `FastAPI`: its own spans hold paths with names of files and query strings with names of keys."""


def request_id_of(request: Request) -> str | None:
    """The name of this request, once a middleware has given it one."""
    return getattr(request.state, "request_id", None)


def problem_response(
    problem: Problem, request_id: str | None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The problem as `application/problem+json`, with `Retry-After` and `WWW-Authenticate` where they belong."""
    extra = dict(headers or {})
    if problem.retry_after_s is not None:
        extra["Retry-After"] = str(max(1, math.ceil(problem.retry_after_s)))
    if isinstance(problem, ApiKeyMissing | ApiKeyInvalid):
        extra["WWW-Authenticate"] = 'Bearer realm="tenfold"'
    if request_id:
        extra["X-Request-ID"] = request_id
    return JSONResponse(problem.body(request_id), problem.status, headers=extra, media_type=MEDIA_TYPE)


def invalid_request(errors: list[ErrorDetails] | list[Any]) -> InvalidRequest:
    """pydantic's findings as a problem: each place, what is wrong there and what would be right."""
    listed = [
        {"place": ".".join(str(part) for part in error["loc"]), "message": error["msg"], "kind": error["type"]}
        for error in errors
    ]
    first = listed[0] if listed else {"place": "", "message": "The request is not valid."}
    return InvalidRequest(
        f"{first['place']}: {first['message']}" if first["place"] else first["message"], errors=listed
    )


def from_http_exception(error: StarletteHTTPException) -> Problem:
    """What the framework raised, as ours."""
    detail = str(error.detail)
    match error.status_code:
        case 404:
            return RouteNotFound()
        case 405:
            return HttpMethodNotAllowed(allowed=(error.headers or {}).get("Allow", ""))
        case 413:
            return BodyTooLarge(detail)
        case 415:
            return UnsupportedMediaType(detail)
        case status if 400 <= status < 500:
            return BadSyntax(detail)
        case _:
            return Problem()


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every failure of `app` with problem+json; what is a bug of ours is logged and tells nothing."""

    def handler(to_problem: Callable[[Any], Problem]) -> Callable[[Request, Any], Awaitable[JSONResponse]]:
        async def handle(request: Request, error: Any) -> JSONResponse:
            return problem_response(to_problem(error), request_id_of(request))

        return handle

    async def unhandled(request: Request, error: Exception) -> JSONResponse:
        log.error("request.failed", path=request.url.path, request_id=request_id_of(request), exc_info=error)
        return problem_response(Problem(), request_id_of(request))

    def no_room(error: OSError) -> Problem:
        """A body that is spooled to disk on its way (large parts, large pictures) may find no room there."""
        if not is_full(error):
            raise error
        return StorageFull(f"There is no room for the body: {error.strerror}.")

    app.add_exception_handler(Problem, handler(lambda problem: problem))
    app.add_exception_handler(OSError, handler(no_room))
    app.add_exception_handler(RequestValidationError, handler(lambda error: invalid_request(error.errors())))
    app.add_exception_handler(ValidationError, handler(lambda error: invalid_request(error.errors())))
    app.add_exception_handler(HTTPException, handler(from_http_exception))
    app.add_exception_handler(StarletteHTTPException, handler(from_http_exception))
    app.add_exception_handler(Exception, unhandled)
