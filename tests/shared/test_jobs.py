from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
import redis
import redis.asyncio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared import ids
from shared.jobs import TERMINAL, JobEvent, JobRecord, Jobs, LeaseLost, NewJob, WorkerJobs
from shared.limits import Limits
from shared.problems import DeadlineExceeded, ImageTooLarge, JobCancelled, JobNotFound, WorkerLost
from tests.redis_server import RedisServer

METHOD = "tried"
T = TypeVar("T")


def new_job(**changes: Any) -> NewJob:
    fields = {
        "operation": "noop",
        "principal": "prn_1",
        "request": "{}",
        "attempts": "2",
        "ttl_ms": "60000",
        **changes.pop("fields", {}),
    }
    known = {
        "id": ids.ordered_id("job"),
        "method": METHOD,
        "queue": METHOD,
        "tenant": "acme",
        "fields": fields,
        "deadline_s": 60.0,
        "queue_limit": 1000,
        "needs_worker": False,
    }
    return NewJob(**{**known, **changes})


class Store:
    """Both clients of one server, the asyncio one behind plain calls."""

    def __init__(self, server: RedisServer, client: redis.Redis) -> None:
        self.redis = client
        self.worker = WorkerJobs(client)
        self._url = server.url

    def ask(self, call: Callable[[Jobs], Coroutine[Any, Any, T]]) -> T:
        async def run() -> T:
            async with redis.asyncio.Redis.from_url(self._url, decode_responses=True) as client:
                return await call(Jobs(client))

        return asyncio.run(run())

    def create(self, **changes: Any) -> tuple[str, str]:
        return self.ask(lambda jobs: jobs.create(new_job(**changes)))

    def created(self, **changes: Any) -> str:
        outcome, job_id = self.create(**changes)
        assert outcome == "created"
        return job_id

    def get(self, job_id: str) -> JobRecord:
        return self.ask(lambda jobs: jobs.get(METHOD, job_id))

    def cancel(self, job_id: str) -> JobRecord:
        return self.ask(lambda jobs: jobs.request_cancel(JobRecord(job_id, METHOD, {})))

    def reap(self, stray_s: float = 60) -> tuple[int, int, int]:
        return self.ask(lambda jobs: jobs.reap(METHOD, stray_s))

    def events(self, job_id: str, after: str = "0-0") -> list[JobEvent]:
        async def collect(jobs: Jobs) -> list[JobEvent]:
            return [event async for event in jobs.events(METHOD, job_id, after) if event]

        return self.ask(collect)

    def started(self, job_id: str, worker: str = "w1") -> JobRecord:
        record = self.worker.start(METHOD, job_id, worker)
        assert record is not None
        return record

    def end_lease(self, job_id: str, active: str = "active") -> None:
        self.redis.zadd(f"tf:{METHOD}:{active}", {job_id: 1})


@pytest.fixture
def store(broker: RedisServer, fresh_redis: redis.Redis) -> Store:
    return Store(broker, fresh_redis)


class TestParking:
    """A job that waits for its guard."""

    def parked(self, store: Store, record: JobRecord, fence: str | None = None) -> bool:
        return store.ask(lambda jobs: jobs.park(record, fence or record.fence, '{"job": "job_g"}'))

    def woken(self, store: Store, job_id: str) -> bool:
        return store.ask(lambda jobs: jobs.unpark(METHOD, job_id, '{"p_value": 1}'))

    def test_it_is_queued_without_a_message_and_the_attempt_does_not_count(self, store: Store) -> None:
        record = store.started(store.created())
        store.redis.delete(METHOD)  # the message that was taken
        assert self.parked(store, record)
        now = store.get(record.id)
        assert (now.state, now.attempt, now.public()["stage"]) == ("queued", 0, "guard")
        assert now.guard == {"job": "job_g"}
        assert store.redis.llen(METHOD) == 0
        with pytest.raises(LeaseLost):
            store.worker.succeed(record, {})

    def test_it_is_woken_once(self, store: Store) -> None:
        record = store.started(store.created())
        store.redis.delete(METHOD)
        self.parked(store, record)
        assert [self.woken(store, record.id) for _ in range(3)] == [True, False, False]
        assert store.redis.llen(METHOD) == 1
        assert store.get(record.id).guard == {"p_value": 1}
        assert store.started(record.id).attempt == 1

    def test_an_old_start_of_it_parks_nothing(self, store: Store) -> None:
        old = store.started(store.created())
        store.worker.put_back(old)
        new = store.started(old.id)
        assert not self.parked(store, old)
        assert self.parked(store, new)

    def test_the_janitor_takes_it_for_neither_lost_nor_stray(self, store: Store) -> None:
        record = store.started(store.created())
        store.redis.delete(METHOD)
        self.parked(store, record)
        assert store.reap(stray_s=0) == (0, 0, 0)
        assert store.redis.llen(METHOD) == 0

    def test_its_deadline_ends_it(self, store: Store) -> None:
        record = store.started(store.created(deadline_s=0.2))
        self.parked(store, record)
        time.sleep(0.3)
        assert store.reap() == (0, 0, 1)
        assert store.get(record.id).state == "expired"
        assert not self.woken(store, record.id)

    @pytest.mark.parametrize("before", [True, False])
    def test_cancelled_it_stays_cancelled(self, store: Store, before: bool) -> None:
        record = store.started(store.created())
        if before:
            assert store.cancel(record.id).state == "cancelling"
        self.parked(store, record)
        store.cancel(record.id)
        assert store.get(record.id).state == "cancelled"
        assert not self.woken(store, record.id)


class TestAccepting:
    def test_a_job_is_recorded_and_its_message_queued_in_one_step(self, store: Store) -> None:
        job_id = store.created()
        assert store.get(job_id).state == "queued"
        (message,) = store.redis.lrange(METHOD, 0, -1)
        assert json.loads(message)["headers"]["id"] == job_id
        assert "@" not in message

    def test_a_waiting_job_costs_the_broker_less_than_2_kib(self, store: Store) -> None:
        call = {"request_id": ids.ordered_id("req"), "request": '{"text": "", "seed": 9223372036854775807}'}
        store.created(fields=call)
        before = store.redis.info("memory")["used_memory"]
        for _ in range(200):
            store.created(fields=call)
        assert (store.redis.info("memory")["used_memory"] - before) / 200 < 2048

    def test_the_first_event_is_that_it_was_queued_before_and_after_it_starts(self, store: Store) -> None:
        job_id = store.created()

        async def first_of(jobs: Jobs) -> JobEvent | None:
            return await anext(jobs.events(METHOD, job_id))

        first = store.ask(first_of)
        store.worker.succeed(store.started(job_id), {})
        events = store.events(job_id)
        assert [event.data["state"] for event in events] == ["queued", "running", "succeeded"]
        assert events[0] == first

    def test_the_message_holds_names_only(self, store: Store) -> None:
        store.created(fields={"request": '{"text": "a secret wish"}', "call": "signature"})
        (message,) = store.redis.lrange(METHOD, 0, -1)
        assert "wish" not in message
        assert "signature" not in message

    def test_the_same_idempotency_key_gives_the_first_job(self, store: Store) -> None:
        job_id = store.created(idempotency="prn_1:k", fingerprint="f")
        assert store.create(idempotency="prn_1:k", fingerprint="f") == ("replay", job_id)
        assert store.redis.llen(METHOD) == 1

    def test_the_same_idempotency_key_with_another_request_is_a_conflict(self, store: Store) -> None:
        store.created(idempotency="prn_1:k", fingerprint="f")
        assert store.create(idempotency="prn_1:k", fingerprint="g") == ("conflict", "")

    def test_the_idempotency_key_of_another_principal_is_another_key(self, store: Store) -> None:
        store.created(idempotency="prn_1:k", fingerprint="f")
        store.created(idempotency="prn_2:k", fingerprint="g")

    def test_a_full_queue_says_when_to_come_back(self, store: Store) -> None:
        store.created()
        outcome, seconds = store.create(queue_limit=1)
        assert outcome == "full"
        assert int(seconds) >= 1

    def test_a_caller_who_would_wait_is_told_that_no_worker_serves(self, store: Store) -> None:
        assert store.create(needs_worker=True) == ("no_worker", "")
        store.worker.renew(METHOD, "w1", [])
        store.created(needs_worker=True)

    def test_a_worker_that_left_counts_no_more(self, store: Store) -> None:
        store.worker.renew(METHOD, "w1", [])
        store.worker.leave(METHOD, "w1")
        assert store.create(needs_worker=True) == ("no_worker", "")


class TestRunning:
    def test_a_second_delivery_of_a_running_job_does_not_start_it(self, store: Store) -> None:
        job_id = store.created()
        store.started(job_id)
        assert store.worker.start(METHOD, job_id, "w2") is None

    def test_a_delivery_of_a_finished_job_does_not_start_it(self, store: Store) -> None:
        record = store.started(store.created())
        store.worker.succeed(record, {"answer": 42})
        assert store.worker.start(METHOD, record.id, "w2") is None
        assert store.get(record.id).result == {"answer": 42}

    def test_a_worker_back_from_the_dead_cannot_overwrite_the_result(self, store: Store) -> None:
        old = store.started(store.created())
        store.end_lease(old.id)
        new = store.started(old.id, "w2")
        assert new.attempt == 2
        store.worker.succeed(new, {"result": "right"})
        late_words: list[Callable[[], None]] = [
            lambda: store.worker.succeed(old, {"result": "wrong"}),
            lambda: store.worker.fail(old, JobCancelled()),
            lambda: store.worker.progress(old, {"step": 1, "of": 2}),
            lambda: store.worker.unit(old, 0, 1, None),
            lambda: store.worker.put_back(old),
        ]
        for late_word in late_words:
            with pytest.raises(LeaseLost):
                late_word()
        assert store.get(old.id).result == {"result": "right"}

    def test_a_heartbeat_tells_what_became_of_each_job(self, store: Store) -> None:
        kept, cancelled, lost = (store.started(store.created()) for _ in range(3))
        store.cancel(cancelled.id)
        store.end_lease(lost.id)
        store.started(lost.id, "w2")
        held = [kept, cancelled, lost]
        assert store.worker.renew(METHOD, "w1", held) == ["go", "cancel", "lost"]

    def test_a_job_put_back_is_queued_and_its_attempt_does_not_count(self, store: Store) -> None:
        record = store.started(store.created())
        store.worker.put_back(record)
        assert store.get(record.id).state == "queued"
        assert store.started(record.id).attempt == 1

    def test_a_failed_job_keeps_its_problem(self, store: Store) -> None:
        record = store.started(store.created())
        store.worker.fail(record, ImageTooLarge("The picture is 9 x 9 px.", limit_px=8))
        problem = store.get(record.id).problem
        assert isinstance(problem, ImageTooLarge)
        assert problem.extras == {"limit_px": 8}

    def test_units_are_kept_for_the_next_attempt(self, store: Store) -> None:
        first = store.started(store.created())
        store.worker.unit(first, 0, 3, {"a": 1})
        store.worker.unit(first, 2, 3, {"c": 3})
        store.end_lease(first.id)
        second = store.started(first.id)
        assert store.worker.unit_outputs(second) == {0: {"a": 1}, 2: {"c": 3}}
        assert store.get(first.id).public()["units"] == {"done": 2, "of": 3}


class TestCancelling:
    def test_a_queued_job_is_cancelled_at_once(self, store: Store) -> None:
        job_id = store.created()
        assert store.cancel(job_id).state == "cancelled"
        assert store.worker.start(METHOD, job_id, "w1") is None

    def test_a_running_job_is_cancelling_until_its_worker_confirms(self, store: Store) -> None:
        record = store.started(store.created())
        assert store.cancel(record.id).state == "cancelling"
        store.worker.end(record, "cancelled")
        assert isinstance(store.get(record.id).problem, JobCancelled)

    def test_a_finished_job_is_left_alone(self, store: Store) -> None:
        record = store.started(store.created())
        store.worker.succeed(record, {})
        assert store.cancel(record.id).state == "succeeded"

    def test_a_cancelling_job_whose_worker_died_is_cancelled(self, store: Store) -> None:
        record = store.started(store.created())
        store.cancel(record.id)
        store.end_lease(record.id)
        store.reap()
        assert store.get(record.id).state == "cancelled"


class TestMending:
    def test_a_job_of_a_dead_worker_is_queued_again(self, store: Store) -> None:
        record = store.started(store.created())
        store.redis.delete(METHOD)
        store.end_lease(record.id)
        assert store.reap() == (1, 0, 0)
        assert store.redis.llen(METHOD) == 1
        assert store.started(record.id).attempt == 2

    def test_a_job_that_killed_every_worker_fails(self, store: Store) -> None:
        job_id = store.created()
        for _ in range(2):
            store.started(job_id)
            store.end_lease(job_id)
            store.reap()
        problem = store.get(job_id).problem
        assert isinstance(problem, WorkerLost)
        assert problem.extras == {"attempts": 2}

    def test_a_waiting_job_whose_message_is_gone_gets_a_new_one(self, store: Store) -> None:
        store.created()
        store.redis.delete(METHOD)
        assert store.reap(stray_s=60) == (0, 0, 0)
        assert store.reap(stray_s=-1) == (0, 1, 0)
        assert store.redis.llen(METHOD) == 1

    def test_a_message_is_missed_although_others_wait(self, store: Store) -> None:
        lost = store.created()
        time.sleep(0.002)  # the order of two jobs in one millisecond says nothing
        store.created()
        assert store.reap(stray_s=-1) == (0, 0, 0)
        store.redis.rpop(METHOD)  # taken by a worker that died before it started the job
        assert store.reap(stray_s=60) == (0, 0, 0)
        assert store.reap(stray_s=-1) == (0, 1, 0)
        assert [lost in message for message in store.redis.lrange(METHOD, 0, -1)] == [True, False]

    def test_nothing_is_missed_behind_the_message_of_a_cancelled_job(self, store: Store) -> None:
        store.cancel(store.created())
        store.created()
        assert store.reap(stray_s=-1) == (0, 0, 0)

    def test_a_job_nobody_takes_expires_at_its_deadline(self, store: Store) -> None:
        job_id = store.created(deadline_s=-1)
        assert store.reap() == (0, 0, 1)
        assert isinstance(store.get(job_id).problem, DeadlineExceeded)

    def test_a_late_job_is_not_started(self, store: Store) -> None:
        job_id = store.created(deadline_s=-1)
        assert store.worker.start(METHOD, job_id, "w1") is None
        assert store.get(job_id).state == "expired"


class TestReading:
    def test_an_unknown_job_is_not_found(self, store: Store) -> None:
        with pytest.raises(JobNotFound):
            store.get(ids.ordered_id("job"))

    def test_jobs_are_listed_newest_first_over_all_methods_by_cursor(self, store: Store) -> None:
        names = [store.created(method=method, queue=method) for method in ("one", "two", "one", "two", "one")]
        store.created(method="one", queue="one", tenant="other")
        first = store.ask(lambda jobs: jobs.list(["one", "two"], "acme", limit=3))
        rest = store.ask(lambda jobs: jobs.list(["one", "two"], "acme", before=first[-1].id, limit=3))
        assert [record.id for record in [*first, *rest]] == names[::-1]

    def test_events_resume_after_the_last_one_seen(self, store: Store) -> None:
        record = store.started(store.created())
        store.worker.progress(record, {"step": 1, "of": 2})
        store.worker.succeed(record, {})
        events = store.events(record.id)
        assert [event.data.get("state", event.data.get("step")) for event in events] == [
            "queued",
            "running",
            1,
            "succeeded",
        ]
        for place, event in enumerate(events[:-1]):
            assert store.events(record.id, event.id) == events[place + 1 :]

    def test_a_sensitive_job_is_seen_by_its_principal_with_the_scope_alone(self) -> None:
        record = JobRecord("job_1", METHOD, {"tenant": "acme", "principal": "prn_1", "scope": "recover"})
        assert record.visible_to("acme", "prn_1", {"recover"})
        assert not record.visible_to("acme", "prn_1", {"use"})
        assert not record.visible_to("acme", "prn_2", {"recover"})
        assert not record.visible_to("other", "prn_1", {"recover"})


class TestLimits:
    """What the gateway let in is counted where it takes effect."""

    def test_a_principal_has_no_more_unfinished_jobs_than_it_may_over_all_methods(self, store: Store) -> None:
        two = Limits(running_jobs=2)
        first = store.created(limits=two)
        store.created(limits=two, method="other", queue="other")
        outcome, seconds = store.create(limits=two)
        assert (outcome, int(seconds) >= 1) == ("jobs", True)
        store.created(limits=two, fields={"principal": "prn_2"})
        store.cancel(first)
        store.created(limits=two)

    def test_the_same_request_again_is_no_other_job(self, store: Store) -> None:
        one = Limits(running_jobs=1, pixels_per_hour=100)
        same: dict[str, Any] = {"idempotency": "prn_1:k", "fingerprint": "f", "limits": one, "pixels": 100}
        job_id = store.created(**same)
        assert store.create(**same) == ("replay", job_id)

    def test_pixels_are_used_up_where_a_job_begins_and_not_where_it_is_refused(self, store: Store) -> None:
        may = Limits(pixels_per_hour=1000, running_jobs=3)
        store.created(limits=may, pixels=600)
        assert store.create(limits=may, pixels=401)[0] == "pixels"
        assert store.create(limits=may, pixels=400, queue_limit=0)[0] == "full"
        store.created(limits=may, pixels=400)
        outcome, seconds = store.create(limits=may, pixels=1)
        assert (outcome, int(seconds)) == ("pixels", 4)
        store.created(limits=may)

    def test_a_refused_job_leaves_nothing(self, store: Store) -> None:
        store.created(limits=Limits(running_jobs=1))
        before = set(store.redis.keys("*"))
        store.create(limits=Limits(running_jobs=1), idempotency="prn_1:k", fingerprint="f")
        assert set(store.redis.keys("*")) == before


class TestMeanTimeOfService:
    def served(self, store: Store, seconds: float, **changes: Any) -> None:
        record = store.started(store.created(**changes))
        started = int(record.fields["started_at"]) - round(seconds * 1000)
        store.redis.hset(f"tf:{METHOD}:job:{record.id}", "started_at", started)
        store.worker.succeed(record, {})

    def mean_s(self, store: Store) -> float:
        mean: float = store.ask(lambda jobs: jobs.live(METHOD))["mean_service_s"]
        return mean

    def test_is_unknown_before_the_first(self, store: Store) -> None:
        assert store.ask(lambda jobs: jobs.live(METHOD))["mean_service_s"] is None

    def test_follows_what_jobs_take_lately(self, store: Store) -> None:
        self.served(store, 10)
        assert self.mean_s(store) == pytest.approx(10, abs=1)
        for _ in range(40):
            self.served(store, 100)
        assert 90 < self.mean_s(store) < 101

    def test_is_not_carried_away_by_one_long_job(self, store: Store) -> None:
        for seconds in (10, 10, 10_000):
            self.served(store, seconds)
        assert self.mean_s(store) == pytest.approx(10 + 90 / 16, abs=2)

    def test_leaves_trainings_out(self, store: Store) -> None:
        self.served(store, 10)
        self.served(store, 10_000, queue=f"{METHOD}.train")
        assert self.mean_s(store) == pytest.approx(10, abs=1)

    def test_trainings_wait_and_run_apart(self, store: Store) -> None:
        train = store.created(queue=f"{METHOD}.train")
        assert store.create(queue_limit=1)[0] == "created"
        assert store.create(queue_limit=1, queue=f"{METHOD}.train")[0] == "full"
        store.end_lease(store.started(train).id, "active.train")
        assert store.reap()[0] == 1
        numbers = store.ask(lambda jobs: jobs.live(METHOD))
        assert (numbers["queued"], numbers["running"]) == (2, 0)


class JobLife(RuleBasedStateMachine):
    """Whatever callers, workers and the janitor do in whatever order: one result, and no job is lost."""

    store: Store

    @initialize(line=st.sampled_from(["", ".train"]))
    def accept(self, line: str) -> None:
        self.store.redis.flushall()
        self.line = line
        self.id = self.store.created(fields={"attempts": "3"}, queue=METHOD + line)
        self.attempts: list[JobRecord] = []
        self.results: list[int] = []
        self.final: str | None = None

    @rule(worker=st.sampled_from(["w1", "w2"]))
    def deliver(self, worker: str) -> None:
        if record := self.store.worker.start(METHOD, self.id, worker):
            assert self.final is None
            self.attempts.append(record)

    @rule()
    def lease_runs_out(self) -> None:
        if self.store.redis.zscore(f"tf:{METHOD}:active{self.line}", self.id) is not None:
            self.store.end_lease(self.id, f"active{self.line}")

    @rule()
    def reap(self) -> None:
        self.store.reap()

    @rule()
    def cancel(self) -> None:
        self.store.cancel(self.id)

    @precondition(lambda self: self.attempts)
    @rule(which=st.integers(0, 10), ending=st.sampled_from(["succeed", "fail", "cancelled", "put_back", "progress"]))
    def worker_speaks(self, which: int, ending: str) -> None:
        record = self.attempts[which % len(self.attempts)]
        is_newest = record is self.attempts[-1]
        try:
            match ending:
                case "succeed":
                    self.store.worker.succeed(record, {"attempt": record.attempt})
                    self.results.append(record.attempt)
                case "fail":
                    self.store.worker.fail(record, ImageTooLarge())
                case "cancelled":
                    self.store.worker.end(record, "cancelled")
                case "put_back":
                    self.store.worker.put_back(record)
                case "progress":
                    self.store.worker.progress(record, {"step": 1, "of": 1})
        except LeaseLost:
            return
        assert is_newest, "an earlier start of the job was believed"

    @invariant()
    def the_record_is_consistent(self) -> None:
        record = self.store.get(self.id)
        queued = self.store.redis.zscore(f"tf:{METHOD}:queued{self.line}", self.id) is not None
        active = self.store.redis.zscore(f"tf:{METHOD}:active{self.line}", self.id) is not None
        assert queued == (record.state == "queued")
        assert active == (record.state in ("running", "cancelling"))
        if self.final is not None:
            assert record.state == self.final, "a finished job changed its state"
        if record.state in TERMINAL:
            self.final = record.state
        unfinished = self.store.redis.smembers("tf:limits:prn_1:jobs")
        assert unfinished == (set() if record.state in TERMINAL else {self.id}), "it counts as long as it is unfinished"
        if record.state == "queued":
            assert self.store.redis.llen(METHOD + self.line) > 0, "a waiting job without a message"
        assert len(self.results) <= 1
        assert record.attempt <= 3


@pytest.mark.usefixtures("fresh_redis")
def test_a_job_lives_one_life_in_any_order_of_events(store: Store) -> None:
    class Life(JobLife):
        pass

    Life.store = store
    case = Life.TestCase
    case.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
    case().runTest()
