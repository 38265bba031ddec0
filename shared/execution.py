"""Carrying a job out: decode, wait for a batch, compute on the device thread, encode, store, finish."""

from __future__ import annotations

import gc
import importlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import structlog

from shared.batcher import Batcher, Item
from shared.device import Device, Pulse
from shared.filestores import WORKER_PATIENCE_S, open_store
from shared.guard import Guard, Parked
from shared.jobcontext import JobContext, Stopped
from shared.jobs import JobRecord, WorkerJobs
from shared.leases import LeaseClient
from shared.ledger import CountedFiles, Ledger
from shared.metrics import Stage, WorkerSeries
from shared.models import ModelStore, StoredModel
from shared.problems import InsufficientMemory, Problem, WeightsDamaged
from shared.running import RunningJob, StopReason
from shared.runtime import shipped_weights
from shared.service import Operation, Service
from shared.settings import WorkerSettings
from shared.sight import JobSight
from shared.types import Image, Request, Response, files_in, stored_json

log = structlog.get_logger()


@dataclass
class _Work:
    """What one item of a batch carries."""

    operation: Operation
    running: RunningJob
    request: Any
    model: StoredModel | None
    views: bool
    """Wanted is what a guard is shown, not the response."""


class Pipelines:
    """Loaded pipelines within a budget of memory; the one used longest ago goes first."""

    def __init__(self, services: Iterable[Service], device: Any, budget_bytes: int, series: WorkerSeries) -> None:
        self._pipelines = {service.name: service.pipeline for service in services}
        self._device = device
        self._budget = budget_bytes
        self._series = series
        self._loaded: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def holds(self, method: str, model: StoredModel | None) -> bool:
        """Whether the pipeline of this model is loaded."""
        return _key(method, model) in self._loaded

    def get(self, method: str, model: StoredModel | None) -> Any:
        """The pipeline of this model, loaded now if need be. Raises `WeightsDamaged`."""
        key = _key(method, model)
        if key in self._loaded:
            self._loaded.move_to_end(key)
            return self._loaded[key]
        began = time.perf_counter()
        cls = self.kind(method)
        try:
            pipeline = cls.load(model.folder if model else None, self._device)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            log.error("model.damaged", method=method, model=key[1], exc_info=error)
            raise WeightsDamaged(f"{method}: the weights cannot be loaded.") from error
        seconds = time.perf_counter() - began
        self._loaded[key] = pipeline
        self._count(method, 1)
        self._series.model_loads.labels(method).inc()
        self._series.model_load_seconds.labels(method).inc(seconds)
        name = f"{model.name}@{model.version}" if model else ""
        log.info("model.loaded", method=method, model=name, seconds=round(seconds, 3))
        while len(self._loaded) > 1 and sum(map(_memory, self._loaded.values())) > self._budget:
            (other, _), _ = self._loaded.popitem(last=False)
            self._count(other, -1)
        return pipeline

    def kind(self, method: str) -> Any:
        """The class of a method's pipelines."""
        module, _, name = self._pipelines[method].partition(":")
        return getattr(importlib.import_module(module), name)

    def _count(self, method: str, change: int) -> None:
        self._series.models.labels(method).inc(change)


def _key(method: str, model: StoredModel | None) -> tuple[str, str]:
    return method, model.digest if model else ""


def _memory(pipeline: Any) -> int:
    return int(getattr(pipeline, "memory_bytes", 0))


@dataclass(frozen=True)
class _Compute:
    """What a worker has once it computes."""

    torchdevice: Any
    device: Any
    on_cpu: bool
    pipelines: Pipelines
    thread: Device

    @staticmethod
    def begin(
        services: Iterable[Service],
        settings: WorkerSettings,
        source: Batcher,
        pulse: Pulse,
        series: WorkerSeries,
        *,
        train: bool,
    ) -> _Compute:
        from shared import torchdevice

        device = torchdevice.choose(settings.device)
        threads = torchdevice.set_threads(settings.torch_threads, train=train)
        pipelines = Pipelines(services, device, settings.model_memory_mib * 2**20, series)
        thread = Device(
            source,
            pulse,
            around=nullcontext if train else torchdevice.inference,
            on_turn=lambda method, seconds: series.device_seconds.labels(method).inc(seconds),
        )
        thread.start()
        series.device_bytes.set_function(lambda: torchdevice.memory_bytes(device))
        gc.freeze()  # torch's half a million objects stay: a collection need not look at them again and again
        log.info("device.ready", device=str(device), threads=threads)
        return _Compute(torchdevice, device, device.type == "cpu", pipelines, thread)


class Execution:
    """The device thread and everything a job passes on its way there and back."""

    def __init__(self, services: Sequence[Service], settings: WorkerSettings, *, train: bool) -> None:
        self._settings = settings
        self._train = train
        self._services = {service.name: service for service in services}
        self._files = CountedFiles(open_store(settings, WORKER_PATIENCE_S), Ledger(str(settings.broker_url)))
        self._models = ModelStore(shipped_weights(self._services), settings.models_path)
        self._leases = LeaseClient(settings.door_url, settings.internal_secret.get_secret_value())
        self._batcher = Batcher(self._run_batch)
        self.series = WorkerSeries()
        self.pulse = Pulse()
        self._lock = threading.Lock()
        self._began: _Compute | None = None
        if settings.device != "auto":
            self._compute()  # a device that is not there is told at start

    def _compute(self) -> _Compute:
        """The device and its thread: torch is imported for the first job, so that an idle worker stays small."""
        with self._lock:
            if self._began is None:
                self._began = _Compute.begin(
                    self._services.values(),
                    self._settings,
                    self._batcher,
                    self.pulse,
                    self.series,
                    train=self._train,
                )
            return self._began

    def close(self) -> None:
        if self._began is not None:
            self._began.thread.close()
        self._leases.close()
        self._files.close()

    @staticmethod
    def most_in_a_batch(operation: Operation) -> int:
        """Requests in one call, on whatever device."""
        return max(operation.batch, operation.batch_on_cpu)

    def running(self, record: JobRecord, jobs: WorkerJobs, worker: str) -> RunningJob:
        """A hold on a job that was just started."""
        sight = JobSight(record, self.series, worker)
        folder = self._settings.files_path  # a container's /tmp is memory
        scratch = folder if folder.is_dir() else None
        return RunningJob(record, jobs, self._files, self._models, self._leases, self.pulse, sight, scratch)

    # in one of the worker's threads

    def carry_out(self, running: RunningJob) -> None:
        """Bring a started job to an end and write it down. Raises `LeaseLost` when its record is another's by now."""
        with running.sight.working():
            try:
                result = self._result(running)
            except Stopped:
                self._finish(running, running.stop_reason())
            except Parked:
                running.sight.came_to("parked")
            except Problem as problem:
                self._finish(running, problem)
            except Exception as error:
                log.error("job.failed", job_id=running.id, method=running.record.method, exc_info=error)
                self._finish(running, Problem())
            else:
                self._finish(running, result)

    @staticmethod
    def _finish(running: RunningJob, came: dict[str, Any] | Problem | StopReason | None) -> None:
        """Write down what came of the job: its result, why it failed, or what it was stopped for."""
        record, jobs, sight = running.record, running._jobs, running.sight
        own_files = json.loads(record.fields["own_files"])
        with sight.stage("finish"):
            match came:
                case dict():
                    jobs.succeed(record, came)
                    sight.came_to("succeeded")
                case Problem():
                    jobs.fail(record, came)
                    sight.came_to("failed", came.code)
                case "deadline":
                    jobs.end(record, "expired")
                    sight.came_to("expired")
                case "cancel":
                    jobs.end(record, "cancelled")
                    sight.came_to("cancelled")
                case "shutdown":
                    jobs.put_back(record)
                    sight.came_to("put_back")
                    return
                case _:
                    return  # lost: another attempt owns the record and the inputs
            running.drop_inputs(own_files)
            running.drop_units(came if isinstance(came, dict) else None)

    def _result(self, running: RunningJob) -> dict[str, Any]:
        record = running.record
        operation = self._services[record.method].get(record.operation)
        request = operation.request.model_validate(record.request)
        if (guard := Guard.of(record)) is not None:
            if guard.is_open:
                guard = self._ask_guard(running, operation, request, guard)
            guard.check()
        response: Response = self._computed(running, operation, request)
        with running.sight.stage("encode"):
            result: dict[str, Any] = stored_json(response, running.store)
        return result

    def _ask_guard(self, running: RunningJob, operation: Operation, request: Request, guard: Guard) -> Guard:
        """Raises `Parked`, unless the guard cannot be asked: then that is its answer."""
        if operation.views is None:
            shown = [file for file in files_in(request) if isinstance(file, Image)]
        else:
            shown = [Image.of(view) for view in self._computed(running, operation, request, views=True)]
        try:
            running.ask_guard(shown)
        except Problem as problem:
            guard = guard.failed(problem)
            running.keep_guard(guard)
        return guard

    def _computed(self, running: RunningJob, operation: Operation, request: Request, *, views: bool = False) -> Any:
        """What the device thread makes of a request: its response, or the views that its guard is shown."""
        record = running.record
        with nullcontext() if self._began else running.sight.stage("start"):
            compute = self._compute()
        self._batcher.announce(record.method)
        try:
            running.load(request)
            model = self._models.resolve(record.fields["model"], record.tenant) if record.fields["model"] else None
            if running.stop_reason():
                raise Stopped
        except BaseException:
            self._batcher.withdraw(record.method)
            compute.thread.wake()
            raise
        item = Item(
            method=record.method,
            group=(operation.name, views, running.record.fields["model"], *operation.group_of(request)),
            payload=_Work(operation, running, request, model, views),
            limit=operation.batch_on_cpu if compute.on_cpu else operation.batch,
            wait_s=operation.batch_wait_s,
        )
        self._batcher.put(item)
        compute.thread.wake()
        response: Any = item.done.result()
        if isinstance(response, Problem):
            raise response
        return response

    # on the device thread

    def _run_batch(self, items: list[Item]) -> None:
        """Run one call of an operation for several jobs; never raises. A batch that fails is run again one by one."""
        items = [item for item in items if not self._is_stopped(item)]
        if not items:
            return
        now = time.monotonic()
        for item in items:
            running = item.payload.running
            if not running.started_device:
                running.started_device = True
                running.sight.waited("batch", now - item.since)
        try:
            responses = self._call(items)
            for item, response in zip(items, responses, strict=True):
                item.done.set_result(response)
        except Stopped as stopped:
            for item in items:
                item.done.set_exception(stopped)
        except Exception as error:  # noqa: BLE001 - whatever a method raises is that job's failure, not the thread's
            self._recover(items, error)

    @staticmethod
    def _is_stopped(item: Item) -> bool:
        if item.payload.running.stop_reason() is None:
            return False
        item.done.set_exception(Stopped())
        return True

    def _recover(self, items: list[Item], error: Exception) -> None:
        """Halve a batch that ran out of memory; run any other failed batch one by one; fail what fails alone."""
        torchdevice = self._compute().torchdevice
        no_memory = torchdevice.is_out_of_memory(error)
        if no_memory:
            torchdevice.release_cache()
        open_items = [item for item in items if not item.done.done()]
        if len(open_items) > 1:
            size = (len(open_items) + 1) // 2 if no_memory else 1
            for start in range(0, len(open_items), size):
                self._run_batch(open_items[start : start + size])
        else:
            for item in open_items:
                item.done.set_exception(InsufficientMemory() if no_memory else error)

    def _call(self, items: list[Item]) -> Sequence[Any]:
        first: _Work = items[0].payload
        operation, model = first.operation, first.model
        job = JobContext(
            [item.payload.running for item in items],
            self._compute().thread,
            device=self._compute().device,
            model=first.running.record.fields["model"],
            model_digest=model.digest if model else "",
            model_folder=model.folder if model else None,
        )
        requests = [item.payload.request for item in items]
        self.series.batches.labels(operation.method).observe(len(items))
        pipelines = self._compute().pipelines
        if operation.kind == "train":
            with _staged(items, "compute"):
                return [operation.function(pipelines.kind(operation.method), requests[0], job)]
        with nullcontext() if pipelines.holds(operation.method, model) else _staged(items, "load"):
            pipeline = pipelines.get(operation.method, model)
        with _staged(items, "compute"):
            if first.views and operation.views is not None:
                return [operation.views(pipeline, request) for request in requests]
            responses: Sequence[Any] = operation.function(pipeline, requests, job)
        if len(responses) != len(requests):
            raise RuntimeError(f"{operation.name} gave {len(responses)} responses to {len(requests)} requests")
        return responses


@contextmanager
def _staged(items: Sequence[Item], name: Stage) -> Iterator[None]:
    """What is done for a whole batch is a stage of each of its jobs."""
    with ExitStack() as stages:
        for item in items:
            stages.enter_context(item.payload.running.sight.stage(name, batch=len(items)))
        yield
