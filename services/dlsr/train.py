"""Make the shipped detectors: `python -m services.dlsr.train --data DIR --out DIR --model small|small-faces`.

small        CIFAR-10, which nobody labelled here: fitted, validated and calibrated on its training split
small-faces  the guard of the face service: the aligned faces that the service learned from; calibrated on the
             validation splits, whose people are not those of the training splits where people are labelled

What is done is kept in --out and not done again: features, and the state of the fit. The model folder is --out/MODEL.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from services.dlsr import dataset
from services.dlsr.dataset import Part
from services.dlsr.encoder import EncoderConfig, load_encoder
from services.dlsr.encoding import Features
from services.dlsr.fitting import fit
from services.dlsr.learning import SMALL, Preset
from shared.training import Metrics

log = logging.getLogger("services.dlsr.train")


@dataclass(frozen=True)
class Shipped:
    """What a shipped detector is made of.

    calibration  parts to calibrate on; none: the fit's own held-back fifth
    trimmed      leave out what only the scores `lr` and `knn` need
    """

    encoder: EncoderConfig
    preset: Preset
    fit: tuple[Part, ...]
    calibration: tuple[Part, ...]
    trimmed: bool


SHIPPED: Mapping[str, Shipped] = {
    # All pictures pass through the 32 px of CIFAR-10: their content is judged, not their sharpness.
    "small": Shipped(
        EncoderConfig("efficientnet-lite0", input_px=128, first_px=32),
        replace(SMALL, bank=1_400),  # what a method ships has 4 MB
        (Part(dataset.IND, ("train",)),),
        (),
        trimmed=False,
    ),
    # Widths and alpha were chosen by validation (selection.py).
    "small-faces": Shipped(
        EncoderConfig("efficientnet-lite0", input_px=128, first_px=dataset.FACE_PX),
        replace(SMALL, model_channels=64, bottleneck_channels=32, most_steps=300, alpha=0.015),
        tuple(Part(name, ("train",), faces=True) for name in dataset.FACES),
        tuple(Part(name, ("val",), faces=True) for name in dataset.FACES),
        trimmed=True,
    ),
}


def report(step: int, of: int, metrics: Metrics) -> None:
    """One line a report, on stderr."""
    log.info("step %d of %d  %s", step, of, "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))


def make(
    name: str,
    shipped: Shipped,
    data: Path,
    out: Path,
    device: str,
    seed: int,
    progress: Callable[[int, int, Metrics], None] = report,
) -> dict[str, Any]:
    """Fit a shipped detector and write its folder; returns what is to be said of the fit."""
    encoder = load_encoder(shipped.encoder, None, device)
    began = time.process_time()

    def read(parts: Sequence[Part]) -> Features:
        return dataset.joined([dataset.features(data, part, encoder, out / "features") for part in parts])

    features = read(shipped.fit)
    calibration = read(shipped.calibration) if shipped.calibration else None
    mirrored = read([replace(part, mirrored=True) for part in shipped.fit]) if shipped.preset.mirrored else None
    encoded_s = time.process_time() - began
    began = time.process_time()
    state = out / f"{name}.fit"
    fitted = fit(
        features, encoder, shipped.preset, name, seed, state, progress, calibration=calibration, mirrored=mirrored
    )
    (fitted.detector.trimmed() if shipped.trimmed else fitted.detector).save(out / name)
    return fitted.figures | {
        "encode_cpu_s": round(encoded_s, 1),
        "fit_cpu_s": round(time.process_time() - began, 1),
        "warnings": fitted.warnings,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Raises Problem for a state that does not fit, OSError for files that are not there."""
    parser = argparse.ArgumentParser(prog="python -m services.dlsr.train", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the packed sets")
    parser.add_argument("--out", type=Path, required=True, help="features, state of the fit, and the model folder")
    parser.add_argument("--model", choices=SHIPPED, required=True)
    parser.add_argument("--steps", type=int, help="at most so many; the preset says how many else")
    parser.add_argument("--seed", type=int, default=dataset.SEED)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(args.threads)
    shipped = SHIPPED[args.model]
    if args.steps is not None:
        shipped = replace(shipped, preset=replace(shipped.preset, most_steps=args.steps))
    said = make(args.model, shipped, args.data, args.out, args.device, args.seed)
    sys.stdout.write(json.dumps(said, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
