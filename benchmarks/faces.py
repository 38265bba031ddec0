"""Faces through the networks of `ifadit/small`, together and one by one: what batching requests is worth here."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from services.ifadit.anonymizer import Ifadit

WEIGHTS = Path("services/ifadit/weights/small")
FACES = 16
ROUNDS = 7


def measure() -> dict[str, float | int]:
    """Seconds a face alone and in a batch, by median of interleaved rounds, and their ratio; peak memory in MiB."""
    networks = Ifadit.load(WEIGHTS)
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(FACES, 3, networks.config.size, networks.config.size, generator=rng)
    k = torch.randn(FACES, networks.config.key_dim, generator=rng)

    def together() -> None:
        networks.anonymize(x, k)

    def alone() -> None:
        for place in range(FACES):
            networks.anonymize(x[place : place + 1], k[place : place + 1])

    with torch.inference_mode():
        rounds = [(_seconds(together), _seconds(alone)) for _ in range(ROUNDS + 1)][1:]  # the first one warms up
    batched, single = (statistics.median(times) / FACES for times in zip(*rounds, strict=True))
    return {
        "faces": FACES,
        "threads": torch.get_num_threads(),
        "alone_ms_a_face": round(single * 1000, 2),
        "batched_ms_a_face": round(batched * 1000, 2),
        "batched_over_alone": round(single / batched, 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
