"""Load on a server: closed (so many callers, each waits for its answer) or open (so many calls a second)."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

TIMEOUT_S = 120.0
MOST_OPEN = 2000  # calls of an open loop that may be under way; beyond it the server is overrun, which is a result

Call = Callable[[httpx.AsyncClient, int], Awaitable[httpx.Response]]


@dataclass
class Measured:
    """Answers within the measured time. Times are seconds."""

    wall_s: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    @property
    def rps(self) -> float:
        return len(self.latencies) / self.wall_s if self.wall_s else 0.0

    def percentile(self, share: float) -> float:
        """Seconds within which this share (0..1) of the calls was answered."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    def summary(self) -> dict[str, Any]:
        quantiles = {f"p{int(100 * share)}_ms": round(1000 * self.percentile(share), 2) for share in (0.5, 0.95, 0.99)}
        mean = round(1000 * statistics.fmean(self.latencies), 2) if self.latencies else None
        return {"calls": len(self.latencies), "rps": round(self.rps, 1), "mean_ms": mean, **quantiles} | {
            "statuses": dict(self.statuses)
        }


def post(path: str, json: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Call:
    """The same call every time."""

    async def call(client: httpx.AsyncClient, _: int) -> httpx.Response:
        return await client.post(path, json=json, headers=headers)

    return call


async def closed(
    url: str,
    call: Call,
    *,
    concurrency: int,
    seconds: float,
    warm_up_s: float = 1.0,
    headers: Mapping[str, str] | None = None,
    before: Callable[[], None] = lambda: None,
) -> Measured:
    """So many callers for so long, after a warm-up that is not counted. `before` is called between the two."""
    async with _client(url, concurrency, headers) as client:
        await _callers(client, call, concurrency, warm_up_s)
        before()
        return await _callers(client, call, concurrency, seconds)


async def _callers(client: httpx.AsyncClient, call: Call, concurrency: int, seconds: float) -> Measured:
    measured, began = Measured(), time.perf_counter()
    number = iter(range(10**9))

    async def caller() -> None:
        while time.perf_counter() - began < seconds:
            await _one(client, call, next(number), measured)

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    measured.wall_s = time.perf_counter() - began
    return measured


async def open_loop(
    url: str, call: Call, *, per_second: float, seconds: float, headers: Mapping[str, str] | None = None
) -> Measured:
    """Calls at a fixed rate, whatever the answers do: latencies count from when a call was due."""
    async with _client(url, MOST_OPEN, headers) as client:
        measured, began, calls = Measured(), time.perf_counter(), set[asyncio.Task[None]]()
        for number in range(int(per_second * seconds)):
            due = began + number / per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if len(calls) >= MOST_OPEN:
                measured.statuses["not sent"] += 1
                continue
            task = asyncio.create_task(_one(client, call, number, measured, due))
            calls.add(task)
            task.add_done_callback(calls.discard)
        await asyncio.gather(*calls)
        measured.wall_s = time.perf_counter() - began
        return measured


async def _one(
    client: httpx.AsyncClient, call: Call, number: int, measured: Measured, due: float | None = None
) -> None:
    began = time.perf_counter() if due is None else due
    try:
        answer = await call(client, number)
    except httpx.TransportError as error:
        measured.statuses[type(error).__name__] += 1
        return
    measured.statuses[str(answer.status_code)] += 1
    if answer.is_success:
        measured.latencies.append(time.perf_counter() - began)


def _client(url: str, connections: int, headers: Mapping[str, str] | None) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S, limits=limits, trust_env=False)
