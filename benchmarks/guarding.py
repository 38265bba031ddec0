"""Detectors: the time to fit one over HTTP, pictures scored a second, and what a guard adds to an answer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import skimage.data

from benchmarks import servers
from benchmarks.processes import cpu_s
from tenfold import Client
from tests.fleet import DIAGNOSTIC, MAIN_JOB
from tests.services.dlsr.pictures import wave, zipped

DLSR = {"dlsr": "services.dlsr.service:service"}
FITTED, SCORED, SIDE_PX = 2_000, 2_000, 96
GUARD_FITTED, ROUNDS, WARM = 400, 15, 2
WITHIN_S = 1_800.0


def fitting(_: float) -> dict[str, Any]:
    """Fit on 2,000 pictures and score as many, each as one request with one archive: decoding and all.

    CPU seconds are those of the trainer and of the worker: what other work on the machine does not change much.
    """
    archive = _waves(FITTED)
    with (
        servers.fleet(DIAGNOSTIC | DLSR, trainer=True) as ours,
        Client(ours.url, ours.key("app"), timeout_s=WITHIN_S) as client,
    ):
        trainer, worker = [ours.pids()["trainer"]], [ours.pids()["worker"]]
        fit_s = _seconds(lambda: client.dlsr.fit(archive, name="bench", seed=0, wait_s=WITHIN_S))
        fit_cpu_s = cpu_s(trainer)
        client.dlsr.score(wave(0), model="dlsr/bench")  # loads it
        before_s = cpu_s(worker)
        score_s = _seconds(lambda: client.dlsr.score(archive=archive, model="dlsr/bench", wait_s=WITHIN_S))
        score_cpu_s = cpu_s(worker) - before_s
    return {
        "pictures": FITTED,
        "side_px": SIDE_PX,
        "threads": 1,
        "fit_s": round(fit_s, 1),
        "fit_cpu_s": round(fit_cpu_s, 1),
        "scored_a_second": round(SCORED / score_s, 1),
        "scored_a_cpu_second": round(SCORED / score_cpu_s, 1),
        "bars": {"fitted within 2 min": fit_s <= 120, "100 pictures a second": SCORED / score_s >= 100},
    }


def guard(_: float) -> dict[str, Any]:
    """One caller anonymizes a photograph with and without a guard, in turn: medians of time and of all CPU."""
    photograph = skimage.data.astronaut()
    methods = DIAGNOSTIC | MAIN_JOB | DLSR
    with servers.fleet(methods, trainer=True) as ours, Client(ours.url, ours.key("app"), timeout_s=WITHIN_S) as client:
        fitted = client.dlsr.fit(_waves(GUARD_FITTED), name="bench", seed=0, wait_s=WITHIN_S)
        calls: dict[str, Callable[[], object]] = {
            "plain": lambda: client.ifadit.anonymize(photograph),
            "guarded": lambda: client.ifadit.anonymize(photograph, guard=fitted.model),
            "score_alone": lambda: client.dlsr.score(wave(0), model=fitted.model),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for _ in range(ROUNDS + WARM):
            for name, call in calls.items():
                before_s = cpu_s(ours.pids().values())
                seconds = _seconds(call)
                times[name].append((seconds, cpu_s(ours.pids().values()) - before_s))
    medians = {
        name: [statistics.median(column) * 1000 for column in zip(*kept[WARM:], strict=True)]
        for name, kept in times.items()
    }
    return {
        "rounds": ROUNDS,
        "ms": {name: round(wall, 1) for name, (wall, _) in medians.items()},
        "cpu_ms": {name: round(cpu, 1) for name, (_, cpu) in medians.items()},
        "ratio": round(medians["guarded"][0] / medians["plain"][0], 3),
        "cpu_ratio": round(medians["guarded"][1] / medians["plain"][1], 3),
    }


def _waves(count: int) -> bytes:
    return zipped({f"{seed}.png": wave(seed, SIDE_PX) for seed in range(count)})


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
