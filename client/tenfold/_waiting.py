"""Following a job to its end: by its events, or by looking at its record where the events do not come through."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tenfold import _constants as bounds
from tenfold._effects import Close, Emit, Open, Pause, Plan, Read, Request, Stream, drained
from tenfold._events import EventParser, ServerEvent
from tenfold._exchange import exchange, get, quoted, read, read_problem
from tenfold._retries import backoff
from tenfold.problems import Problem, ServerFault, TimedOut
from tenfold.types import Job, JobEvent

if TYPE_CHECKING:
    from tenfold._context import Context


def read_job(context: Context[Any], job_id: str, *, until: float = float("inf")) -> Plan[Job]:
    """The record as it is now."""
    answer = yield from exchange(context, get(f"/v1/jobs/{quoted(job_id)}"), until=until)
    return read(context, answer, Job)


def finished(context: Context[Any], job_id: str, *, until: float) -> Plan[Job]:
    """The record once the job has succeeded.

    until   on the context's clock: past it `TimedOut`, which names the job. It is looked at whenever something arrives
            or the line is silent, so that the exception may come one sign of life (15 s) later
    raises  the job's own `Problem` if it did not succeed
    """
    yield from drained(events(context, job_id, until=until))
    job = yield from read_job(context, job_id)
    if problem := job.problem:
        raise problem
    return job


def events(context: Context[Any], job_id: str, *, until: float, after: str = "") -> Stream[JobEvent]:
    """Everything that happens to a job, up to its last event.

    A stream that is cut goes on where it broke off. After a few in a row that brought nothing (a proxy that buffers,
    say) the record is polled, which gives the states and the latest progress. Raises `TimedOut` past `until`.
    """
    failures = 0
    last_id = after
    while failures < bounds.EVENTS_FAILURES:
        parser = EventParser(last_id)
        is_asked_to_return = False
        try:
            head = yield Open(_events_request(context, job_id, last_id, until))
            if head.status != 200 or not head.headers.get("content-type", "").startswith("text/event-stream"):
                yield from read_problem(head)  # only to free the line
                break
            while not is_asked_to_return and (chunk := (yield Read())) is not None:
                for said in parser.feed(chunk):
                    if said.kind == "reconnect":
                        is_asked_to_return = True
                        continue
                    event = _event(said)
                    failures, last_id = 0, said.id
                    yield Emit(event)
                    if event.is_last:
                        yield Close()
                        return
                _check(context, job_id, until)
        except Problem:  # silent, cut, or not to be read: what is wrong for good, the record's own answer will say
            _check(context, job_id, until)
        failures += 1
        yield Close()
        yield from _pause(context, job_id, until, backoff(failures - 1, context.draw()))
    yield from _polled(context, job_id, until)


def _polled(context: Context[Any], job_id: str, until: float) -> Stream[JobEvent]:
    """What the record shows, whenever it changes."""
    pause_s = bounds.POLL_FIRST_S
    shown: dict[str, Any] = {}
    while True:
        try:
            job = yield from read_job(context, job_id, until=until)
        except TimedOut:
            _check(context, job_id, until)
        else:
            for event in _events_of(job):
                if shown.get(event.kind) != event.data:
                    shown[event.kind] = event.data
                    yield Emit(event)
            if job.is_finished:
                return
        yield from _pause(context, job_id, until, pause_s)
        pause_s = min(bounds.POLL_CAP_S, pause_s * bounds.POLL_GROWTH)


def _events_of(job: Job) -> list[JobEvent]:
    """A record as the events that would have led to it, its state last."""
    said = {"unit": job.units, "progress": job.progress, "state": {"state": job.state, "stage": job.stage}}
    return [JobEvent(id="", kind=kind, data=data) for kind, data in said.items() if data]


def _events_request(context: Context[Any], job_id: str, last_id: str, until: float) -> Request:
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if last_id:
        headers["Last-Event-ID"] = last_id
    silence_s = max(0.1, min(bounds.EVENTS_SILENCE_S, until - context.now()))
    return Request("GET", f"/v1/jobs/{quoted(job_id)}/events", headers=headers, silence_s=silence_s)


def _event(said: ServerEvent) -> JobEvent:
    try:
        return JobEvent(id=said.id, kind=said.kind, data=json.loads(said.data))
    except (ValueError, RecursionError, ValidationError) as error:
        raise ServerFault(f"The event {said.id!r} cannot be read.") from error


def _check(context: Context[Any], job_id: str, until: float) -> None:
    if context.now() >= until:
        raise TimedOut(
            f"{job_id} has not finished in the time allowed. It goes on: wait for it again, or cancel it.",
            extras={"job_id": job_id},
        )


def _pause(context: Context[Any], job_id: str, until: float, seconds: float) -> Plan[None]:
    """Let time pass, but not beyond `until`, and stop there."""
    _check(context, job_id, until)
    yield Pause(min(seconds, until - context.now()))
    _check(context, job_id, until)
