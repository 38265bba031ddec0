"""What other work does to a method: a training and a long archive beside it; and what time does to an installation."""

from __future__ import annotations

import asyncio
import hashlib
import os
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx

from benchmarks import servers
from benchmarks.load import closed, open_loop, post
from benchmarks.processes import anonymous_mib, pss_mib
from tests.fleet import DIAGNOSTIC, Fleet

NEIGHBOUR = {"neighbour": "tests.diagnostic.neighbour:service"}
UNIT_S = 0.4
UNITS = 500
FILE_BYTES = 48 * 2**20
UPLOADERS = 4
PIECE = os.urandom(2**20)


def mixed(seconds: float) -> dict[str, Any]:
    """p95 of a method's no-op alone, and while the other trains and works through an archive of 500 units."""
    call = post("/v1/neighbour/noop", {"text": "x"})
    with servers.fleet(DIAGNOSTIC | NEIGHBOUR, trainer=True) as ours:
        headers = ours.headers()
        alone = asyncio.run(closed(ours.url, call, concurrency=2, seconds=seconds, warm_up_s=2, headers=headers))
        training = _submit(ours, "train", {"name": "beside", "steps": 10_000, "seconds_a_step": 0.01})
        archive = _submit(ours, "sleep", {"seconds": UNIT_S, "units": UNITS})
        ours.until(lambda: {_state(ours, training), _state(ours, archive)} == {"running"}, 60)
        beside = asyncio.run(closed(ours.url, call, concurrency=2, seconds=seconds, warm_up_s=3, headers=headers))
        states = {"training": _state(ours, training), "archive": _state(ours, archive)}
    bound = alone.percentile(0.95) + UNIT_S + 1.0
    return {
        "alone": alone.summary(),
        "beside": beside.summary(),
        "unit_s": UNIT_S,
        "the_others_afterwards": states,
        "bars": {
            "p95 beside <= p95 alone + one unit + 1 s": beside.percentile(0.95) <= bound,
            "the others ran all the time": set(states.values()) == {"running"},
        },
    }


def _submit(ours: Fleet, operation: str, body: dict[str, Any]) -> str:
    headers = ours.headers() | {"Prefer": "respond-async"}
    answer = httpx.post(f"{ours.url}/v1/diagnostic/{operation}", headers=headers, json=body, timeout=60)
    answer.raise_for_status()
    return str(answer.json()["id"])


def _state(ours: Fleet, job_id: str) -> str:
    return str(httpx.get(f"{ours.url}/v1/jobs/{job_id}", headers=ours.headers(), timeout=60).json()["state"])


def soak(seconds: float) -> dict[str, Any]:
    """A steady 20 calls a second for minutes: anonymous memory of gateway and worker over time, by least squares.

    The first third warms up. The broker keeps finished jobs for a day, so its memory grows, by design; it is shown.
    """
    with servers.fleet() as ours:
        samples: list[tuple[float, dict[str, float]]] = []

        async def run() -> Any:
            watching = asyncio.create_task(watch())
            load = await open_loop(
                ours.url,
                post("/v1/diagnostic/noop", {"text": "x"}),
                per_second=20,
                seconds=seconds,
                headers=ours.headers(),
            )
            watching.cancel()
            return load

        async def watch() -> None:
            began = time.monotonic()
            while True:
                memory = {name: anonymous_mib(pid) for name, pid in ours.pids().items()}
                samples.append((time.monotonic() - began, memory))
                await asyncio.sleep(max(1.0, seconds / 180))

        load = asyncio.run(run())
    steady = [sample for sample in samples if sample[0] > seconds / 3]
    slopes = {
        name: statistics.linear_regression([t for t, _ in steady], [memory[name] for _, memory in steady]).slope * 60
        for name in samples[0][1]
    }
    growth = {name: slopes[name] * seconds / 60 for name in ("gateway", "worker")}
    return {
        "seconds": seconds,
        **load.summary(),
        "mib_a_minute": {name: round(slope, 3) for name, slope in slopes.items()},
        "mib_at_the_end": {name: round(mib, 1) for name, mib in samples[-1][1].items()},
        "bars": {
            "gateway and worker grow by less than 5 % over the whole": all(
                growth[name] < 0.05 * samples[-1][1][name] for name in growth
            ),
            "every call was answered": set(load.statuses) == {"200"},
        },
    }


def streaming(seconds: float) -> dict[str, Any]:
    """Files of 48 MiB up and down, four at a time: bytes a second, and memory of the gateway while they pass."""
    with servers.fleet() as ours:
        gateway = ours.pids()["gateway"]
        idle = pss_mib([gateway])
        up_s, down_s, peak, files = asyncio.run(_stream(ours, gateway, seconds))
    mib = FILE_BYTES / 2**20
    return {
        "file_mib": mib,
        "at_once": UPLOADERS,
        "files": files,
        "up_mib_a_second": round(files * mib / up_s, 1),
        "down_mib_a_second": round(files * mib / down_s, 1),
        "gateway_mib": {"idle": round(idle, 1), "peak": round(peak, 1)},
        "bars": {"memory grows by less than one file": peak - idle < mib},
    }


async def _stream(ours: Fleet, gateway: int, seconds: float) -> tuple[float, float, float, int]:
    peak, up_s, down_s, files = 0.0, 0.0, 0.0, 0
    digest = hashlib.sha256(PIECE * (FILE_BYTES // 2**20)).hexdigest()
    async with httpx.AsyncClient(base_url=ours.url, headers=ours.headers(), timeout=300, trust_env=False) as client:

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, pss_mib([gateway]))
                await asyncio.sleep(0.05)

        watching = asyncio.create_task(watch())
        began = time.perf_counter()
        while files == 0 or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            names = await asyncio.gather(*(_upload(client) for _ in range(UPLOADERS)))
            up_s += time.perf_counter() - start
            start = time.perf_counter()
            digests = await asyncio.gather(*(_download(client, name) for name in names))
            down_s += time.perf_counter() - start
            if set(digests) != {digest}:
                raise RuntimeError("what came back is not what was sent")
            await asyncio.gather(*(client.delete(f"/v1/files/{name}") for name in names))
            files += len(names)
        watching.cancel()
    return up_s, down_s, peak, files


async def _upload(client: httpx.AsyncClient) -> str:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in _pieces():
            yield piece

    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(FILE_BYTES)}
    answer = await client.post("/v1/files", headers=headers, content=pieces())
    answer.raise_for_status()
    return str(answer.json()["file"])


def _pieces() -> Iterator[bytes]:
    return (PIECE for _ in range(FILE_BYTES // 2**20))


async def _download(client: httpx.AsyncClient, name: str) -> str:
    digest = hashlib.sha256()
    async with client.stream("GET", f"/v1/files/{name}") as answer:
        answer.raise_for_status()
        async for piece in answer.aiter_bytes():
            digest.update(piece)
    return digest.hexdigest()
