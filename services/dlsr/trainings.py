"""Fitting and calibrating as jobs: pictures from an archive, state in checkpoints, the result a model."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.dlsr import encoder as encoders
from services.dlsr import fitting, learning
from services.dlsr.detector import Detector
from services.dlsr.encoder import load_encoder
from services.dlsr.intake import encoded
from services.dlsr.service import Calibrated, CalibrateRequest, FitRequest, Fitted, TooFewPictures
from shared.jobcontext import JobContext
from shared.modelfolder import CARD, FIGURES

PRESET = "small"


def fitted(request: FitRequest, job: JobContext) -> Fitted:
    """`fit`: encode what is not encoded yet, go on with the training where the last attempt left it, save."""
    seed = request.seed or 0
    preset = replace(learning.PRESETS[PRESET], kind=request.kind, alpha=request.alpha)
    encoder = load_encoder(encoders.SMALL, None, job.device)
    job.stage("extracting")
    pictures = encoded(request.archive, encoder, job, fitting.LEAST)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "state"
        _unpack(job.restore(), folder)
        job.stage("training")
        made = fitting.fit(
            pictures.features,
            encoder,
            preset,
            PRESET,
            seed,
            folder,
            lambda step, of, metrics: job.progress(step, of, **metrics),
            lambda: job.checkpoint(_packed(folder)),
        )
        figures = {**made.figures, "seed": seed, "warnings": made.warnings}
        model = _saved(request.name, made.detector, figures, job, Path(scratch) / "model")
    return Fitted(
        model=model,
        seed=seed,
        pictures=made.figures["pictures"],
        steps=made.figures["steps"],
        validation_loss=made.figures["validation_loss"],
        permuted_caught=made.figures["self_check"]["permuted_caught"],
        suspicious=[pictures.ids[place] for place in made.suspicious],
        unreadable=pictures.named(),
        warnings=made.warnings,
    )


def calibrated(request: CalibrateRequest, job: JobContext) -> Calibrated:
    """`calibrate`: the same networks, other p-values."""
    detector = Detector.load(job.model_folder or Path(), job.device)
    job.stage("extracting")
    pictures = encoded(request.archive, detector.encoder, job, fitting.LEAST_CALIBRATION)
    different = list(dict(zip(pictures.features.keys, range(len(pictures.ids)), strict=True)).values())
    if len(different) < fitting.LEAST_CALIBRATION:
        raise TooFewPictures(
            f"There are {len(different)} different pictures; {fitting.LEAST_CALIBRATION} are needed.",
            least=fitting.LEAST_CALIBRATION,
            found=len(different),
        )
    job.stage("calibrating")
    result = detector.calibrated(pictures.features.at(different))
    figures = {"calibrated_from": job.model, "calibration": len(different)}
    with tempfile.TemporaryDirectory() as scratch:
        model = _saved(request.result_name, result, figures, job, Path(scratch) / "model")
    return Calibrated(model=model, calibration=len(different), unreadable=pictures.named())


def _saved(name: str, detector: Detector, figures: dict[str, Any], job: JobContext, folder: Path) -> str:
    job.stage("saving")
    detector.save(folder)
    (folder / FIGURES).write_text(json.dumps(figures, indent=1) + "\n")
    (folder / CARD).write_text(_card(name, detector, figures))
    return job.save_model(name, folder, **figures).id


def _card(name: str, detector: Detector, figures: dict[str, Any]) -> str:
    """What is known of a detector that a tenant made: how, from how many pictures, and what nobody measured."""
    config = detector.config
    sizes = ", ".join(f"{count} {what}" for what, count in figures.get("pictures", {}).items())
    made = f"Fitted to pictures of its tenant ({sizes})." if sizes else f"Calibrated from {figures['calibrated_from']}."
    count = len(next(iter(detector.calibration.values())))
    lines = [
        f"# dlsr/{name}",
        "",
        made,
        f"Encoder {config.encoder.name} at {config.encoder.input_px} px, score `{config.kind}`, "
        f"alpha {config.alpha:g}, seed {config.seed}, {count} pictures of calibration.",
        "How well it tells other pictures apart depends on them and was not measured: no such pictures were given.",
    ]
    return "\n".join([*lines, *(f"* {warning}" for warning in figures.get("warnings", ()))]) + "\n"


def _packed(folder: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return out.getvalue()


def _unpack(state: bytes | None, folder: Path) -> None:
    folder.mkdir()
    if state is not None:
        with tarfile.open(fileobj=io.BytesIO(state)) as archive:
            archive.extractall(folder, filter="data")
