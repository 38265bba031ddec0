"""A stand-in for `dlsr`: what it finds strange is darkness. It proves the guard's way, and its slow and broken days."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Self

from shared.problems import Problem
from shared.service import Image, JobContext, ModelRef, Request, Response, Service

service = Service("dlsr", title="Darkness", pipeline="tests.diagnostic.detector:Darkness", default_model=None)

SLOW_S = 3.0


class Dim(Problem):
    """The stand-in is out of order."""

    code, status, title = "detector_dim", 503, "The detector is dim."


class ScoreRequest(Request):
    images: list[Image]
    model: ModelRef


class Scored(Response):
    results: list[dict[str, float]]
    alpha: float


class Darkness:
    """Its folder's name says how it behaves."""

    memory_bytes = 0

    @classmethod
    def load(cls, folder: Path | None, device: Any) -> Self:
        return cls()


@service.operation(batch=8, attempts=2)
def score(pipeline: Darkness, requests: list[ScoreRequest], job: JobContext) -> list[Scored | Problem]:
    """The brighter, the larger the p-value."""
    if requests[0].model.startswith("dlsr/broken"):
        return [Dim() for _ in requests]
    if requests[0].model.startswith("dlsr/slow"):
        time.sleep(SLOW_S)
    return [
        Scored(results=[{"p_value": float(image.picture.pixels.mean() / 255)} for image in one.images], alpha=0.05)
        for one in requests
    ]
