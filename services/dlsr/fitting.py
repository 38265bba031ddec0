"""Fit a detector to feature vectors: split, train LFDN, stop on validation, calibrate, check (dlsr.md 1 and 4).

Everything depends on the vectors, their keys, the preset and the seed; nothing on the order in which they come or on
where a run was killed and resumed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.dlsr import schedule as schedules
from services.dlsr.baselines import Baselines
from services.dlsr.detector import Detector, DetectorConfig, total
from services.dlsr.encoder import Encoder
from services.dlsr.encoding import Features
from services.dlsr.layers import by_layer
from services.dlsr.learning import Preset, fit_networks
from services.dlsr.service import TooFewPictures
from shared.training import Report

LEAST, FEW = 200, 1_000
"""Pictures below which a fit is refused, and below which it is warned of."""
CALIBRATION_SHARE, LEAST_CALIBRATION = 0.2, 100
VALIDATION_SHARE, LEAST_VALIDATION, MOST_VALIDATION = 0.05, 20, 500
SUSPICIOUS_SHARE = 0.01
PERMUTED_CAUGHT = 0.9


@dataclass(frozen=True)
class Split:
    """Places of the vectors by what they are for; those of equal pictures are there once."""

    fit: list[int]
    validation: list[int]
    calibration: list[int]


@dataclass(frozen=True)
class Fitted:
    """A detector and what is to be said of its fit.

    figures     counts, losses, self-check: plain JSON
    suspicious  places of the fitted pictures that the detector finds strangest, strangest first
    warnings    sentences
    """

    detector: Detector
    figures: dict[str, Any]
    suspicious: list[int]
    warnings: list[str]


def split(keys: Sequence[str], seed: int, held_back: bool = True) -> Split:
    """Which vectors are for what, by hashes of their keys, so that it does not depend on their order.

    held_back  keep some for the calibration; else there are others for it

    Raises `TooFewPictures`.
    """
    places: dict[str, int] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, place)
    if len(places) < LEAST:
        raise TooFewPictures(
            f"There are {len(places)} different pictures; a detector needs {LEAST}.", least=LEAST, found=len(places)
        )
    ordered = sorted(places, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    chosen = [places[key] for key in ordered]
    calibration = max(LEAST_CALIBRATION, round(CALIBRATION_SHARE * len(chosen))) if held_back else 0
    rest = chosen[calibration:]
    validation = min(MOST_VALIDATION, max(LEAST_VALIDATION, round(VALIDATION_SHARE * len(rest))))
    return Split(rest[validation:], rest[:validation], chosen[:calibration])


def fit(
    features: Features,
    encoder: Encoder,
    preset: Preset,
    preset_name: str,
    seed: int,
    folder: Path,
    on_progress: Report,
    on_checkpoint: Callable[[], None] = lambda: None,
    calibration: Features | None = None,
    mirrored: Features | None = None,
) -> Fitted:
    """Fit a detector to the pictures whose features these are, and calibrate it on a fifth of them.

    folder         where the fit keeps its state: a run that finds the state of an earlier one goes on from there, and
                   ends with the same numbers
    on_progress    is told steps done, steps in all and the losses; what it raises ends the run and leaves the state
    on_checkpoint  is told that the folder's state is worth keeping elsewhere
    calibration    others of their kind to calibrate on: then all of `features` are fitted to
    mirrored       the same pictures from left to right, in the same order, for a preset that has them; of them only
                   those of the fitted pictures are used, and by LFDN alone

    Raises ValueError where there are mirror images and the preset learns from none, or the other way round;
    `TooFewPictures`, `NotLearned`, `shared.training.CheckpointUnusable`.
    """
    if (None if mirrored is None else len(mirrored)) != (len(features) if preset.mirrored else None):
        raise ValueError("a preset that learns from mirror images needs one of every picture, and no other preset any")
    parts = split(features.keys, seed, held_back=calibration is None)
    learned = features.at(parts.fit).vectors
    if mirrored is not None:
        learned = torch.cat([learned, mirrored.at(parts.fit).vectors])
    trained = fit_networks(
        learned,
        features.at(parts.validation).vectors,
        preset,
        seed,
        folder,
        encoder.device,
        on_progress,
        on_checkpoint,
    )
    config = DetectorConfig(
        encoder=encoder.config,
        fingerprint=encoder.fingerprint,
        lfdn=trained.end.config,
        steps=schedules.STEPS,
        draws=preset.draws,
        seed=seed,
        kind=preset.kind,
        alpha=preset.alpha,
        preset=preset_name,
    )
    known = features.at([*parts.fit, *parts.validation])
    baselines = Baselines.fit(known.vectors, seed, encoder.device, preset.bank)
    calibration = features.at(parts.calibration) if calibration is None else calibration
    detector = Detector(config, encoder, trained.end, trained.first, baselines, {}).calibrated(calibration)
    fitted_scores = total(detector.parts(features.at(parts.fit), (preset.kind,))[preset.kind])
    worst = np.argsort(-fitted_scores)[: math.ceil(SUSPICIOUS_SHARE * len(parts.fit))]
    figures = {
        "pictures": {
            "given": len(features),
            "different": len(parts.fit) + len(parts.validation) + len(parts.calibration),
            "fit": len(parts.fit),
            "validation": len(parts.validation),
            "calibration": len(calibration),
        },
        "steps": trained.steps,
        "validation_loss": trained.losses,
        "self_check": self_check(detector, calibration),
    }
    return Fitted(detector, figures, [parts.fit[place] for place in worst], _warnings(figures))


def self_check(detector: Detector, calibration: Features) -> dict[str, Any]:
    """Whether the detector repeats itself to the bit, and the share of channel-permuted pictures that it catches.

    Each vector's channels are permuted within each layer: every value is one that the layer has.
    """
    kind = detector.config.kind
    once, twice = (total(detector.parts(calibration, (kind,))[kind]) for _ in range(2))
    rng = torch.Generator().manual_seed(detector.config.seed)
    layers = by_layer(calibration.vectors, detector.encoder.boundaries)
    permuted = [layer.gather(1, torch.rand(layer.shape, generator=rng).argsort(1)) for layer in layers]
    strange = Features(torch.cat(permuted, dim=1), calibration.keys)
    caught = detector.p_values(strange) <= detector.config.alpha
    return {"repeats": bool(np.array_equal(once, twice)), "permuted_caught": round(float(caught.mean()), 4)}


def _warnings(figures: Mapping[str, Any]) -> list[str]:
    found = []
    counts, check = figures["pictures"], figures["self_check"]
    if counts["different"] < FEW:
        found.append(f"{counts['different']} different pictures are few: expect a weaker detector than with {FEW}.")
    if counts["different"] < counts["given"]:
        found.append(f"{counts['given'] - counts['different']} pictures are there twice and were used once.")
    if not check["repeats"]:
        found.append("The same pictures got other scores the second time.")
    if check["permuted_caught"] < PERMUTED_CAUGHT:
        found.append(f"Only {check['permuted_caught']:.0%} of scrambled vectors are caught.")
    return found
