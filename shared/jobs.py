"""The record of a job: its states, the lease of the worker that runs it, its events.

All changes are one Lua script (`jobs.lua`). `Jobs` is what API processes and the gateway use, asyncio; `WorkerJobs` is
what worker threads use. Neither needs Celery: the script itself puts the message into the queue's list, in the same
step that makes the record, so that no job is accepted and then not queued.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Literal

import redis.asyncio
from redis.exceptions import RedisError

from shared.limits import LUA, NO_LIMITS, Limits
from shared.problems import DeadlineExceeded, JobCancelled, JobNotFound, Problem, ServiceUnavailable, WorkerLost

TASK = "tenfold.run"
STRAY_S = 60.0  # a job that waits longer, and longer than the next message in line, has lost its own
TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})

GUARDING = "dlsr"
"""The method whose detectors guard the operations of all (`shared.guard`)."""

QueueKind = Literal["compute", "train", "guard"]
State = Literal["queued", "running", "succeeded", "failed", "cancelling", "cancelled", "expired"]


def prefix(method: str) -> str:
    """What every key of a method's job records begins with: the pattern of its broker user."""
    return f"tf:{method}:"


def queues(method: str) -> dict[QueueKind, str]:
    """The names of a method's queues. That of the guards' jobs is apart, so that none of them waits for an archive."""
    names: dict[QueueKind, str] = {"compute": method, "train": f"{method}.train"}
    return names | ({"guard": f"{method}.guard"} if method == GUARDING else {})


def message(method: str, job_id: str, queue: str, tag: str) -> str:
    """The job as Celery's workers expect it in a Redis list (task protocol 2 in kombu's envelope).

    It carries names only, and no more than Celery reads: it is most of what a waiting job costs in memory. `tag` is
    another one at every enqueuing: kombu keeps what it delivered by tag. A test sends it through a real worker,
    so that a change of either library cannot go unnoticed.
    """
    envelope = {
        "body": json.dumps([[method, job_id], {}, {}], separators=(",", ":")),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": TASK, "id": job_id, "argsrepr": "<job>"},
        "properties": {
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "delivery_tag": tag,
        },
    }
    return json.dumps(envelope, separators=(",", ":"))


# The script fills the places between @ by itself, so that no record has to keep its message.
_SCRIPT = LUA + (
    files("shared")
    .joinpath("jobs.lua")
    .read_text()
    .replace("@MESSAGE@", message("@METHOD@", "@ID@", "@QUEUE@", "@TAG@"))
)


def _time(milliseconds: str | None) -> str | None:
    if not milliseconds:
        return None
    moment = datetime.fromtimestamp(int(milliseconds) / 1000, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class JobRecord:
    """A job as it stands in Redis. Times are milliseconds since the epoch as text, JSON values are text."""

    id: str
    method: str
    fields: Mapping[str, str]

    @property
    def operation(self) -> str:
        return self.fields["operation"]

    @property
    def tenant(self) -> str:
        return self.fields["tenant"]

    @property
    def principal(self) -> str:
        return self.fields["principal"]

    @property
    def scope(self) -> str | None:
        """The scope without which nobody sees this job, or None: its whole tenant may."""
        return self.fields.get("scope") or None

    @property
    def state(self) -> State:
        return self.fields["state"]  # type: ignore[return-value]

    @property
    def is_finished(self) -> bool:
        return self.state in TERMINAL

    @property
    def attempt(self) -> int:
        return int(self.fields["attempt"])

    @property
    def fence(self) -> str:
        """The number of this start of the job: what a worker says counts while it is the newest."""
        return self.fields["fence"]

    @property
    def request(self) -> dict[str, Any]:
        request: dict[str, Any] = json.loads(self.fields["request"])
        return request

    @property
    def result(self) -> dict[str, Any] | None:
        """The response, once the job succeeded."""
        return json.loads(self.fields["result"]) if "result" in self.fields else None

    @property
    def guard(self) -> dict[str, Any] | None:
        """What was asked of a guard and what it said (`shared.guard.Guard`), for a job that has one."""
        return json.loads(self.fields["guard"]) if "guard" in self.fields else None

    @property
    def problem(self) -> Problem | None:
        """Why the job came to nothing, once it did."""
        if "error" in self.fields:
            return Problem.from_body(json.loads(self.fields["error"]))
        if "lost" in self.fields:
            attempts = int(self.fields["lost"])
            return WorkerLost(f"Its worker died {attempts} times.", attempts=attempts)
        if self.state == "cancelled":
            return JobCancelled()
        if self.state == "expired":
            return DeadlineExceeded()
        return None

    def visible_to(self, tenant: str, principal: str, scopes: Collection[str]) -> bool:
        """Whether a caller may know of this job at all."""
        if tenant != self.tenant:
            return False
        return self.scope is None or (principal == self.principal and self.scope in scopes)

    def public(self) -> dict[str, Any]:
        """The record as callers see it."""
        f, problem = self.fields, self.problem
        return {
            "id": self.id,
            "method": self.method,
            "operation": self.operation,
            "state": self.state,
            "stage": f.get("stage") or None,
            "progress": json.loads(f["progress"]) if "progress" in f else None,
            "units": json.loads(f["units"]) if "units" in f else None,
            "attempt": self.attempt,
            "seed": int(f["seed"]) if "seed" in f else None,
            "guard": self.guard,
            "created_at": _time(f["created_at"]),
            "started_at": _time(f.get("started_at")),
            "finished_at": _time(f.get("finished_at")),
            "deadline": _time(f["deadline"]),
            "result": self.result,
            "error": problem.body(f.get("request_id")) if problem else None,
            "url": f"/v1/jobs/{self.id}",
        }


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job. `id` orders the events of one job."""

    id: str
    kind: Literal["state", "progress", "unit"]
    data: dict[str, Any]

    @property
    def is_last(self) -> bool:
        return self.kind == "state" and self.data["state"] in TERMINAL


@dataclass(frozen=True)
class NewJob:
    """What is known of a job when it is accepted."""

    id: str
    method: str
    queue: str
    tenant: str
    fields: Mapping[str, str]
    deadline_s: float
    queue_limit: int
    needs_worker: bool
    idempotency: str = ""
    """Principal and hash of the caller's idempotency key, or empty."""
    fingerprint: str = ""
    limits: Limits = NO_LIMITS
    """What its principal may use; of these, jobs and pixels are used up here."""
    pixels: int = 0

    def arguments(self) -> list[str]:
        fields = {"tenant": self.tenant, "queue": self.queue, **self.fields}
        head = [self.id, self.tenant, self.idempotency, self.fingerprint, self.queue, str(self.queue_limit)]
        tail = [str(int(self.needs_worker)), str(int(self.deadline_s * 1000))]
        use = [str(self.limits.running_jobs), str(self.limits.pixels_per_hour), str(self.pixels)]
        return [*head, *tail, fields["principal"], *use, *(text for pair in fields.items() for text in pair)]


def _record(method: str, job_id: str, fields: Mapping[str, str]) -> JobRecord:
    if not fields:
        raise JobNotFound(f"There is no job {job_id}.")
    return JobRecord(job_id, method, fields)


def pairs(flat: Sequence[str]) -> dict[str, str]:
    """A Redis hash, as scripts return it."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def told(method: str, message: str) -> JobRecord | None:
    """The record of a finished job, as jobs.lua publishes it behind the job's name, if it is small."""
    job_id, _, flat = message.partition(" ")
    return JobRecord(job_id, method, pairs(json.loads(flat))) if flat else None


class Jobs:
    """Job records for asyncio: API processes and the gateway."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client
        self._script = client.register_script(_SCRIPT)

    async def _change(self, method: str, change: str, *arguments: str) -> Any:
        try:
            return await self._script(keys=[prefix(method)], args=[change, *arguments])
        except RedisError as error:
            raise ServiceUnavailable("The job store does not answer.", retry_after_s=2) from error

    async def create(self, job: NewJob) -> tuple[str, str]:
        """Accept a job and queue it, in one step.

        Returns the outcome and what belongs to it: `created` and `replay` the job's name (of the first request with
        this idempotency key), `conflict`, `taken` (there is a job of this name) and `no_worker` nothing; `full`, `jobs`
        and `pixels` (what its principal has too many of) the seconds after which to try again.
        """
        outcome, value = await self._change(job.method, "create", *job.arguments())
        return outcome, value

    async def get(self, method: str, job_id: str) -> JobRecord:
        """The record. Raises `JobNotFound`."""
        try:
            fields: Any = await self._redis.hgetall(f"{prefix(method)}job:{job_id}")
        except RedisError as error:
            raise ServiceUnavailable("The job store does not answer.", retry_after_s=2) from error
        return _record(method, job_id, fields)

    async def find(self, job_id: str, methods: Iterable[str]) -> JobRecord:
        """The record, whichever of these methods it belongs to. Raises `JobNotFound`."""
        names = list(methods)
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for method in names:
                    pipe.hgetall(f"{prefix(method)}job:{job_id}")
                found = await pipe.execute()
        except RedisError as error:
            raise ServiceUnavailable("The job store does not answer.", retry_after_s=2) from error
        for method, fields in zip(names, found, strict=True):
            if fields:
                return _record(method, job_id, fields)
        raise JobNotFound(f"There is no job {job_id}.")

    async def parked(self, method: str) -> Sequence[str]:
        """Jobs that wait for a guard, the longest first."""
        try:
            names: Any = await self._redis.zrange(f"{prefix(method)}parked", 0, -1)
        except RedisError as error:
            raise ServiceUnavailable("The job store does not answer.", retry_after_s=2) from error
        return names  # type: ignore[no-any-return]

    async def list(
        self, methods: Iterable[str], tenant: str, *, before: str | None = None, limit: int = 20
    ) -> list[JobRecord]:
        """The tenant's jobs, newest first, from just before the job named `before`. Names of jobs sort by age."""
        names = list(methods)
        top = f"({before}" if before else "+"
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for method in names:
                    pipe.zrevrangebylex(f"{prefix(method)}tenant:{tenant}", top, "-", start=0, num=limit)
                listed = await pipe.execute()
            newest = sorted(
                ((job_id, method) for method, found in zip(names, listed, strict=True) for job_id in found),
                reverse=True,
            )[:limit]
            async with self._redis.pipeline(transaction=False) as pipe:
                for job_id, method in newest:
                    pipe.hgetall(f"{prefix(method)}job:{job_id}")
                records = await pipe.execute()
            gone = [(job_id, m) for (job_id, m), fields in zip(newest, records, strict=True) if not fields]
            for job_id, method in gone:
                await self._redis.zrem(f"{prefix(method)}tenant:{tenant}", job_id)
        except RedisError as error:
            raise ServiceUnavailable("The job store does not answer.", retry_after_s=2) from error
        return [JobRecord(j, m, fields) for (j, m), fields in zip(newest, records, strict=True) if fields]

    async def request_cancel(self, record: JobRecord) -> JobRecord:
        """Cancel a queued job at once, ask a running one to stop, leave a finished one alone. The record afterwards."""
        await self._change(record.method, "cancel", record.id)
        return await self.get(record.method, record.id)

    async def events(self, method: str, job_id: str, after: str = "0-0") -> AsyncIterator[JobEvent | None]:
        """What happened after the event named `after`, as it happens, up to a terminal state. None: nothing for 2 s."""
        stream = f"{prefix(method)}job:{job_id}:events"
        last: Any = after
        if after == "0-0" and (record := await self.get(method, job_id)).state == "queued":
            last = f"{record.fields['created_at']}-0"  # the stream begins with this, once there is more to tell
            yield JobEvent(last, "state", {"state": "queued"})
        while True:
            try:
                answer: Any = await self._redis.xread({stream: last}, count=100, block=2000)
            except RedisError as error:
                raise ServiceUnavailable("The job store does not answer.", retry_after_s=2) from error
            if not answer:
                yield None
                if (await self.get(method, job_id)).is_finished:
                    return  # it ended before `after`, or its events are gone
                continue
            for last, fields in answer[0][1]:
                event = JobEvent(last, fields["kind"], json.loads(fields["data"]))
                yield event
                if event.is_last:
                    return

    async def park(self, record: JobRecord, fence: str, guard: str) -> bool:
        """Take a running job back until its guard answers. False if another start of it runs by now."""
        return bool(await self._change(record.method, "park", record.id, fence, guard))

    async def unpark(self, method: str, job_id: str, guard: str) -> bool:
        """Queue a parked job again, with what its guard said. False if it is not parked any more."""
        return bool(await self._change(method, "unpark", job_id, guard))

    async def reap(self, method: str, stray_s: float = STRAY_S) -> tuple[int, int, int]:
        """Queue again what dead workers held or lost, expire what waited too long. How many of each."""
        lost, stray, late = await self._change(method, "reap", str(int(stray_s * 1000)))
        return lost, stray, late

    async def live(self, method: str) -> dict[str, Any]:
        """Numbers of the moment: workers, waiting and running jobs, mean seconds of service (None before the first).

        The mean is of what was computed lately, trainings apart.
        """
        p = prefix(method)
        try:
            seconds, _ = await self._redis.time()
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.zcount(f"{p}workers", (seconds - 20) * 1000, "+inf")
                for name in ("queued", "queued.train", "active", "active.train"):
                    pipe.zcard(p + name)
                pipe.hget(f"{p}stats", "recent_ms")
                workers, queued, training_queued, running, training, recent_ms = await pipe.execute()
        except RedisError as error:
            raise ServiceUnavailable("The job store does not answer.", retry_after_s=2) from error
        mean = None if recent_ms is None else float(recent_ms) / 1000
        queued, running = queued + training_queued, running + training
        return {"workers": workers, "queued": queued, "running": running, "mean_service_s": mean}


class LeaseLost(Exception):
    """Another attempt runs this job now, or it ended: this worker's words about it no longer count."""


class WorkerJobs:
    """Job records for worker threads."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._script = client.register_script(_SCRIPT)

    def _change(self, method: str, change: str, *arguments: str) -> Any:
        return self._script(keys=[prefix(method)], args=[change, *arguments])

    def start(self, method: str, job_id: str, worker: str) -> JobRecord | None:
        """Take the job, or None if it must not run: finished, held by a live worker, too late, tried too often."""
        outcome, *rest = self._change(method, "start", job_id, worker)
        return JobRecord(job_id, method, pairs(rest[0])) if outcome == "started" else None

    def renew(self, method: str, worker: str, held: Sequence[JobRecord]) -> list[str]:
        """Say that this worker lives and holds these jobs: for each `go`, `cancel`, `deadline` or `lost`."""
        answers: list[str] = self._change(
            method, "renew", worker, *(part for one in held for part in (one.id, one.fence))
        )
        return answers

    def leave(self, method: str, worker: str) -> None:
        """Say that this worker takes no more jobs."""
        self._change(method, "leave", worker)

    def _fenced(self, record: JobRecord, change: str, *arguments: str) -> None:
        if not self._change(record.method, change, record.id, record.fence, *arguments):
            raise LeaseLost(record.id)

    def progress(self, record: JobRecord, progress: Mapping[str, Any]) -> None:
        self._fenced(record, "report", "progress", json.dumps(progress), "progress")

    def stage(self, record: JobRecord, stage: str) -> None:
        self._fenced(record, "report", "stage", stage, "")

    def remember(self, record: JobRecord, field: str, value: str) -> None:
        """Keep a value of the runtime's own with the job, for later attempts."""
        self._fenced(record, "report", field, value, "")

    def unit(self, record: JobRecord, index: int, of: int, output: Any) -> None:
        self._fenced(record, "unit", str(index), str(of), json.dumps(output))

    def unit_outputs(self, record: JobRecord) -> dict[int, Any]:
        stored = self._redis.hgetall(f"{prefix(record.method)}job:{record.id}:units")
        return {int(index): json.loads(output) for index, output in stored.items()}

    def succeed(self, record: JobRecord, result: Mapping[str, Any]) -> None:
        self._fenced(record, "finish", "succeeded", "result", json.dumps(result))

    def fail(self, record: JobRecord, problem: Problem) -> None:
        self._fenced(record, "finish", "failed", "error", json.dumps(problem.body()))

    def end(self, record: JobRecord, state: Literal["cancelled", "expired"]) -> None:
        self._fenced(record, "finish", state, "stage", "")

    def put_back(self, record: JobRecord) -> None:
        """Queue the job again as if it had not been started."""
        self._fenced(record, "put_back")
