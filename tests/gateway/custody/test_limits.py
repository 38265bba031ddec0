"""T22: how often somebody may recover, try, guess."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from structlog.testing import capture_logs

from gateway.custody.limits import Bucket, RecoverLimits
from gateway.custody.service import Custody
from shared.problems import Problem, RateLimited, RecordInvalid, SecretKeyNotFound, ServiceUnavailable
from tests.gateway.custody.support import (
    Person,
    anonymized,
    events,
    job_for,
    key_for,
    person,
    recovered,
    settings_for,
)
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio
PLENTY = {"plenty": Bucket(10**6, 1.0)}


@pytest.fixture
async def record(custody: Custody, custodian: Person, app: Person) -> dict[str, Any]:
    await key_for(custody, custodian, default=True)
    return (await anonymized(custody, app))[1]


def limits(**given: Any) -> RecoverLimits:
    return RecoverLimits(**{"actor": PLENTY, "tenant": PLENTY, "key": PLENTY, "verify": PLENTY, **given})


def test_the_numbers_are_those_of_the_design() -> None:
    numbers = RecoverLimits()
    assert numbers.actor == {"minute": Bucket(10, 60), "day": Bucket(200, 86400)}
    assert numbers.tenant == {"day": Bucket(1000, 86400)}
    assert numbers.key == {"hour": Bucket(30, 3600)}
    assert numbers.failures == Bucket(5, 600)


class TestBuckets:
    async def test_an_actor_recovers_ten_times_and_is_told_when_to_come_back(
        self, custody: Custody, officer: Person, record: Any, home: Path
    ) -> None:
        for _ in range(10):
            await recovered(custody, officer, record)
        with pytest.raises(RateLimited) as refused:
            await recovered(custody, officer, record)
        assert refused.value.retry_after_s is not None
        assert 1 <= refused.value.retry_after_s <= 6
        assert events(home, "ratelimit.block")[-1]["actor"] == officer.principal.id
        await recovered(custody, await person(custody, "officer"), record)

    async def test_what_was_taken_comes_back_with_time(self, custody: Custody, officer: Person, record: Any) -> None:
        custody.limiter._limits = limits(actor={"x": Bucket(2, 0.4)})
        for _ in range(2):
            await custody.limiter.take_recover(officer.principal, "")
        with pytest.raises(RateLimited):
            await custody.limiter.take_recover(officer.principal, "")
        await asyncio.sleep(0.25)
        await custody.limiter.take_recover(officer.principal, "")
        with pytest.raises(RateLimited):
            await custody.limiter.take_recover(officer.principal, "")

    async def test_a_refused_try_takes_nothing(self, custody: Custody, officer: Person, redis: Redis) -> None:
        custody.limiter._limits = limits(actor={"x": Bucket(5, 1000.0)}, tenant={"x": Bucket(2, 1000.0)})
        for _ in range(2):
            await custody.limiter.take_recover(officer.principal, "")
        for _ in range(5):
            with pytest.raises(RateLimited):
                await custody.limiter.take_recover(officer.principal, "")
        left = redis.hget(f"kc:{{acme}}:limit:actor:{officer.principal.id}:x", "tokens")
        assert float(str(left)) == pytest.approx(3, abs=0.1)

    async def test_officers_of_a_tenant_share_its_limit_and_other_tenants_do_not(
        self, custody: Custody, officer: Person
    ) -> None:
        custody.limiter._limits = limits(tenant={"x": Bucket(1, 1000.0)})
        await custody.limiter.take_recover(officer.principal, "")
        with pytest.raises(RateLimited):
            await custody.limiter.take_recover((await person(custody, "officer")).principal, "")
        await custody.limiter.take_recover((await person(custody, "officer", "other")).principal, "")

    async def test_a_key_has_its_own_limit(self, custody: Custody, officer: Person, record: Any) -> None:
        custody.limiter._limits = limits(key={"x": Bucket(2, 1000.0)})
        for _ in range(2):
            await recovered(custody, officer, record)
        with pytest.raises(RateLimited):
            await recovered(custody, await person(custody, "officer"), record)

    async def test_at_the_same_time_no_token_is_taken_twice(self, custody: Custody, officer: Person) -> None:
        custody.limiter._limits = limits(actor={"x": Bucket(5, 1000.0)})
        outcomes = await asyncio.gather(
            *(custody.limiter.take_recover(officer.principal, "") for _ in range(20)), return_exceptions=True
        )
        assert sum(outcome is None for outcome in outcomes) == 5

    async def test_checking_records_has_a_limit_of_its_own(self, custody: Custody, app: Person, record: Any) -> None:
        custody.limiter._limits = limits(verify={"x": Bucket(2, 1000.0)})
        job = await job_for(custody, app, "verify")
        for _ in range(2):
            await custody.sealing.check(job.context, record)
        with pytest.raises(RateLimited):
            await custody.sealing.check(job.context, record)


class TestLockOut:
    async def test_five_failures_lock_an_actor_out_and_raise_an_alarm(
        self, custody: Custody, officer: Person, record: Any, home: Path
    ) -> None:
        with capture_logs() as logs:
            for _ in range(5):
                with pytest.raises(RecordInvalid):
                    await recovered(custody, officer, {**record, "v": 2})
        assert [log["principal"] for log in logs if log["event"] == "custody.alarm"] == [officer.principal.id]
        assert events(home, "ratelimit.block")[-1]["reason"] == "locked"
        with pytest.raises(RateLimited, match="locked") as refused:
            await recovered(custody, officer, record)
        assert refused.value.retry_after_s == pytest.approx(3600, abs=5)
        await recovered(custody, await person(custody, "officer"), record)

    async def test_looking_for_keys_counts(self, custody: Custody, officer: Person, record: Any) -> None:
        for number in range(5):
            with pytest.raises(SecretKeyNotFound):
                await job_for(custody, officer, "recover", key_id=f"key_{number:026}")
        with pytest.raises(RateLimited):
            await job_for(custody, officer, "recover")

    async def test_four_do_not(self, custody: Custody, officer: Person, record: Any) -> None:
        for _ in range(4):
            with pytest.raises(RecordInvalid):
                await recovered(custody, officer, {**record, "v": 2})
        await recovered(custody, officer, record)

    async def test_failures_age(self, custody: Custody, officer: Person, record: Any) -> None:
        custody.limiter._limits = limits(failures=Bucket(2, 0.1))
        for _ in range(4):
            await custody.limiter.failed(officer.principal, "")
            await asyncio.sleep(0.12)
        await recovered(custody, officer, record)

    async def test_an_operator_lets_the_actor_in_again(self, custody: Custody, officer: Person, record: Any) -> None:
        for _ in range(5):
            await custody.limiter.failed(officer.principal, "")
        await custody.limiter.unlock(officer.principal)
        await recovered(custody, officer, record)

    async def test_anonymization_goes_on(self, custody: Custody, officer: Person, app: Person, record: Any) -> None:
        for _ in range(5):
            await custody.limiter.failed(app.principal, "")
        await anonymized(custody, app)


class TestUnreadable:
    @pytest.mark.parametrize("what", ["actor:{principal}:minute", "tenant:day", "key:{key}:hour"])
    async def test_a_limit_that_cannot_be_read_refuses_recovery_and_not_anonymization(
        self, custody: Custody, officer: Person, app: Person, redis: Redis, record: Any, what: str
    ) -> None:
        redis.set(f"kc:{{acme}}:limit:{what.format(principal=officer.principal.id, key=record['key_id'])}", "no hash")
        with pytest.raises(ServiceUnavailable):
            await recovered(custody, officer, record)
        await anonymized(custody, app)

    async def test_without_redis_there_is_no_recovery(self, home: Path, tmp_path: Path) -> None:
        server = RedisServer(tmp_path / "own").start()
        custody = await Custody.connect(settings_for(home, server.url))
        try:
            who = await person(custody, "officer")
            server.kill()
            with pytest.raises(ServiceUnavailable):
                await job_for(custody, who, "recover")
            assert (await custody.ready())["custody_redis"] == "down"
            server.start()
            await job_for(custody, who, "recover")
        finally:
            await custody.close()
            server.stop()


async def test_a_key_that_is_down_is_not_the_callers_failure(
    custody: Custody, officer: Person, record: Any, home: Path
) -> None:
    custody.limiter._limits = limits()
    (home / "kek.json").rename(home / "kek.away")
    for _ in range(6):
        with pytest.raises(Problem, match="cannot be read"):
            await recovered(custody, officer, record)
    (home / "kek.away").rename(home / "kek.json")
    await recovered(custody, officer, record)
