"""What processes count, and how it is shown at `/metrics` (docs/decisions/0007).

Labels are names of our own: methods, operations, stages, states, codes. None names a tenant, a principal, a job, a
file, a key or a model, and none is a word of the caller's, so that the number of series is known beforehand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client import start_http_server as _start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.census import Census

# From a no-op through the whole stack (some milliseconds) to an archive.
SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_BATCHES = (1, 2, 4, 8, 16, 32)

Stage = Literal[
    "queue",
    "start",
    "fetch",
    "decode",
    "batch",
    "load",
    "compute",
    "encode",
    "finish",
    "file_key",
    "redeem",
    "seal",
    "check_record",
    "guard",
]


class ProcessSeries:
    """Memory, CPU and file descriptors of this process, and a registry for more. One for each process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)


class ServiceSeries(ProcessSeries):
    """Of a process that serves methods' APIs, or stands before them: their calls, the janitor, the file store."""

    def __init__(self) -> None:
        super().__init__()
        call = ["method", "operation"]
        self.requests = Counter(
            "tenfold_service_requests", "Calls of operations, answered.", [*call, "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "tenfold_service_request_seconds",
            "From the headers of a call to its answer, waiting for the job included.",
            call,
            registry=self.registry,
            buckets=SECONDS,
        )
        self.in_flight = Gauge(
            "tenfold_service_requests_in_flight", "Calls that are being answered.", ["method"], registry=self.registry
        )
        self.refused = Counter(
            "tenfold_service_refusals", "Calls that became no job.", ["method", "code"], registry=self.registry
        )
        self.mended = Counter(
            "tenfold_janitor_jobs",
            "Jobs the janitor put right: lost with their worker, stray without a message, late beyond their deadline.",
            ["method", "action"],
            registry=self.registry,
        )
        self.janitor_failures = Counter(
            "tenfold_janitor_failures", "Rounds of the janitor that failed.", registry=self.registry
        )
        self.swept = Counter("tenfold_janitor_files", "Files removed at the end of their time.", registry=self.registry)
        self.files = Gauge(
            "tenfold_files", "Files in the store, as the janitor last saw.", ["store"], registry=self.registry
        )
        self.file_bytes = Gauge(
            "tenfold_file_bytes", "Bytes in the file store, as the janitor last saw.", ["store"], registry=self.registry
        )


class WorkerSeries(ProcessSeries):
    """Of a worker or trainer: what its jobs' time went into, its batches, its device, its models."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = Histogram(
            "tenfold_job_stage_seconds",
            "Seconds of a job in one stage of its way.",
            ["method", "stage"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.service_seconds = Histogram(
            "tenfold_job_service_seconds",
            "Seconds of an attempt, from its start in a worker to its end.",
            ["method", "operation"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.total_seconds = Histogram(
            "tenfold_job_total_seconds",
            "Seconds from a job's acceptance to its end, earlier attempts included.",
            ["method", "operation"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.attempts = Counter(
            "tenfold_job_attempts",
            "Attempts at jobs by what came of them; put_back and lost ones are no end of the job.",
            ["method", "operation", "outcome"],
            registry=self.registry,
        )
        self.in_hand = Gauge("tenfold_worker_jobs", "Jobs that this worker holds.", ["method"], registry=self.registry)
        self.batches = Histogram(
            "tenfold_batch_size", "Requests in one call.", ["method"], registry=self.registry, buckets=_BATCHES
        )
        self.device_seconds = Counter(
            "tenfold_device_seconds", "Seconds of the device thread.", ["method"], registry=self.registry
        )
        self.device_bytes = Gauge(
            "tenfold_device_memory_bytes", "Memory of an accelerator that tensors take.", registry=self.registry
        )
        self.model_loads = Counter("tenfold_model_loads", "Models loaded.", ["method"], registry=self.registry)
        self.model_load_seconds = Counter(
            "tenfold_model_load_seconds", "Seconds spent loading models.", ["method"], registry=self.registry
        )
        self.models = Gauge("tenfold_models", "Models in memory.", ["method"], registry=self.registry)


class JobSeries(Collector):
    """The job store at one moment. It is the same seen from every gateway: `max by (…)`, not `sum`."""

    def __init__(self, census: Sequence[Census]) -> None:
        self._census = census

    def collect(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily("tenfold_jobs", "Waiting and running jobs.", labels=["method", "state"])
        workers = GaugeMetricFamily("tenfold_workers", "Live workers and trainers.", labels=["method"])
        depth = GaugeMetricFamily("tenfold_queue_messages", "Messages in a queue.", labels=["method", "queue"])
        oldest = GaugeMetricFamily(
            "tenfold_queue_oldest_seconds", "How long the oldest job of a queue waits.", labels=["method", "queue"]
        )
        ended = CounterMetricFamily(
            "tenfold_jobs_ended", "Jobs by their end, each counted once.", labels=["method", "operation", "state"]
        )
        service = CounterMetricFamily(
            "tenfold_jobs_service_seconds", "Seconds of the last attempts of jobs that succeeded.", labels=["method"]
        )
        succeeded = CounterMetricFamily("tenfold_jobs_succeeded", "Jobs that succeeded.", labels=["method"])
        for one in self._census:
            jobs.add_metric([one.method, "queued"], one.queued)
            jobs.add_metric([one.method, "running"], one.running)
            workers.add_metric([one.method], one.workers)
            service.add_metric([one.method], one.service_s)
            succeeded.add_metric([one.method], one.succeeded)
            for queue in one.queues:
                depth.add_metric([one.method, queue.kind], queue.messages)
                oldest.add_metric([one.method, queue.kind], queue.oldest_s)
            for (operation, state), count in one.ended.items():
                ended.add_metric([one.method, operation, state], count)
        return [jobs, workers, depth, oldest, ended, service, succeeded]


def page(*sources: CollectorRegistry | JobSeries) -> bytes:
    """Prometheus' text format of all sources. No two of them may have a series of the same name."""
    registries = []
    for source in sources:
        if isinstance(source, JobSeries):
            registry = CollectorRegistry(auto_describe=False)
            registry.register(source)
            source = registry
        registries.append(source)
    return b"".join(generate_latest(registry) for registry in registries)


@contextlib.contextmanager
def served(host: str, port: int | None, registry: CollectorRegistry) -> Iterator[None]:
    """Serve `/metrics` from a thread of its own until the block ends; without a port, do not.

    Raises `ValueError` if the address cannot be had.
    """
    if port is None:
        yield
        return
    try:
        server, thread = _start_http_server(port, host, registry)
    except OSError as error:
        raise ValueError(f"{host}:{port} cannot be served (TENFOLD_METRICS_PORT): {error.strerror}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
