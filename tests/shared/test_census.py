"""The numbers of all methods, read from a real store."""

from __future__ import annotations

import asyncio

import pytest
import redis
import redis.asyncio
from prometheus_client.parser import text_string_to_metric_families

from shared import census, ids
from shared.census import Census
from shared.jobs import Jobs, NewJob, WorkerJobs
from shared.metrics import JobSeries, page
from shared.problems import Problem, ServiceUnavailable
from tests.redis_server import RedisServer, free_port

METHODS = ["first", "second"]


def counted(url: str) -> list[Census]:
    async def run() -> list[Census]:
        async with redis.asyncio.Redis.from_url(url, decode_responses=True) as client:
            return await census.taken(client, METHODS)

    return asyncio.run(run())


def enqueued(url: str, method: str, queue: str) -> str:
    async def run() -> str:
        fields = {"operation": "noop", "principal": "prn_1", "attempts": "2", "ttl_ms": "60000"}
        job = NewJob(ids.ordered_id("job"), method, queue, "acme", fields, 60.0, 100, needs_worker=False)
        async with redis.asyncio.Redis.from_url(url, decode_responses=True) as client:
            return (await Jobs(client).create(job))[1]

    return asyncio.run(run())


def test_an_empty_store_has_numbers_too(fresh_redis: redis.Redis, broker: RedisServer) -> None:
    first, second = counted(broker.url)
    assert (first.method, second.method) == ("first", "second")
    assert (first.queued, first.running, first.workers, first.succeeded) == (0, 0, 0, 0)
    assert [(one.kind, one.messages, one.oldest_s) for one in first.queues] == [("compute", 0, 0.0), ("train", 0, 0.0)]


def test_depth_and_age_are_of_each_queue(fresh_redis: redis.Redis, broker: RedisServer) -> None:
    cancelled, waiting = (enqueued(broker.url, "first", "first") for _ in range(2))
    training = enqueued(broker.url, "first", "first.train")
    fresh_redis.zincrby("tf:first:queued", -600_000, cancelled)
    fresh_redis.zincrby("tf:first:queued", -20_000, waiting)
    fresh_redis.zincrby("tf:first:queued.train", -3_600_000, training)
    fresh_redis.zrem("tf:first:queued", cancelled)  # its message still lies in the list
    first, second = counted(broker.url)
    compute, train = first.queues
    assert (compute.messages, train.messages) == (2, 1)
    assert 20 <= compute.oldest_s < 600
    assert 3600 <= train.oldest_s < 4200
    assert (first.queued, second.queued) == (2, 0)


def test_every_end_is_counted_once(fresh_redis: redis.Redis, broker: RedisServer) -> None:
    jobs = WorkerJobs(fresh_redis)
    for _ in range(3):
        record = jobs.start("first", enqueued(broker.url, "first", "first"), "w")
        assert record is not None
        jobs.succeed(record, {})
    failing = jobs.start("first", enqueued(broker.url, "first", "first"), "w")
    assert failing is not None
    jobs.fail(failing, Problem())
    first, _ = counted(broker.url)
    assert first.ended == {("noop", "succeeded"): 3, ("noop", "failed"): 1}
    assert first.succeeded == 3
    shown = {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page(JobSeries([first])).decode())
        if family.name == "tenfold_jobs_ended"
        for sample in family.samples
    }
    assert shown == {("first", "noop", "succeeded"): 3, ("first", "noop", "failed"): 1}


def test_a_job_remembers_when_it_was_last_queued(fresh_redis: redis.Redis, broker: RedisServer) -> None:
    job_id = enqueued(broker.url, "first", "first")
    fresh_redis.zincrby("tf:first:queued", -5_000, job_id)
    record = WorkerJobs(fresh_redis).start("first", job_id, "w")
    assert record is not None
    assert 5_000 <= int(record.fields["started_at"]) - int(record.fields["queued_at"]) < 60_000


def test_a_store_that_is_away_is_a_problem() -> None:
    with pytest.raises(ServiceUnavailable):
        counted(f"redis://127.0.0.1:{free_port()}/0")
