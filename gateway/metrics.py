"""What the gateway counts. One registry an application, so that two in one process do not mix."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.metrics import SECONDS

_HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """Counters of requests at the public and the internal door, and of calls to the methods.

    Labels never name a tenant, a principal or a job; `route` is a template, or "unknown".
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tenfold_gateway_requests",
            "Answered requests.",
            ["route", "http_method", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "tenfold_gateway_request_seconds",
            "From the first line of a request to the last byte of its answer.",
            ["route"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.in_flight = Gauge(
            "tenfold_gateway_requests_in_flight", "Requests that are being answered.", registry=self.registry
        )
        self.received = Counter("tenfold_gateway_received_bytes", "Bytes of request bodies.", registry=self.registry)
        self.sent = Counter("tenfold_gateway_sent_bytes", "Bytes of answers.", registry=self.registry)
        self.refused = Counter(
            "tenfold_gateway_refused",
            "Requests that a limit or a long queue refused before their body was read.",
            ["policy"],
            registry=self.registry,
        )
        self.upstream_failures = Counter(
            "tenfold_gateway_upstream_failures",
            "Calls to a method that got no answer.",
            ["upstream", "kind"],
            registry=self.registry,
        )


def http_method(given: str) -> str:
    """The verb as a label: a caller may send any word as one."""
    return given if given in _HTTP_METHODS else "other"
