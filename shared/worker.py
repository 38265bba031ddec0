"""A service's operations as one Celery task: threads do the I/O, one device thread computes.

Celery delivers names of jobs, at least once; whether a job runs is decided by its record (`jobs.lua`). A second
delivery finds a live lease or a finished job and is acknowledged without running.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import redis
import structlog
from celery import Celery
from celery.signals import worker_ready, worker_shutting_down
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from shared import ids, metrics
from shared.brokertransport import TRANSPORT
from shared.execution import Execution
from shared.jobs import TASK, LeaseLost, WorkerJobs, prefix, queues
from shared.problems import Hung
from shared.running import RunningJob
from shared.service import Service
from shared.settings import WorkerSettings

HEARTBEAT_S = 5.0  # a third of the lease in jobs.lua
SWITCH_S = 0.0005  # torch gives up the GIL in every operator: the device thread would wait 5 ms to have it back
EXIT_HUNG = 70

log = structlog.get_logger()


def celery_app(settings: WorkerSettings) -> Celery:
    """The Celery app of one worker: JSON only, no result backend, no account of its own of what was delivered."""
    app = Celery("tenfold", broker=str(settings.broker_url), set_as_current=False)
    app.conf.update(
        broker_transport=TRANSPORT,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_disable_rate_limits=True,
        worker_send_task_events=False,
        worker_enable_remote_control=False,  # its keys would be common to all methods: who reaches one could stop all
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "ack_emulation": False,  # the records say what was delivered in vain (`reap` in jobs.lua)
            "priority_steps": [0],  # all jobs have one priority, so a queue is one list
        },
    )
    return app


class Worker:
    """A worker or trainer process: its queues, its device thread, its heartbeat."""

    def __init__(self, services: Sequence[Service], settings: WorkerSettings, *, train: bool = False) -> None:
        self.services = {service.name: service for service in services}
        self.settings = settings
        self.train = train
        self.name = f"{socket.gethostname()}-{os.getpid()}-{ids.random_id('w')[2:10]}"
        self.jobs = WorkerJobs(self._redis())
        self.execution = Execution(list(services), settings, train=train)
        self._held: dict[tuple[str, str], RunningJob] = {}
        self._lock = threading.Lock()
        self._draining = threading.Event()
        self._putting_back = threading.Event()
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._in_flight: dict[str, int] = {}
        self._paused: set[str] = set()
        self._last_job = time.monotonic()
        self._app = celery_app(settings)
        # queue: the method it belongs to
        self._queues = {
            queue: name for name in self.services for kind, queue in queues(name).items() if (kind == "train") == train
        }

        def run(task: Any, method: str, job_id: str) -> None:
            self.run_job(method, job_id, task.request.delivery_info["routing_key"])

        self._app.task(name=TASK, ignore_result=True, acks_late=True, bind=True)(run)
        self._celery: Any = None

    def _redis(self) -> redis.Redis:
        return redis.Redis.from_url(
            str(self.settings.broker_url),
            decode_responses=True,
            retry=Retry(ExponentialBackoff(cap=1.0, base=0.1), 8),
            retry_on_error=[redis.exceptions.ConnectionError, redis.exceptions.TimeoutError],
        )

    # the process

    def serve(self) -> int:
        """Work until told to end. Returns the exit status: 0 after a drain."""
        sys.setswitchinterval(SWITCH_S)
        for target in (self._beat, self._listen, self._watch):
            threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True).start()
        concurrency = 1 if self.train else sum(map(self._limit, self._queues))
        self._celery = self._app.Worker(
            pool="threads",
            concurrency=concurrency,
            queues=list(self._queues),
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            hostname=f"{'trainer' if self.train else 'worker'}@{self.name}",
            loglevel="WARNING",
            quiet=True,
        )
        worker_shutting_down.connect(self._begin_drain, weak=False)
        worker_ready.connect(self._announce, weak=False)
        log.info("worker.started", worker=self.name, threads=concurrency)
        self._celery.start()
        self._ended.set()
        self.execution.close()
        for name in self.services:
            try:
                self.jobs.leave(name, self.name)
            except RedisError:
                log.warning("worker.left_unsaid", method=name)
        log.info("worker.ended", worker=self.name)
        return int(self._celery.exitcode or 0)

    def _limit(self, queue: str) -> int:
        """Jobs of a queue in flight: one batch on the device and one being decoded."""
        operations = self.services[self._queues[queue]].operations.values()
        return 2 * max((self.execution.most_in_a_batch(op) for op in operations if op.kind == "compute"), default=1)

    # one job, in one of Celery's threads

    def run_job(self, method: str, job_id: str, queue: str) -> None:
        """Take the job if it is to run, carry it through, and write what came of it."""
        self._last_job = time.monotonic()
        self._pause_if_full(queue, 1)
        try:
            record = self.jobs.start(method, job_id, self.name)
            if record is None:
                return
            running = self.execution.running(record, self.jobs, self.name)
            with self._lock:
                self._held[method, job_id] = running
            if self._putting_back.is_set():
                running.stop("shutdown")
            try:
                self.execution.carry_out(running)
            except LeaseLost:
                log.warning("job.lease_lost", job_id=job_id, method=method, attempt=record.attempt)
            finally:
                running.close()
                with self._lock:
                    del self._held[method, job_id]
        finally:
            self._last_job = time.monotonic()
            self._pause_if_full(queue, -1)

    # a queue of which enough is in flight is left to other workers

    def _pause_if_full(self, queue: str, change: int) -> None:
        if self.train or len(self._queues) == 1:
            return  # the pool itself is the limit
        with self._lock:
            count = self._in_flight[queue] = self._in_flight.get(queue, 0) + change
            limit = self._limit(queue)
            consumer = getattr(self._celery, "consumer", None)
            if consumer is None:
                return
            if (count >= limit) == (queue in self._paused):
                return
            self._paused ^= {queue}
            consumer.call_soon(self._follow_pause, consumer, queue)

    def _follow_pause(self, consumer: Any, queue: str) -> None:
        """In Celery's loop, which runs what it is given in any order: look what holds now, not what held then."""
        with self._lock:
            is_paused = queue in self._paused
        (consumer.cancel_task_queue if is_paused else consumer.add_task_queue)(queue)

    # threads of the process

    def _announce(self, **_: Any) -> None:
        self._ready.set()
        self._renew()
        log.info("worker.ready", worker=self.name)

    def _renew(self) -> None:
        with self._lock:
            held = dict(self._held)
        for method in self.services:
            mine = [running for (name, _), running in held.items() if name == method]
            answers = self.jobs.renew(method, self.name, [one.record for one in mine])
            for running, answer in zip(mine, answers, strict=True):
                if answer != "go":
                    running.stop(answer)  # type: ignore[arg-type]
        if self.settings.heartbeat_path and self._ready.is_set():
            self.settings.heartbeat_path.touch()

    def _beat(self) -> None:
        """Renew leases, and hear what was cancelled while the subscription was down."""
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self._renew()
            except RedisError as error:
                log.warning("worker.heartbeat_failed", error=str(error))

    def _listen(self) -> None:
        """Hear cancellations as they are asked for."""
        channels = {f"{prefix(method)}cancel": method for method in self.services}
        while not self._ended.is_set():
            try:
                with self._redis().pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
                    subscription.subscribe(*channels)
                    while not self._ended.is_set():
                        if message := subscription.get_message(timeout=1.0):
                            with self._lock:
                                running = self._held.get((channels[message["channel"]], message["data"]))
                            if running is not None:
                                running.stop("cancel")
            except RedisError:
                self._ended.wait(0.5)

    def _watch(self) -> None:
        """End the process when the device thread hangs, and a trainer that nobody needs."""
        while not self._ended.wait(1.0):
            pulse = self.execution.pulse
            if pulse.busy and time.monotonic() - pulse.at > self.settings.hard_timeout_s:
                self._die_hung(pulse.step)
            with self._lock:
                idle = not self._held and time.monotonic() - self._last_job > self.settings.trainer_idle_s
            if self.train and self.settings.trainer_idle_s > 0 and idle and not self._draining.is_set():
                log.info("trainer.idle", worker=self.name)
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _die_hung(self, step: int) -> None:
        with self._lock:
            held = list(self._held.values())
        for running in held:
            if running.started_device:
                problem = Hung(f"No step for {self.settings.hard_timeout_s:g} s.", step=step)
                try:
                    self.jobs.fail(running.record, problem)
                except (LeaseLost, RedisError):
                    log.warning("job.hung_unsaid", job_id=running.id)
        log.error("worker.hung", worker=self.name)
        os._exit(EXIT_HUNG)

    def _begin_drain(self, **_: Any) -> None:
        """On SIGTERM Celery stops consuming and waits for its threads. What is not done in time is put back."""
        self._draining.set()
        timer = threading.Timer(self.settings.drain_s, self._put_back)
        timer.daemon = True
        timer.start()

    def _put_back(self) -> None:
        self._putting_back.set()
        with self._lock:
            held = list(self._held.values())
        for running in held:
            running.stop("shutdown")


def serve(services: Sequence[Service], settings: WorkerSettings, *, train: bool = False) -> int:
    """Run a worker (or trainer) of these services in this process until it is told to end."""
    if train:
        os.nice(10)
    worker = Worker(services, settings, train=train)
    with metrics.served(settings.metrics_host, settings.metrics_port, worker.execution.series.registry):
        return worker.serve()
