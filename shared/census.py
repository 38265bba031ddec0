"""What the job store knows of all methods at one moment: for `/metrics`, and whoever scales workers by it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from shared.jobs import QueueKind, prefix
from shared.jobs import queues as queues_of
from shared.problems import ServiceUnavailable

ALIVE_S = 20  # a worker that was silent for so long is none; as in jobs.lua
LOOKED_AT = 10  # messages in which a queue's oldest job is looked for: those of cancelled jobs lie between
_FACTS = 6  # answers a method in the first round trip


@dataclass(frozen=True)
class Queue:
    """One of a method's queues. `oldest_s`: since its oldest waiting job was last queued; 0 if none waits."""

    kind: QueueKind
    messages: int
    oldest_s: float


@dataclass(frozen=True)
class Census:
    """The numbers of one method: of the moment, and of all jobs since the store was made."""

    method: str
    workers: int
    queued: int
    running: int
    queues: tuple[Queue, ...]
    ended: Mapping[tuple[str, str], int]
    """Jobs by operation and terminal state."""
    succeeded: int
    service_s: float
    """Seconds of the last attempts of those that succeeded."""


async def taken(client: redis.asyncio.Redis, methods: Sequence[str]) -> list[Census]:
    """The numbers of these methods, in three round trips whatever their count. Raises `ServiceUnavailable`."""
    queues = [(method, kind, queue) for method in methods for kind, queue in queues_of(method).items()]
    try:
        seconds, microseconds = await client.time()
        now = seconds + microseconds / 1e6
        async with client.pipeline(transaction=False) as pipe:
            for method in methods:
                p = prefix(method)
                pipe.zcount(f"{p}workers", (seconds - ALIVE_S) * 1000, "+inf")
                for kind in ("", ".train"):
                    pipe.zcard(f"{p}queued{kind}")
                    pipe.zcard(f"{p}active{kind}")
                pipe.hgetall(f"{p}stats")
            for _, _, queue in queues:
                pipe.llen(queue)
                pipe.lrange(queue, -LOOKED_AT, -1)
            found = await pipe.execute()
            listed = found[_FACTS * len(methods) :]
            for (method, kind, _), messages in zip(queues, listed[1::2], strict=True):
                # "" is no job, and keeps the list from being empty, which the command refuses
                waiting_set = f"{prefix(method)}queued{'.train' if kind == 'train' else ''}"
                pipe.zmscore(waiting_set, ["", *map(_job_of, messages)])
            since = await pipe.execute()
    except RedisError as error:
        raise ServiceUnavailable("The job store does not answer.", retry_after_s=2) from error
    waiting: dict[str, list[Queue]] = {method: [] for method in methods}
    for (method, kind, _), depth, scores in zip(queues, listed[::2], since, strict=True):
        waiting[method].append(Queue(kind, depth, _age_s(scores, now)))
    return [
        _census(method, found[_FACTS * index : _FACTS * (index + 1)], tuple(waiting[method]))
        for index, method in enumerate(methods)
    ]


def _job_of(message: str) -> str:
    job_id: str = json.loads(message)["headers"]["id"]
    return job_id


def _age_s(since_ms: Sequence[float | None], now: float) -> float:
    return max((max(0.0, now - one / 1000) for one in since_ms if one is not None), default=0.0)


def _census(method: str, facts: Sequence[Any], queues: tuple[Queue, ...]) -> Census:
    workers, queued, running, queued_train, running_train, stats = facts
    ended = {}
    for name, count in stats.items():
        if name.startswith("ended:"):
            _, operation, state = name.split(":")
            ended[operation, state] = int(count)
    succeeded, service_ms = int(stats.get("finished", 0)), int(stats.get("service_ms", 0))
    return Census(
        method, workers, queued + queued_train, running + running_train, queues, ended, succeeded, service_ms / 1000
    )
