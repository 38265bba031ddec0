"""Ten thousand jobs that wait: whether the last ones are taken and done as fast as the first, and what they weigh."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import redis

from benchmarks import servers
from shared.jobs import prefix

CALLERS = 16
PART = 1000
METHOD = "diagnostic"


def backlog(jobs: int) -> dict[str, Any]:
    """Queue so many no-op jobs while no worker takes them, then let one do them all."""
    with servers.fleet() as ours, ours.broker() as broker:
        ours.kill("worker")
        ours.until(lambda: broker.llen(METHOD) == 0, 30)
        before = broker.info("memory")["used_memory"]
        parts = asyncio.run(_enqueue(ours.url, ours.headers(), jobs))
        weight = (broker.info("memory")["used_memory"] - before) / jobs
        ours.start("worker")
        done = _completions(broker, jobs)
    enqueue, complete = _flatness(parts), _flatness(done)
    return {
        "jobs": jobs,
        "broker_bytes_a_job": round(weight),
        "enqueue": enqueue,
        "complete": complete,
        "bars": {
            "enqueue: last 1,000 within 20 % of the first": enqueue["last_over_first"] >= 0.8,
            "complete: last 1,000 within 20 % of the first": complete["last_over_first"] >= 0.8,
            "broker <= 2 KB a job": weight <= 2048,
        },
    }


def _flatness(seconds: list[float]) -> dict[str, Any]:
    """Jobs a second in every part. The first part warms up and does not count where there are enough."""
    rates = [PART / s for s in seconds]
    counted = rates[1:] if len(rates) > 4 else rates
    return {"rps": [round(rate, 1) for rate in rates], "last_over_first": round(counted[-1] / counted[0], 2)}


async def _enqueue(url: str, headers: dict[str, str], jobs: int) -> list[float]:
    headers = headers | {"Prefer": "respond-async"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        parts = []
        for _ in range(jobs // PART):
            numbers = iter(range(PART))
            began = time.perf_counter()

            async def caller(numbers: Any = numbers) -> None:
                for _ in numbers:
                    answer = await client.post("/v1/diagnostic/noop", json={"text": "queued"})
                    if answer.status_code != 202:
                        raise RuntimeError(f"{answer.status_code}: {answer.text}")

            await asyncio.gather(*(caller() for _ in range(CALLERS)))
            parts.append(time.perf_counter() - began)
        return parts


def _completions(broker: redis.Redis, jobs: int) -> list[float]:
    """Seconds of every thousand, by the broker's own list of what waits."""
    waiting: Any = broker.zcard(f"{prefix(METHOD)}queued")
    while waiting == jobs:  # until the worker takes the first
        time.sleep(0.02)
        waiting = broker.zcard(f"{prefix(METHOD)}queued")
    parts, began = [], time.perf_counter()
    for left in range(jobs - PART, -1, -PART):
        while waiting > left:
            time.sleep(0.02)
            waiting = broker.zcard(f"{prefix(METHOD)}queued")
        now = time.perf_counter()
        parts.append(now - began)
        began = now
    return parts
