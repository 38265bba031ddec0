"""One request and its answer, and lists that come in pages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from tenfold import _constants as bounds
from tenfold._effects import Answer, Close, Emit, Head, Open, Pause, Plan, Read, Request, Stream
from tenfold._retries import pause_before_retry, retry_after_s
from tenfold.problems import ConnectionFailed, Problem, ServerFault, TimedOut, problem_of

if TYPE_CHECKING:
    from tenfold._context import Context

M = TypeVar("M", bound=BaseModel)


# Building


def quoted(segment: str) -> str:
    """One segment of a path. A name can neither leave its place nor be empty."""
    if segment in ("", ".", ".."):
        raise ValueError(f"{segment!r} is no name")
    return quote(segment, safe="@")


def get(path: str, query: Mapping[str, Any] | None = None) -> Request:
    """A request for JSON. What is None in `query` is left out."""
    said = {name: str(value) for name, value in (query or {}).items() if value is not None}
    return Request("GET", path, query=said, headers={"Accept": "application/json"})


def post(path: str, fields: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None) -> Request:
    """A request that changes something, and is safe to repeat. What is None in `fields` is left out."""
    said = {name: value for name, value in (fields or {}).items() if value is not None}
    headers = {**repeatable(idempotency_key), "Accept": "application/json", "Content-Type": "application/json"}
    return Request("POST", path, headers=headers, body=json_bytes(said))


def deadline(context: Context[Any], wait_s: float) -> float:
    """When `wait_s` seconds have passed, on the context's clock. A wait without an end is refused."""
    if not 0 <= wait_s < float("inf"):
        raise ValueError(f"wait_s takes seconds from 0, not {wait_s!r}")
    return context.now() + wait_s


def delete(path: str) -> Request:
    """A request that removes something."""
    return Request("DELETE", path, headers={"Accept": "application/json"})


def repeatable(idempotency_key: str | None) -> dict[str, str]:
    """The header by which a server knows a request again: the caller's key, or a new one."""
    if idempotency_key is not None and not (
        0 < len(idempotency_key) <= 255 and idempotency_key.isascii() and idempotency_key.isprintable()
    ):
        raise ValueError("idempotency_key takes 1 to 255 printable ASCII characters")
    return {"Idempotency-Key": idempotency_key or uuid4().hex}


def json_bytes(value: Any) -> bytes:
    """JSON text of plain values, pydantic models and numpy scalars. NaN and infinity are no JSON: `ValueError`."""
    plain = to_jsonable_python(value, exclude_none=True, fallback=_scalar)
    return json.dumps(plain, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _scalar(value: Any) -> Any:
    if callable(item := getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        return item()
    raise TypeError(f"{type(value).__name__} cannot be sent as a field")


# Reading


def send(context: Context[Any], request: Request) -> Plan[Answer]:
    """Send once and read the whole answer, whatever it is."""
    started = context.now()
    silence_s = context.options.timeout_s if request.silence_s is None else request.silence_s
    head = yield Open(request)
    opened = context.now()
    body = bytearray()
    while (chunk := (yield Read())) is not None:
        body += chunk
        if len(body) > bounds.ANSWER_LIMIT_BYTES:
            raise ServerFault(f"The answer has more than {bounds.ANSWER_LIMIT_BYTES} bytes.", status=head.status)
        if context.now() - opened > silence_s:  # a trickle is no silence, but has to end as well
            raise TimedOut(f"The answer was not complete {context.now() - started:.0f} s after the request.")
    yield Close()
    return Answer(head.status, head.headers, bytes(body))


def exchange(context: Context[Any], request: Request, *, until: float = float("inf")) -> Plan[Answer]:
    """Send, and send again where that is safe and of use, until there is an answer with a 2xx status.

    until   on the context's clock: no pause goes beyond it
    raises  the `Problem` of the last try
    """
    attempt = 0
    was_cut = False
    while True:
        try:
            answer = yield from send(context, request)
            if 200 <= answer.status < 300:
                return answer
            if was_cut and answer.status == 404 and request.method == "DELETE":
                return Answer(204, {}, b"")  # the try whose answer was lost has done it
            raise problem_in(answer)
        except Problem as problem:
            was_cut = was_cut or isinstance(problem, ConnectionFailed)
            pause = pause_before_retry(problem, is_repeatable=request.is_repeatable, attempt=attempt, context=context)
            if pause is None or context.now() + pause > until:
                raise
        attempt += 1
        yield Close()
        yield Pause(pause)


def problem_in(answer: Answer) -> Problem:
    """The problem that an answer without a 2xx status describes."""
    request_id = answer.headers.get("x-request-id")
    if 300 <= answer.status < 400:
        return ServerFault(
            f"The server sends us to {answer.headers.get('location', 'another place')!r}. "
            "The API key goes to base_url only: name the right one.",
            code="unexpected_redirect",
            status=answer.status,
            request_id=request_id,
        )
    wait = retry_after_s(answer.headers.get("retry-after"))
    return problem_of(answer.status, answer.body, request_id=request_id, retry_after_s=wait)


def read_problem(head: Head) -> Plan[Problem]:
    """Read the body of an answer that was opened and is none of those that were hoped for."""
    body = bytearray()
    while len(body) < bounds.PROBLEM_LIMIT_BYTES and (chunk := (yield Read())) is not None:
        body += chunk
    yield Close()
    return problem_in(Answer(head.status, head.headers, bytes(body)))


def read(context: Context[Any], answer: Answer, kind: type[M]) -> M:
    """The object in a JSON answer. Raises `ServerFault` if it is not what a Tenfold answers."""
    return validated(context, answer, json_in(answer), kind)


def validated(context: Context[Any], answer: Answer, value: Any, kind: type[M]) -> M:
    """The object that a value in an answer is. Raises `ServerFault` like `read`."""
    try:
        return kind.model_validate(value, context=context)
    except ValidationError as error:
        raise _unreadable(f"The answer is no {kind.__name__}: {first_error(error)}.", answer) from error


def first_error(error: ValidationError) -> str:
    """The first thing that pydantic found, without the value it found it in."""
    found = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in found['loc'])}: {found['msg']}"


def _unreadable(detail: str, answer: Answer) -> ServerFault:
    return ServerFault(detail, status=answer.status, request_id=answer.headers.get("x-request-id"))


def json_in(answer: Answer) -> Any:
    """The JSON in an answer. Raises `ServerFault` if there is none."""
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise _unreadable("The answer is no JSON.", answer) from error


def pages(
    context: Context[Any], path: str, name: str, cursor: str, kind: type[M], query: Mapping[str, Any] | None = None
) -> Stream[M]:
    """The items of a list, its pages asked for as they are reached.

    name    of the list in the answer; beside it, `next` is the cursor of the next page or null
    cursor  the query parameter that `next` is sent as
    """
    said = {"limit": bounds.PAGE_SIZE, **(query or {})}
    while True:
        answer = yield from exchange(context, get(path, said))
        for item in items_in(answer, name):
            yield Emit(validated(context, answer, item, kind))
        following = json_in(answer).get("next")
        if following is None:
            return
        if following == said.get(cursor):
            raise _unreadable(f"The page after {following} is itself.", answer)
        said[cursor] = following


def items_in(answer: Answer, name: str) -> list[Any]:
    """The list of this name in an answer. Raises `ServerFault` if there is none."""
    page = json_in(answer)
    items = page.get(name) if isinstance(page, dict) else None
    if not isinstance(items, list):
        raise _unreadable(f"The answer holds no {name}.", answer)
    return items
