"""A detector at work: pictures in, verdicts out. A plain object without a server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from services.dlsr.conformal import benjamini_hochberg, drift
from services.dlsr.detector import Detector
from services.dlsr.detector import Verdict as Found
from services.dlsr.encoding import encode_prepared, prepared
from services.dlsr.intake import MOST_NAMED, PART, unreadable
from services.dlsr.service import (
    Compared,
    CompareRequest,
    Kind,
    NotCalibrated,
    Scored,
    ScoreRequest,
    Scores,
    Verdict,
)
from services.dlsr.trainings import calibrated, fitted
from shared.archivework import Item, chunks, worked
from shared.images import Pixels
from shared.jobcontext import JobContext
from shared.manifests import entries_of
from shared.problems import Problem
from shared.types import Archive, Image


class DlsrPipeline:
    """One detector on one device."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.memory_bytes = detector.memory_bytes
        self._prepared = partial(prepared, config=detector.encoder.config)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Self:
        """The detector of a folder. Raises `WeightsDamaged`, `EncoderMismatch`."""
        return cls(Detector.load(folder, device))

    # the operations

    def score(self, requests: Sequence[ScoreRequest], job: JobContext) -> list[Scores | Problem]:
        """Requests that agree in what they ask for: the pictures of all are encoded and scored together."""
        first = requests[0]
        alpha = self.detector.config.alpha if first.alpha is None else first.alpha
        said = {"alpha": alpha, "model": job.members[0].model}
        if first.archive is not None:
            work = partial(self._scored_items, first)
            return [
                Scores(results=None, archive=worked(first.archive, job, self._prepared, work, at_once=PART), **said)
            ]
        job.stage("scoring")
        scored = self._scored([self._prepared(image.picture) for one in requests for image in one.images or ()], first)
        ends = accumulate((len(one.images or ()) for one in requests), initial=0)
        return [Scores(results=scored[start:end], archive=None, **said) for start, end in pairwise(ends)]

    def compare(self, requests: Sequence[CompareRequest], job: JobContext) -> list[Compared | Problem]:
        """One batch of pictures as a whole."""
        (request,) = requests
        kind = request.kind or self.detector.config.kind
        if kind not in self.detector.calibration:
            raise NotCalibrated(f"The detector has no calibration for {kind}.", kinds=list(self.detector.calibration))
        p_values, ids, left_out = self._p_values(request, kind, job)
        statistic, p_value = drift(p_values, len(self.detector.calibration[kind]))
        strange = np.flatnonzero(benjamini_hochberg(p_values, request.fdr))
        return [
            Compared(
                statistic=round(statistic, 6),
                p_value=p_value,
                is_drift=p_value <= request.alpha,
                pictures=len(p_values),
                mean_p_value=round(float(p_values.mean()), 6),
                strange=[ids[place] for place in strange],
                unreadable=left_out,
                kind=kind,
                model=job.members[0].model,
            )
        ]

    fit = staticmethod(fitted)
    calibrate = staticmethod(calibrated)

    # steps

    def _scored(self, pixels: Sequence[Pixels], request: ScoreRequest) -> list[Scored]:
        features = encode_prepared(self.detector.encoder, pixels)
        found = self.detector.score(features, request.kinds, request.alpha, request.draws)
        return [_scored(verdicts) for verdicts in found]

    def _scored_items(self, request: ScoreRequest, items: Sequence[Item[Pixels]]) -> list[Scored]:
        return self._scored([item.content for item in items], request)

    def _p_values(self, request: CompareRequest, kind: Kind, job: JobContext) -> tuple[Any, list[str], Any]:
        """P-values (N,) of the pictures, what they are called, and what was left out."""
        if request.archive is None:
            images: Sequence[Image] = request.images or ()
            features = encode_prepared(self.detector.encoder, [self._prepared(image.picture) for image in images])
            return self.detector.p_values(features, kind), [str(place) for place in range(len(images))], []
        archive: Archive = request.archive
        for chunk in chunks(archive, job, self._prepared, PART):
            features = encode_prepared(self.detector.encoder, [item.content for item in chunk.items])
            output = {
                "p": self.detector.p_values(features, kind).tolist(),
                "ids": [item.entry.id for item in chunk.items],
                "bad": [(entry.id, problem.code) for entry, problem in chunk.problems],
            }
            job.unit(chunk.index, chunk.of, output)
        parts = [output for _, output in sorted(job.outputs().items())]
        left_out = unreadable((part["bad"] for part in parts), len(entries_of(archive.opened)))
        p_values = np.array([p for part in parts for p in part["p"]])
        return p_values, [name for part in parts for name in part["ids"]], list(left_out[:MOST_NAMED])


def _scored(verdicts: dict[Kind, Found]) -> Scored:
    kind, first = next(iter(verdicts.items()))
    scores = {name: _verdict(verdict) for name, verdict in verdicts.items()}
    return Scored(kind=kind, p_value=first.p_value, is_ood=first.is_ood, scores=scores)


def _verdict(found: Found) -> Verdict:
    return Verdict(
        score=found.score,
        p_value=found.p_value,
        is_ood=found.is_ood,
        threshold=found.threshold if found.threshold is not None and math.isfinite(found.threshold) else None,
        contributions=list(found.contributions),
    )
