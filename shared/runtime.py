"""What an API process holds for its whole life: stores, job records, the subscription that wakes waiting calls."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import anyio.to_thread
import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from shared import guard
from shared.filestores import API_PATIENCE_S, open_store
from shared.jobs import GUARDING, JobRecord, Jobs, prefix, told
from shared.leases import LeaseClient
from shared.ledger import CountedFiles, Ledger
from shared.metrics import ServiceSeries
from shared.models import ModelStore
from shared.problems import Problem
from shared.settings import ServiceSettings

REAP_EVERY_S = 5.0
SWEEP_EVERY_S = 60.0
JANITOR_LOCK_S = 15  # a janitor that died is replaced after this long

log = structlog.get_logger()


def shipped_weights(methods: Iterable[str]) -> dict[str, Path]:
    """Where the repository keeps each method's weights. Looks at the tree; imports no service."""
    spec = importlib.util.find_spec("services")
    roots = [Path(place) for place in (spec.submodule_search_locations if spec else None) or ()]
    folders = {method: root / method.replace("-", "_") / "weights" for method in methods for root in roots}
    return {method: folder for method, folder in folders.items() if folder.is_dir()}


class News:
    """What somebody who waits for a job hears of it."""

    def __init__(self) -> None:
        self.has_come = asyncio.Event()
        """Finished, or to be looked up: the subscription was made anew."""
        self.record: JobRecord | None = None
        """The finished record, where it was sent along."""


class Runtime:
    """Shared by all service apps of a process. Use it as an async context manager around serving."""

    def __init__(self, settings: ServiceSettings, methods: Sequence[str]) -> None:
        self.settings = settings
        self.methods = list(methods)
        self.redis = redis.asyncio.Redis(
            connection_pool=redis.asyncio.BlockingConnectionPool.from_url(
                str(settings.broker_url),
                decode_responses=True,
                max_connections=64,
                timeout=5,
                socket_connect_timeout=2,
                retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 5),
                retry_on_error=[redis.exceptions.ConnectionError],
            )
        )
        self.files = CountedFiles(open_store(settings, API_PATIENCE_S), Ledger(str(settings.broker_url)))
        self.models = ModelStore(shipped_weights(self.methods), settings.models_path)
        self.guards = ModelStore(shipped_weights([GUARDING]), settings.models_path)
        """Detectors, whether or not their method is one of these."""
        self.jobs = Jobs(self.redis)
        self.series = ServiceSeries()
        self.leases = LeaseClient(settings.door_url, settings.internal_secret.get_secret_value())
        self._waiting: dict[str, set[News]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks.append(asyncio.create_task(self._listen()))
        return self

    async def __aexit__(self, *_: object) -> None:
        while running := [task for task in self._tasks if not task.done()]:
            for task in running:
                task.cancel()  # again and again: redis-py swallows one that arrives while it connects
            await asyncio.wait(running, timeout=0.1)
        self._tasks.clear()
        self.leases.close()
        self.files.close()
        await self.redis.aclose()
        await self.redis.connection_pool.disconnect()

    def start_janitor(self) -> None:
        """Mend queues and sweep files from now on; of several processes that offer it, one does it."""
        self._tasks.append(asyncio.create_task(self._mend()))

    async def ping(self) -> None:
        """Raise a redis error unless the broker answers."""
        await self.redis.ping()

    async def check_files(self) -> None:
        """Raise `ServiceUnavailable` unless the file store answers. May be cancelled at any time."""
        await anyio.to_thread.run_sync(self.files.check, abandon_on_cancel=True)

    @contextlib.contextmanager
    def expected(self, job_id: str) -> Iterator[News]:
        """News of a job from here on. Expect a job, then make it."""
        news = News()
        self._waiting.setdefault(job_id, set()).add(news)
        try:
            yield news
        finally:
            self._waiting[job_id].discard(news)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def wait(self, method: str, job_id: str, seconds: float, news: News | None = None) -> JobRecord:
        """The job's record once it is finished, or as it stands after `seconds`.

        news  of a job that this process made while it expected it: then nothing can have been missed so far
        """
        with contextlib.ExitStack() as stack:
            if news is None:
                news = stack.enter_context(self.expected(job_id))
                news.has_come.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while seconds > 0:
                        await news.has_come.wait()
                        news.has_come.clear()
                        if (record := news.record or await self.jobs.get(method, job_id)).is_finished:
                            return record
        return await self.jobs.get(method, job_id)

    async def _listen(self) -> None:
        """Wake the calls that wait for a job. What was missed while the connection was down is looked up after it."""
        methods = {f"{prefix(method)}done": method for method in self.methods}
        while methods:
            try:
                async with self.redis.pubsub() as subscription:
                    await subscription.subscribe(*methods)
                    while True:
                        message = await subscription.get_message(timeout=2.0)
                        if message is not None:
                            self._hear(message, methods)
            except RedisError as error:
                log.warning("jobs.subscription_lost", error=str(error))
                await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - spreads reconnects

    def _hear(self, message: Mapping[str, Any], methods: Mapping[str, str]) -> None:
        """Wake who waits for a finished job, and on (re)connecting all who wait."""
        if message["type"] == "subscribe":
            for waiting in self._waiting.values():
                for news in waiting:
                    news.has_come.set()
        elif message["type"] == "message":
            text = message["data"]
            for news in self._waiting.get(text.partition(" ")[0], ()):
                news.record = told(methods[message["channel"]], text)
                news.has_come.set()

    async def _mend(self) -> None:
        me, swept = f"{random.getrandbits(64):016x}", 0.0
        loop = asyncio.get_running_loop()
        while True:
            try:
                mine = await self.redis.set("tf:janitor", me, nx=True, ex=JANITOR_LOCK_S)
                if mine or await self.redis.get("tf:janitor") == me:
                    await self.redis.expire("tf:janitor", JANITOR_LOCK_S)
                    for method in self.methods:
                        await self._reap(method)
                        await guard.wake_answered(self.jobs, method)
                    if loop.time() - swept > SWEEP_EVERY_S:
                        swept = loop.time()
                        await run_in_threadpool(self._sweep)
                else:
                    self.series.files.clear()  # somebody else knows by now
                    self.series.file_bytes.clear()
                    swept = 0.0
            except (RedisError, Problem) as error:
                self.series.janitor_failures.inc()
                log.warning("janitor.failed", error=str(error))
            await asyncio.sleep(REAP_EVERY_S)

    async def _reap(self, method: str) -> None:
        lost, stray, late = await self.jobs.reap(method)
        for action, count in (("lost", lost), ("stray", stray), ("late", late)):
            self.series.mended.labels(method, action).inc(count)
        if lost or stray or late:
            log.warning("jobs.mended", method=method, lost=lost, stray=stray, late=late)

    def _sweep(self) -> None:
        removed = self.files.sweep()
        log.debug("files.swept", removed=removed)
        self.series.swept.inc(removed)
        if (held := self.files.census()) is not None:
            self.series.files.labels("local").set(held.count)
            self.series.file_bytes.labels("local").set(held.bytes)
