"""A collector for tests: takes spans as OTLP over HTTP, as a real one does, and keeps them."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

_ERROR = 2  # Status.StatusCode of OTLP


@dataclass(frozen=True)
class Seen:
    """A span as it came in. Times are nanoseconds since the epoch."""

    service: str
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    began: int
    ended: int
    failed: bool
    attributes: dict[str, Any]


class Collector:
    """Listens on a loopback port until the block ends."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._spans: list[Seen] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to send its spans here, soon."""
        url = f"http://127.0.0.1:{self._server.server_port}"
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def take(self, body: bytes) -> None:
        found = []
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _values(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                found += [_seen(service, span) for span in scope.spans]
        with self._lock:
            self.bodies.append(body)
            self._spans += found

    def trace(self, trace_id: str) -> list[Seen]:
        """Its spans so far, by their beginning."""
        with self._lock:
            return sorted((one for one in self._spans if one.trace_id == trace_id), key=lambda one: one.began)

    def until(self, trace_id: str, ready: Callable[[list[Seen]], bool], within_s: float = 30) -> list[Seen]:
        """The trace once `ready` says that it is."""
        deadline = time.monotonic() + within_s
        while not ready(spans := self.trace(trace_id)):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within_s} s: {[span.name for span in spans]}")
            time.sleep(0.02)
        return spans

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            is_right = (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
            if is_right:
                collector.take(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200 if is_right else 400)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def _seen(service: str, span: Any) -> Seen:
    return Seen(
        service,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        span.kind,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == _ERROR,
        _values(span.attributes),
    )
