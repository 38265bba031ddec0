"""What standing behind gateway, service, queue and worker costs, against servers that have none of these."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import servers
from benchmarks.load import Call, Measured, closed, post
from benchmarks.processes import cpu_s, pss_mib
from tests.diagnostic.network import MOST_LAYERS, Thinker, think

MODEL_S = 0.005
CONCURRENCIES = (1, 8, 32)
CHARGE_S = 0.05  # long against what a job costs in CPU: it is the batching that is measured
ROUNDS = 3  # of all servers in turn, so that a neighbour's load meets them alike
BARS = {1: 0.60, 8: 0.65, 32: 0.65}


def noop(seconds: float) -> dict[str, Any]:
    """A job that computes nothing, one caller: its time, and CPU of gateway, worker and both Redis servers a call.

    Milliseconds are the machine's as much as ours. Bare FastAPI's handler of the same name, in the same run, says which
    machine it was.
    """
    with servers.fleet() as ours:
        call = post("/v1/diagnostic/noop", {"text": "x"})
        measured, cpu = _with_cpu(ours.url, call, ours.pids(), seconds, ours.headers())
        crowd = asyncio.run(closed(ours.url, call, concurrency=32, seconds=seconds, headers=ours.headers()))
        memory = {name: round(pss_mib([pid]), 1) for name, pid in ours.pids().items()}
    with servers.bare() as (url, pid):
        bare, bare_cpu = _with_cpu(url, post("/noop", {"layers": 0}), {"bare": pid}, seconds, {})
    return {
        **measured.summary(),
        "cpu_ms_a_call": {**cpu, "all": round(sum(cpu.values()), 2)},
        "concurrency_32": crowd.summary(),
        "pss_mib": memory,
        "bare": {"p50_ms": round(1000 * bare.percentile(0.5), 2), "cpu_ms": bare_cpu["bare"]},
        "bars": {
            "p50_ms <= 6": measured.percentile(0.5) <= 0.006,
            "cpu_ms <= 4": sum(cpu.values()) <= 4,
        },
    }


def _with_cpu(
    url: str, call: Call, pids: Mapping[str, int], seconds: float, headers: Mapping[str, str]
) -> tuple[Measured, dict[str, float]]:
    """One caller, and milliseconds of CPU a call of each process."""
    began: dict[str, float] = {}

    def mark() -> None:
        began.update({name: cpu_s([pid]) for name, pid in pids.items()})

    measured = asyncio.run(closed(url, call, concurrency=1, seconds=seconds, warm_up_s=2, headers=headers, before=mark))
    calls = max(len(measured.latencies), 1)
    return measured, {name: round(1000 * (cpu_s([pid]) - began[name]) / calls, 2) for name, pid in pids.items()}


def layers_for(seconds: float) -> tuple[int, float]:
    """How many layers take so long alone on one thread here and now, and what they take."""
    torch.set_num_threads(1)
    network = Thinker()
    with torch.inference_mode():

        def once(layers: int) -> float:
            times = []
            for _ in range(15):
                began = time.perf_counter()
                think(network, [1], layers)
                times.append(time.perf_counter() - began)
            return statistics.median(times)

        once(8)
        a_layer = once(16) / 16
        layers = max(1, min(MOST_LAYERS, round(seconds / a_layer)))
        return layers, once(layers)


def model(seconds: float) -> dict[str, Any]:
    """The same torch model of 5 ms behind Tenfold, bare FastAPI and LitServe: calls a second, and their ratios.

    `alone` runs one request after the other, as the others do; `batched` is what a method gets that declares a batch.
    Bare FastAPI comes in two forms: `async def`, one model at a time; `def`, in threads, on as many cores as there are.
    """
    layers, model_s = layers_for(MODEL_S)
    body = {"layers": layers}
    with tempfile.TemporaryDirectory(prefix="tenfold-litserve-") as folder:
        python = servers.litserve_environment(Path(folder))
        with servers.fleet() as ours, servers.bare() as (bare_url, _):
            lit = servers.litserve(python) if python else None
            lit_url = lit.__enter__()[0] if lit else None
            try:
                targets = {
                    "batched": (ours.url, post("/v1/diagnostic/think", body), ours.headers()),
                    "alone": (ours.url, post("/v1/diagnostic/think-alone", body), ours.headers()),
                    "bare": (bare_url, post("/think", body), {}),
                    "bare_in_threads": (bare_url, post("/think-in-threads", body), {}),
                    **({"litserve": (lit_url, post("/think", body), {})} if lit_url else {}),
                }
                rows = {concurrency: _round_robin(targets, concurrency, seconds) for concurrency in CONCURRENCIES}
            finally:
                if lit:
                    lit.__exit__(None, None, None)
    return {
        "model_ms": round(1000 * model_s, 2),
        "layers": layers,
        "litserve": "measured" if python else "could not be installed",
        "by_concurrency": rows,
        "bars": {f"alone/bare at {c} >= {bar}": rows[c]["ratios"]["alone/bare"] >= bar for c, bar in BARS.items()},
    }


def _round_robin(targets: dict[str, Any], concurrency: int, seconds: float) -> dict[str, Any]:
    rounds: dict[str, list[Measured]] = {name: [] for name in targets}
    for _ in range(ROUNDS):
        for name, (url, call, headers) in targets.items():
            measured = asyncio.run(
                closed(url, call, concurrency=concurrency, seconds=seconds / ROUNDS, warm_up_s=0.5, headers=headers)
            )
            if not measured.latencies:
                raise RuntimeError(f"{name} answered no call: {dict(measured.statuses)}")
            rounds[name].append(measured)
    rps = {name: statistics.median(one.rps for one in measured) for name, measured in rounds.items()}
    p50 = {name: statistics.median(one.percentile(0.5) for one in measured) for name, measured in rounds.items()}
    others = [name for name in targets if name not in ("alone", "batched")]
    ratios = {f"{mine}/{other}": rps[mine] / rps[other] for mine in ("alone", "batched") for other in others}
    return {
        "rps": {name: round(value, 1) for name, value in rps.items()},
        "p50_ms": {name: round(1000 * value, 1) for name, value in p50.items()},
        "ratios": {name: round(value, 2) for name, value in ratios.items()},
    }


def batching(seconds: float) -> dict[str, Any]:
    """Eight for the price of two, with sixteen callers: calls a second over those of one after the other."""
    with servers.fleet() as ours:
        body = {"seconds": CHARGE_S}
        targets = {
            "batched": (ours.url, post("/v1/diagnostic/charge", body), ours.headers()),
            "alone": (ours.url, post("/v1/diagnostic/charge-alone", body), ours.headers()),
        }
        rounds: dict[str, list[float]] = {name: [] for name in targets}
        for _ in range(ROUNDS):
            for name, (url, call, headers) in targets.items():
                measured = asyncio.run(closed(url, call, concurrency=16, seconds=seconds / ROUNDS, headers=headers))
                rounds[name].append(measured.rps)
    rps = {name: statistics.median(values) for name, values in rounds.items()}
    ratio = rps["batched"] / rps["alone"]
    return {
        "device_s": {"alone": CHARGE_S, "eight": 2 * CHARGE_S},
        "rps": {name: round(value, 1) for name, value in rps.items()},
        "ratio": round(ratio, 2),
        "bars": {"batched/alone >= 3": ratio >= 3},
    }
