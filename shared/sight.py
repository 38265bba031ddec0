"""One attempt at a job as operators see it: its spans, its seconds by stage, and the line in the log at its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Literal

import structlog

from shared import tracing
from shared.jobs import JobRecord
from shared.metrics import Stage, WorkerSeries
from shared.tracing import Span

log = structlog.get_logger()

Outcome = Literal["succeeded", "failed", "expired", "cancelled", "put_back", "parked", "lost"]
_NO_END = frozenset({"put_back", "parked", "lost"})  # the job goes on elsewhere


class JobSight:
    """Made when the attempt starts. Its stages follow each other, on whatever thread, so that one span is current."""

    def __init__(self, record: JobRecord, series: WorkerSeries, worker: str) -> None:
        fields = record.fields
        self._outcome: Outcome = "lost"  # until something was written down
        self._record = record
        self._series = series
        self._began = time.perf_counter()
        # Both times are the broker's: that this machine's clock may be another's does not matter.
        queued_at, started_at = int(fields["queued_at"]), int(fields["started_at"])
        self._queue_s = (started_at - queued_at) / 1000
        self._before_s = (started_at - int(fields["created_at"])) / 1000
        traceparent = fields.get("traceparent")
        has: dict[str, Any] = {
            "job_id": record.id,
            "method": record.method,
            "operation": record.operation,
            "attempt": record.attempt,
        }
        tracing.begin("queue", traceparent, since_s=self._queue_s, **has).end()
        self._observe("queue", self._queue_s)
        self._attempt = tracing.begin(
            f"run {record.method}/{record.operation}", traceparent, kind="consumer", worker=worker, **has
        )
        self._span = self._attempt
        series.in_hand.labels(record.method).inc()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Around all of the attempt: its logs name trace, request and job; at the end its outcome is counted."""
        record = self._record
        names = (record.method, record.operation)
        bound = structlog.contextvars.bound_contextvars(request_id=record.fields.get("request_id"), job_id=record.id)
        with bound, tracing.within(self._attempt):
            try:
                yield
            finally:
                service_s = time.perf_counter() - self._began
                self._series.in_hand.labels(record.method).dec()
                self._series.attempts.labels(*names, self._outcome).inc()
                self._series.service_seconds.labels(*names).observe(service_s)
                if self._outcome not in _NO_END:
                    self._series.total_seconds.labels(*names).observe(self._before_s + service_s)
                self._attempt.set(outcome=self._outcome)
                self._attempt.end()
                log.info(
                    "job.attempted",
                    method=record.method,
                    operation=record.operation,
                    attempt=record.attempt,
                    state=self._outcome,
                    queue_s=round(self._queue_s, 4),
                    service_s=round(service_s, 4),
                )

    def came_to(self, outcome: Outcome, code: str | None = None) -> None:
        """What was written down about the job, with the problem's code if it failed."""
        self._outcome = outcome
        if code is not None:
            self._attempt.fail(code)

    @contextlib.contextmanager
    def stage(self, name: Stage, batch: int | None = None) -> Iterator[Span]:
        """A part of the attempt, timed and recorded."""
        outer, began = self._span, time.perf_counter()
        self._span = span = outer.child(name, batch=batch)
        try:
            yield span
        except BaseException as error:
            span.fail(tracing.failure(error))
            raise
        finally:
            span.end()
            self._span = outer
            self._observe(name, time.perf_counter() - began)

    @contextlib.contextmanager
    def asking(self, what: Stage) -> Iterator[None]:
        """A call to custody, whose spans there are parts of it."""
        with self.stage(what) as span, tracing.within(span):
            yield

    def waited(self, name: Stage, seconds: float) -> None:
        """A part of the attempt that is over and that nobody could be seen working at."""
        self._span.child(name, since_s=seconds).end()
        self._observe(name, seconds)

    def _observe(self, name: Stage, seconds: float) -> None:
        self._series.stages.labels(self._record.method, name).observe(seconds)
