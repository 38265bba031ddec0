"""The half of `shared.tracing` that is imported only where a collector is named: OpenTelemetry's SDK."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span as Recorded
from opentelemetry.trace import SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.tracing import ATTRIBUTES, HEADER, Kind, Value

_KINDS = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
CLOSE_WITHIN_S = 3.0  # the exporter itself would try again for ten seconds, and supervisors kill what takes longer
_W3C = TraceContextTextMapPropagator()


class Exporter:
    """Spans of this process, sent in batches by a thread of its own; a collector that does not answer stops nothing.

    The provider is ours alone. A global one would switch on the tracing that web frameworks and clients bring along,
    whose spans hold query strings.
    """

    def __init__(self, service: str) -> None:
        # Every try that fails is a warning; what is given up is an error, and enough.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
        ours = Resource.create(
            {"service.name": service, "service.namespace": "tenfold"}
            | {"service.instance.id": f"{socket.gethostname()}-{os.getpid()}"}
        )
        resource = ours.merge(OTELResourceDetector().detect())  # what the operator says wins
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("tenfold")

    def begin(self, name: str, traceparent: str | None, *, kind: Kind, since_s: float, **has: Value) -> OtelSpan:
        parent = _W3C.extract({HEADER: traceparent}, Context()) if traceparent else Context()
        return OtelSpan(self._tracer, name, parent, kind, since_s, has)

    def close(self) -> None:
        """Send what is left, if that can be done soon: a collector that hangs delays no process's end."""
        closing = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(CLOSE_WITHIN_S)


class OtelSpan:
    """`shared.tracing.Span`, recorded."""

    def __init__(
        self, tracer: Tracer, name: str, parent: Context, kind: Kind, since_s: float, has: dict[str, Value]
    ) -> None:
        self._tracer = tracer
        self._span: Recorded = tracer.start_span(
            name, parent, _KINDS[kind], _named(has), start_time=time.time_ns() - round(since_s * 1e9)
        )
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, set_span_in_context(self._span, Context()))
        self.traceparent: str | None = carrier[HEADER]

    def child(self, name: str, *, kind: Kind = "internal", since_s: float = 0.0, **attributes: Value) -> OtelSpan:
        parent = set_span_in_context(self._span, Context())
        return OtelSpan(self._tracer, name, parent, kind, since_s, attributes)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, **attributes: Value) -> None:
        self._span.set_attributes(_named(attributes))

    def fail(self, code: str) -> None:
        self._span.set_status(StatusCode.ERROR, code)
        self.set(code=code)

    def end(self) -> None:
        self._span.end()


def _named(attributes: dict[str, Value]) -> dict[str, str | int | float | bool]:
    """By their full names. Raises `KeyError` for one that nobody allowed."""
    return {ATTRIBUTES[name]: value for name, value in attributes.items() if value is not None}
