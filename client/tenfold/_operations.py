"""Calling an operation of any method: the request, the wait, the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tenfold import _constants as bounds
from tenfold._effects import Part, Plan, Request
from tenfold._exchange import deadline, exchange, json_bytes, quoted, read, repeatable
from tenfold._inputs import FileInput, Upload, upload_of
from tenfold._waiting import finished
from tenfold.types import Job, Result, StoredFile

if TYPE_CHECKING:
    from tenfold._context import Context

R = TypeVar("R", bound=Result)
GuardAction = Literal["flag", "refuse"]
Files = Mapping[str, "FileInput | StoredFile | Sequence[FileInput | StoredFile] | None"]


def call(
    context: Context[Any],
    method: str,
    operation: str,
    fields: Mapping[str, Any] | None = None,
    files: Files | None = None,
    *,
    key: str | None = None,
    wait_s: float = bounds.WAIT_S,
    idempotency_key: str | None = None,
) -> Plan[Job]:
    """Run any operation of any method, and wait for its result: `job.result`, or `job.result_as(…)`.

    fields           the operation's fields that are no files; None is left out. `client.methods.get` lists them
    files            its fields that are files: paths, bytes, open files, pictures, arrays, or files the service has
    key              the secret key to use, `key_…`, for operations that use one
    wait_s           seconds to wait in all; past them `TimedOut`, and the job goes on
    idempotency_key  the same key with the same request is the same job, however often it is sent; a new one by default
    raises           the `Problem` of the request or of the job
    """
    until = deadline(context, wait_s)
    request = operation_request(
        method, operation, fields, files, key=key, wait_s=wait_s, idempotency_key=idempotency_key, context=context
    )
    job = read(context, (yield from exchange(context, request, until=until)), Job)
    if not job.is_finished:
        return (yield from finished(context, job.id, until=until))
    if problem := job.problem:
        raise problem
    return job


def submit(
    context: Context[Any],
    method: str,
    operation: str,
    fields: Mapping[str, Any] | None = None,
    files: Files | None = None,
    *,
    key: str | None = None,
    idempotency_key: str | None = None,
) -> Plan[Job]:
    """Start any operation of any method and do not wait: for trainings, or to collect the results later.

    The arguments are those of `call`. `client.jobs.wait(job.id)` waits for the result.
    """
    request = operation_request(
        method, operation, fields, files, key=key, wait_s=0, idempotency_key=idempotency_key, context=context
    )
    return read(context, (yield from exchange(context, request)), Job)


def call_for(
    context: Context[Any],
    method: str,
    operation: str,
    kind: type[R],
    fields: Mapping[str, Any],
    files: Files,
    *,
    key: str | None,
    wait_s: float,
    idempotency_key: str | None,
) -> Plan[R]:
    """`call`, with the result as an object of `kind`: what a method's typed functions return."""
    job = yield from call(
        context, method, operation, fields, files, key=key, wait_s=wait_s, idempotency_key=idempotency_key
    )
    return job.result_as(kind)


def guard_fields(guard: str | None, guard_action: GuardAction) -> dict[str, str]:
    """The fields of a guard, where one is named."""
    return {} if guard is None else {"guard": guard, "guard_action": guard_action}


def operation_request(
    method: str,
    operation: str,
    fields: Mapping[str, Any] | None,
    files: Files | None,
    *,
    key: str | None,
    wait_s: float,
    idempotency_key: str | None,
    context: Context[Any],
) -> Request:
    """The POST that starts a job: JSON if all its files are with the service already, else multipart."""
    said = {name: value for name, value in (fields or {}).items() if value is not None}
    given = {name: _sources(value) for name, value in (files or {}).items() if value is not None}
    if both := said.keys() & given.keys():
        raise ValueError(f"{sorted(both)} are given as fields and as files")
    held_s = min(max(0.0, wait_s), bounds.PREFER_WAIT_S)
    headers = {
        **repeatable(idempotency_key),
        "Accept": "application/json",
        "Prefer": f"wait={held_s:g}" if held_s else "respond-async",
    }
    parts: tuple[Part, ...] = ()
    body = None
    if any(isinstance(source, Upload) for sources in given.values() for source in _listed(sources)):
        parts = (*_text_parts(said), *_file_parts(given))
    else:
        headers["Content-Type"] = "application/json"
        body = json_bytes({**said, **given})
    return Request(
        "POST",
        f"/v1/{quoted(method)}/{quoted(operation)}",
        query={} if key is None else {"key": key},
        headers=headers,
        body=body,
        parts=parts,
        silence_s=context.options.timeout_s + held_s,
    )


def _sources(value: Any) -> Any:
    """A file, or a list of files, as uploads and references."""
    if isinstance(value, list | tuple):
        return [_sources(item) for item in value]
    return {"file": value.file} if isinstance(value, StoredFile) else upload_of(value)


def _listed(sources: Any) -> list[Any]:
    return sources if isinstance(sources, list) else [sources]


def _text_parts(fields: Mapping[str, Any]) -> list[Part]:
    """One part a field; a list of plain values repeats its part; whatever is nested is JSON."""
    parts = []
    for name, value in fields.items():
        if isinstance(value, list | tuple) and value and all(isinstance(item, str | int | float) for item in value):
            parts += [Part(name, _text(item)) for item in value]
        elif isinstance(value, str | int | float):
            parts.append(Part(name, _text(value)))
        else:
            parts.append(Part(name, json_bytes(value), "application/json"))
    return parts


def _text(value: str | float) -> bytes:
    return value.encode() if isinstance(value, str) else json_bytes(value)


def _file_parts(given: Mapping[str, Any]) -> list[Part]:
    """Files last, so that a service can refuse a field before megabytes of pictures have come."""
    return [
        Part(name, source if isinstance(source, Upload) else json_bytes(source))
        for name, sources in given.items()
        for source in _listed(sources)
    ]
