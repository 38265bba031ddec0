"""Spans: what a request waits for on its way through gateway, service, queue, worker and custody, as one trace.

Where no collector is named (`OTEL_EXPORTER_OTLP_ENDPOINT`), nothing is made and nothing of OpenTelemetry's SDK is
imported: then a span only carries the caller's `traceparent` on (W3C Trace Context), so that the trace id is in our
logs and in whatever comes behind us. `shared.otel` is the other half.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal, Protocol

import structlog

from shared.settings import TracingSettings

if TYPE_CHECKING:
    from shared.otel import Exporter

HEADER = "traceparent"
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | int | float | bool | None

# A value that is not here never reaches a collector: secrets, query strings, bodies and names that a tenant chose have
# no place in this list.
ATTRIBUTES: Mapping[str, str] = {
    "http_method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "code": "error.type",
    "request_id": "tenfold.request_id",
    "job_id": "tenfold.job_id",
    "method": "tenfold.method",
    "operation": "tenfold.operation",
    "attempt": "tenfold.attempt",
    "outcome": "tenfold.outcome",
    "worker": "tenfold.worker",
    "batch": "tenfold.batch_size",
}


class Span(Protocol):
    """One piece of work. Whoever begins it ends it: `entered` does. Attributes go by the names in `ATTRIBUTES`."""

    @property
    def traceparent(self) -> str | None:
        """What names this span to others, or None: there is no trace."""
        ...

    def child(self, name: str, *, kind: Kind = "internal", since_s: float = 0.0, **attributes: Value) -> Span:
        """A part of this work that began `since_s` ago."""
        ...

    def rename(self, name: str) -> None: ...
    def set(self, **attributes: Value) -> None: ...

    def fail(self, code: str) -> None:
        """Say that the work came to nothing, and why: a problem's code or an exception's class, never its text."""
        ...

    def end(self) -> None: ...


class Passing:
    """A span where nothing is recorded."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def child(self, name: str, *, kind: Kind = "internal", since_s: float = 0.0, **attributes: Value) -> Span:
        return self

    def rename(self, name: str) -> None: ...
    def set(self, **attributes: Value) -> None: ...
    def fail(self, code: str) -> None: ...
    def end(self) -> None: ...


NO_TRACE = Passing(None)
_current: ContextVar[Span] = ContextVar("tenfold_span", default=NO_TRACE)
_exporter: Exporter | None = None


@contextlib.contextmanager
def exported(service: str) -> Iterator[None]:
    """Send the spans of this process to the collector that the environment names, if it names one.

    Use it once, around everything that a process does. Raises `ValueError` for a collector that cannot be served.
    """
    global _exporter
    settings = TracingSettings()
    if not settings.is_on:
        yield
        return
    try:
        from shared.otel import Exporter
    except ImportError as error:
        raise ValueError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and OpenTelemetry is not installed: pip install 'tenfold-server[otel]'"
        ) from error
    _exporter = Exporter(service)
    try:
        yield
    finally:
        exporter, _exporter = _exporter, None
        exporter.close()


def begin(name: str, traceparent: str | None, *, kind: Kind = "internal", since_s: float = 0.0, **has: Value) -> Span:
    """Work that somebody else asked for, who said `traceparent`; without one, or with a bad one, a trace begins."""
    if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
        traceparent = None
    if _exporter is not None:
        return _exporter.begin(name, traceparent, kind=kind, since_s=since_s, **has)
    return Passing(traceparent) if traceparent else NO_TRACE


def current() -> Span:
    """The span of this thread or task. Where there is none, its children are recorded nowhere."""
    return _current.get()


@contextlib.contextmanager
def entered(span: Span) -> Iterator[Span]:
    """Do the work of `span` inside the block: it is the current one, fails with what is raised, and ends."""
    try:
        with within(span):
            yield span
    except BaseException as error:
        span.fail(failure(error))
        raise
    finally:
        span.end()


@contextlib.contextmanager
def within(span: Span) -> Iterator[None]:
    """Make `span` the current one, and put its trace into the logs of the block."""
    if span.traceparent is None:
        yield
        return
    token = _current.set(span)
    try:
        with structlog.contextvars.bound_contextvars(trace_id=trace_id(span.traceparent)):
            yield
    finally:
        _current.reset(token)


def trace_id(traceparent: str) -> str:
    """The 32 hexadecimal digits that all spans of a trace share."""
    return traceparent.split("-")[1]


def failure(error: BaseException) -> str:
    """What `Span.fail` takes of an exception: the problem's code, else the class. Texts may hold what is secret."""
    code = getattr(error, "code", None)
    return code if isinstance(code, str) else type(error).__name__
