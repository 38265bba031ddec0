from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from shared import limits
from shared.files import InMemoryFiles, Owner, StoredFile
from shared.ledger import CountedFiles, Ledger
from shared.limits import Limits
from shared.problems import QuotaExceeded, StoredFileNotFound
from tests.redis_server import RedisServer

MINUTE_MS = 60_000
NOW_MS = 1.8e12  # about now, in milliseconds since 1970: where floating point is as coarse as it will be
TOLD_MS = 0.01  # finer than anybody is told
PRINCIPAL = "prn_1"

rate_tests = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


class Bucket:
    """The rate limit of `limits.lua`, at times that the test names."""

    def __init__(self, client: redis.Redis, quota: int) -> None:
        def script(body: str) -> Callable[..., Any]:
            return client.register_script(limits.LUA + body)

        client.delete("bucket")
        self._take = script(
            "local numbers = {} for i, text in ipairs(ARGV) do numbers[i] = tonumber(text) end"
            " local q, w, cost, now = unpack(numbers)"
            " local wait = wait_for(KEYS[1], q, w, cost, now) if wait == 0 then take(KEYS[1], q, w, cost, now) end"
            " redis.call('PERSIST', KEYS[1]) return string.format('%.17g', wait)"
        )
        self._left = script(
            "local units, more = left(KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]))"
            " return {units, string.format('%.17g', more)}"
        )
        self._quota = quota

    def take(self, cost: int, at_ms: float) -> float:
        """Take `cost` units, or return the milliseconds to wait."""
        return float(self._take(keys=["bucket"], args=[self._quota, MINUTE_MS, cost, repr(NOW_MS + at_ms)]))

    def left(self, at_ms: float) -> tuple[int, float]:
        """Units that are there, and the milliseconds until there is one more."""
        units, more = self._left(keys=["bucket"], args=[self._quota, MINUTE_MS, repr(NOW_MS + at_ms)])
        return int(units), float(more)


quotas = st.sampled_from([1, 2, 7, 60, 997, 60_000])
steps = st.lists(st.tuples(st.floats(0, 2 * MINUTE_MS), st.integers(1, 2000)), min_size=1, max_size=25)


@given(quota=quotas, steps=steps)
@rate_tests
def test_no_while_takes_more_than_the_quota_and_what_came_again_in_it(
    fresh_redis: redis.Redis, quota: int, steps: list[tuple[float, int]]
) -> None:
    bucket, at_ms, taken = Bucket(fresh_redis, quota), 0.0, []
    for pause_ms, wish in steps:
        at_ms += pause_ms
        cost = 1 + wish % quota
        if bucket.take(cost, at_ms) == 0:
            taken.append((at_ms, cost))
    for first, (since_ms, _) in enumerate(taken):
        total = 0
        for until_ms, cost in taken[first:]:
            total += cost
            allowed = quota + (until_ms - since_ms + TOLD_MS) * quota / MINUTE_MS
            assert total <= allowed + 1e-6, f"{total} within {until_ms - since_ms} ms"


@given(quota=quotas, steps=steps, cost=st.integers(1, 3000))
@rate_tests
def test_the_wait_that_is_told_is_neither_too_short_nor_too_long(
    fresh_redis: redis.Redis, quota: int, steps: list[tuple[float, int]], cost: int
) -> None:
    bucket, at_ms = Bucket(fresh_redis, quota), 0.0
    for pause_ms, wish in steps:
        at_ms += pause_ms
        bucket.take(1 + wish % quota, at_ms)
    bucket.take(quota, at_ms)
    wait_ms = bucket.take(cost, at_ms)
    if wait_ms > TOLD_MS:
        assert bucket.take(cost, at_ms + wait_ms - TOLD_MS) > 0, "it would have passed earlier"
    assert wait_ms == 0 or bucket.take(cost, at_ms + wait_ms) == 0, "it did not pass then"


@given(quota=st.sampled_from([1, 2, 7, 30]), steps=steps)
@rate_tests
def test_what_is_left_can_be_taken_at_once_and_one_more_when_it_is_said(
    fresh_redis: redis.Redis, quota: int, steps: list[tuple[float, int]]
) -> None:
    bucket, at_ms = Bucket(fresh_redis, quota), 0.0
    for pause_ms, wish in steps:
        at_ms += pause_ms
        bucket.take(1 + wish % quota, at_ms)
    units, until_more_ms = bucket.left(at_ms)
    assert 0 <= units <= quota
    assert all(bucket.take(1, at_ms) == 0 for _ in range(units))
    if until_more_ms > TOLD_MS:
        assert bucket.take(1, at_ms) > 0, "there was more than was said"
    assert bucket.take(1, at_ms + until_more_ms + TOLD_MS) == 0


def test_what_costs_more_than_the_quota_passes_when_all_is_there_and_is_owed(fresh_redis: redis.Redis) -> None:
    bucket = Bucket(fresh_redis, 100)
    assert bucket.take(250, 0) == 0
    units, until_more_ms = bucket.left(0)
    assert units == 0
    assert until_more_ms == pytest.approx(1.51 * MINUTE_MS)
    assert bucket.take(250, 0) == pytest.approx(2.5 * MINUTE_MS)
    assert bucket.take(250, 2.5 * MINUTE_MS) == 0


class TestProblems:
    @pytest.mark.parametrize("policy", [limits.REQUESTS, limits.PIXELS, limits.JOBS, limits.BYTES])
    def test_name_the_policy_and_its_number(self, policy: str) -> None:
        problem = limits.too_much(policy, Limits(1, 2, 3, 4), 5.0)
        body = problem.body()
        assert body["status"] == 429
        assert body["violated-policies"] == [policy]
        assert str(body["limit"]) in body["detail"]

    def test_of_an_unknown_policy_are_a_bug(self) -> None:
        with pytest.raises(ValueError, match="no policy"):
            limits.too_much("luck", Limits(), 1.0)


@pytest.fixture
def ledger(broker: RedisServer, fresh_redis: redis.Redis) -> Iterator[Ledger]:
    ledger = Ledger(broker.url)
    yield ledger
    ledger.close()


@pytest.fixture
def files(ledger: Ledger) -> CountedFiles:
    return CountedFiles(InMemoryFiles(), ledger)


def write(files: CountedFiles, size_bytes: int, made_by: str | None = PRINCIPAL, ttl_s: float = 60) -> StoredFile:
    with files.create(Owner("acme", made_by=made_by), "text/plain", ttl_s) as writer:
        writer.write(bytes(size_bytes))
        return writer.commit()


class Counted:
    """What the ledger says."""

    def __init__(self, client: redis.Redis) -> None:
        self.redis = client
        self._stored = client.register_script(limits.LUA + "return stored(KEYS[1], instant())")

    def bytes(self, principal: str = PRINCIPAL) -> int:
        return int(self._stored(keys=[limits.prefix(principal)]))

    def let_expire(self, file: StoredFile, principal: str = PRINCIPAL) -> None:
        """Let a file's time have been over since long ago."""
        self.redis.zadd(f"{limits.prefix(principal)}files", {f"{file.id}:{file.bytes}": 1}, xx=True)


@pytest.fixture
def counted(fresh_redis: redis.Redis) -> Counted:
    return Counted(fresh_redis)


class TestStoredBytes:
    def test_are_those_of_who_made_them(self, files: CountedFiles, counted: Counted) -> None:
        write(files, 100)
        write(files, 20, "prn_2")
        write(files, 3, None)
        assert (counted.bytes(), counted.bytes("prn_2")) == (100, 20)

    def test_count_no_longer_once_deleted_even_twice(self, files: CountedFiles, counted: Counted) -> None:
        kept, gone = write(files, 100), write(files, 20)
        files.delete(gone.id)
        files.delete(gone.id)
        assert counted.bytes() == kept.bytes

    def test_count_no_longer_once_their_time_is_over_though_nothing_swept(
        self, files: CountedFiles, counted: Counted
    ) -> None:
        write(files, 100)
        counted.let_expire(write(files, 20))
        assert counted.bytes() == 100

    def test_count_as_long_as_the_file_lives_on(
        self, files: CountedFiles, counted: Counted, fresh_redis: redis.Redis
    ) -> None:
        file = write(files, 100, ttl_s=5)
        files.extend(file.id, 1000)
        key = f"{limits.prefix(PRINCIPAL)}files"
        ends_ms = fresh_redis.zscore(key, f"{file.id}:{file.bytes}")
        assert ends_ms == pytest.approx(files.stat(file.id).expires_at * 1000, abs=10_000)
        assert int(fresh_redis.pttl(key)) > 900_000

    def test_beyond_the_limit_are_refused_and_not_there(self, files: CountedFiles, counted: Counted) -> None:
        first = write(files.within(100), 60)
        with pytest.raises(QuotaExceeded) as refused:
            write(files.within(100), 41)
        assert counted.bytes() == 60
        assert 50 < (refused.value.retry_after_s or 0) <= 60, "when the first one expires there is room"
        files.delete(first.id)
        write(files.within(100), 41)

    def test_beyond_the_room_are_given_up_on_the_way(self, files: CountedFiles, counted: Counted) -> None:
        narrow = files.within(100, room_bytes=10)
        with narrow.create(Owner("acme", made_by=PRINCIPAL), "text/plain", 60) as writer:
            writer.write(bytes(10))
            with pytest.raises(QuotaExceeded):
                writer.write(b"1")
            with pytest.raises(ValueError, match="closed"):
                writer.commit()
        assert counted.bytes() == 0

    def test_leave_no_key_behind_when_all_have_expired(self, files: CountedFiles, fresh_redis: redis.Redis) -> None:
        write(files, 100, ttl_s=50)
        assert all(0 < int(fresh_redis.pttl(key)) <= 50_001 for key in fresh_redis.keys("tf:limits:*"))

    def test_a_ledger_out_of_reach_stops_no_worker(self) -> None:
        lost = Ledger("redis://127.0.0.1:1/0")
        file = write(CountedFiles(InMemoryFiles(), lost), 10)
        assert file.bytes == 10
        lost.close()


class LedgerLife(RuleBasedStateMachine):
    """Whatever is stored, prolonged, deleted and left to expire in whatever order: the sum is that of what is there."""

    ledger: Ledger
    counted: Counted
    made = Bundle("made")

    @initialize()
    def begin(self) -> None:
        self.counted.redis.flushall()
        self.files = CountedFiles(InMemoryFiles(), self.ledger)
        self.there: dict[str, int] = {}

    @rule(target=made, size=st.integers(0, 500), limit=st.sampled_from([0, 600]))
    def store(self, size: int, limit: int) -> StoredFile | None:
        before = sum(self.there.values())
        try:
            file = write(self.files.within(limit), size)
        except QuotaExceeded:
            assert before + size > limit > 0
            return None
        assert not limit or before + size <= limit
        self.there[file.id] = size
        return file

    @rule(file=made)
    def delete(self, file: StoredFile | None) -> None:
        if file:
            self.files.delete(file.id)
            self.there.pop(file.id, None)

    @rule(file=made)
    def prolong(self, file: StoredFile | None) -> None:
        if file and file.id in self.there:
            self.files.extend(file.id, 500)

    @rule(file=made)
    def expire(self, file: StoredFile | None) -> None:
        if file and self.there.pop(file.id, None) is not None:
            self.counted.let_expire(file)

    @invariant()
    def the_sum_is_right(self) -> None:
        assert self.counted.bytes() == sum(self.there.values())


def test_the_ledger_never_drifts(ledger: Ledger, counted: Counted) -> None:
    class Life(LedgerLife):
        pass

    Life.ledger, Life.counted = ledger, counted
    case = Life.TestCase
    case.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
    case().runTest()


def test_a_counted_store_is_the_store_itself(files: CountedFiles) -> None:
    file = write(files, 10)
    assert files.stat(file.id) == file
    with files.open(file.id) as stream:
        assert isinstance(stream, io.IOBase)
        assert stream.read() == bytes(10)
    assert files.sweep(now=file.expires_at + 1) == 1
    with pytest.raises(StoredFileNotFound):
        files.stat(file.id)
    files.delete(file.id)
