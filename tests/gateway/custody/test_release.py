"""A lease that no job will use is given back at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from gateway.custody.service import Custody
from gateway.custody.store import KeyState
from shared.problems import AuditUnavailable, CallNotSigned, LeaseRefused
from tests.gateway.custody.support import Clock, Http, Job, Person, break_trail, events, job_for, key_for

pytestmark = pytest.mark.anyio


@pytest.fixture
async def key(custody: Custody, custodian: Person) -> KeyState:
    return await key_for(custody, custodian, default=True)


@pytest.fixture
async def job(custody: Custody, app: Person, key: KeyState) -> Job:
    return await job_for(custody, app, "anonymize")


async def test_nothing_of_it_is_left_and_nothing_opens_with_it(
    custody: Custody, job: Job, redis: Redis, home: Path
) -> None:
    await job.redeem()
    await custody.release_lease(job.context, job.lease)
    assert not list(redis.scan_iter(f"*{job.lease}*"))
    for opens in (job.redeem, job.seal):
        with pytest.raises(LeaseRefused):
            await opens()
    with pytest.raises(LeaseRefused):
        await custody.file_key(job.lease)
    assert events(home, "lease.release")[-1]["lease"] == job.lease


async def test_one_that_ran_out_is_released_as_well(custody: Custody, job: Job, clock: Clock, redis: Redis) -> None:
    clock.advance(3601)
    await custody.release_lease(job.context, job.lease)
    assert not list(redis.scan_iter(f"*{job.lease}*"))


async def test_another_job_does_not_release_it(custody: Custody, app: Person, job: Job, home: Path) -> None:
    other = await job_for(custody, app, "anonymize")
    for context in (other.context, replace(other.context, lease=job.lease)):
        with pytest.raises(LeaseRefused):
            await custody.release_lease(context, job.lease)
    assert events(home, "lease.release")[-1]["decision"] == "denied"
    assert await job.redeem()


async def test_it_stays_where_the_trail_cannot_be_written(custody: Custody, job: Job, redis: Redis, home: Path) -> None:
    break_trail(home)
    with pytest.raises(AuditUnavailable):
        await custody.release_lease(job.context, job.lease)
    assert list(redis.scan_iter(f"*lease:{job.lease}"))


async def test_the_door_takes_a_call_that_the_gateway_signed(custody: Custody, door: Http, job: Job) -> None:
    path = f"/internal/leases/{job.lease}/release"
    forged = await door.knock(path, {"context": job.context.signed("x" * 40)}, custody.now())
    assert forged.json()["code"] == CallNotSigned.code
    answer = await door.knock(path, {"context": job.context.signed(custody.internal_secret)}, custody.now())
    assert (answer.status_code, answer.content) == (204, b"")
    with pytest.raises(LeaseRefused):
        await job.redeem()
