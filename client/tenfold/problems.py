"""What can go wrong, one class for each different reaction of the caller."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

_FIXED = frozenset({"type", "code", "status", "title", "detail", "request_id", "retry_after_s"})


class Problem(Exception):
    """Base of everything the client raises about a call.

    code           stable name of what went wrong, as `image_too_large`
    status         HTTP status, or None where no answer came
    detail         a sentence with the numbers of this case
    request_id     what to quote when asking the operators, or None
    retry_after_s  seconds after which the server expects another try to succeed, or None
    extras         whatever else the answer said, as `{"limit_px": 20000}`
    """

    default_code: ClassVar[str] = "problem"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.extras = dict(extras or {})

    @property
    def job_id(self) -> str | None:
        """The job that failed, or that goes on after a `TimedOut`; None where there is no job."""
        job_id = self.extras.get("job_id")
        return job_id if isinstance(job_id, str) else None

    def __str__(self) -> str:
        where = f", request {self.request_id}" if self.request_id else ""
        return f"{self.detail} ({self.code}{where})"

    def __reduce__(self) -> tuple[Any, ...]:  # else an exception with keyword arguments cannot leave a process pool
        return _restore, (type(self), self.detail, self.__dict__)


class AuthenticationFailed(Problem):
    """The API key is missing, unknown or revoked. Set `TENFOLD_API_KEY`, or pass `api_key`."""


class NotAllowed(Problem):
    """The API key may not do this. `extras["scope"]` names the scope it lacks, where one would do."""


class NotFound(Problem):
    """There is no such job, file, model, method or key, or it belongs to somebody else, or its time is over."""


class Conflict(Problem):
    """The thing is in another state than this call starts from: read it again, then decide."""


class InvalidInput(Problem):
    """The request will never be accepted as it is. `extras["errors"]` names each place and what is right."""


class RateLimited(Problem):
    """Too many requests, or a quota is used up. `retry_after_s` says when the next one will be taken."""


class Unavailable(Problem):
    """A part of the service does not answer or is full at the moment. Trying again later is right."""


class ServerFault(Problem):
    """The service failed, or answered what no Tenfold answers. `request_id` finds it in the operators' logs."""

    default_code = "unexpected_answer"


class ConnectionFailed(Problem):
    """No answer: the host is unknown, refuses connections, or cut this one as often as was tried."""

    default_code = "connection_failed"


class TimedOut(Problem):
    """A limit of the caller passed. With a `job_id` the job goes on: `client.jobs.wait(problem.job_id)`."""

    default_code = "timed_out"


_BY_STATUS: dict[int, type[Problem]] = {
    401: AuthenticationFailed,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    410: NotFound,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def class_of(status: int) -> type[Problem]:
    """The class that answers with this HTTP status are raised as."""
    return _BY_STATUS.get(status) or (InvalidInput if 400 <= status < 500 else ServerFault)


def problem_of(
    status: int, body: bytes, *, request_id: str | None = None, retry_after_s: float | None = None
) -> Problem:
    """The problem that an answer with an error status describes, whatever its body is."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict) and isinstance(fields.get("code"), str):
        return problem_of_body(fields, status=status, request_id=request_id, retry_after_s=retry_after_s)
    return class_of(status)(
        f"The server answered {status} without saying why.",
        code=f"http_{status}",
        status=status,
        request_id=request_id,
        retry_after_s=retry_after_s,
    )


def problem_of_body(
    fields: Mapping[str, Any],
    *,
    status: int | None = None,
    request_id: str | None = None,
    retry_after_s: float | None = None,
    **extras: Any,
) -> Problem:
    """The problem of a problem object, as a failed job keeps it. What is given here beats what the object says."""
    said = fields.get("status")
    status = status if status is not None else said if isinstance(said, int) else 500
    wait = fields.get("retry_after_s")
    return class_of(status)(
        str(fields.get("detail") or fields.get("title") or f"The server answered {status}."),
        code=str(fields.get("code") or f"http_{status}"),
        status=status,
        request_id=request_id or (str(fields["request_id"]) if fields.get("request_id") else None),
        retry_after_s=retry_after_s if retry_after_s is not None else wait if isinstance(wait, int | float) else None,
        extras={name: value for name, value in fields.items() if name not in _FIXED} | extras,
    )


def _restore(cls: type[Problem], detail: str, state: dict[str, Any]) -> Problem:
    problem = cls(detail)
    problem.__dict__.update(state)
    return problem
