"""Failures at the public door, where they differ from a service's: what Starlette says of paths, verbs and bodies."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from shared.http import from_http_exception, install_problem_handlers, problem_response, request_id_of
from shared.problems import BodyTooLarge, HttpMethodNotAllowed, Problem, RouteNotFound

RETRY_S = 5.0  # where a 503 does not know better: about the time in which a part that was restarted answers again


class UpstreamTimeout(Problem):
    """The method took the request and did not answer in time. `job_id` names the job, if it was made."""

    code, status, title = "upstream_timeout", 504, "The method did not answer in time."


def answer(problem: Problem, request_id: str | None) -> JSONResponse:
    """`problem` as this door says it: a 503 always with the time to come back, a 405 with what the path takes."""
    if problem.status == 503 and problem.retry_after_s is None:
        problem.retry_after_s = RETRY_S
    headers = {}
    if isinstance(problem, HttpMethodNotAllowed):
        headers["Allow"] = ", ".join(problem.extras.get("allowed", ()))
    return problem_response(problem, request_id, headers)


def install(app: FastAPI, body_limit_bytes: int) -> None:
    """Answer every exception that a route of `app` can raise. What nobody foresaw is the edge's."""
    install_problem_handlers(app)
    app.exception_handlers.pop(Exception)  # the edge knows how far the answer got, and logs it once

    async def on_problem(request: Request, problem: Any) -> JSONResponse:
        return answer(problem, request_id_of(request))

    async def on_http(request: Request, error: Any) -> JSONResponse:
        return answer(_from_http(error, request, body_limit_bytes), request_id_of(request))

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(StarletteHTTPException, on_http)


def _from_http(error: StarletteHTTPException, request: Request, body_limit_bytes: int) -> Problem:
    path = request.url.path
    match error.status_code:
        case 404:
            return RouteNotFound(f"There is nothing at {path}.")
        case 405:
            allow = (error.headers or {}).get("Allow", "")
            allowed = sorted(verb.strip() for verb in allow.split(",") if verb.strip())
            return HttpMethodNotAllowed(f"{path} does not take {request.method}.", allowed=allowed)
        case 413:
            return BodyTooLarge(f"At most {body_limit_bytes} bytes are accepted.", limit_bytes=body_limit_bytes)
        case _:
            return from_http_exception(error)
