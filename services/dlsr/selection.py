"""Choose the settings of the shipped detectors: `python -m services.dlsr.selection --data DIR --out DIR --model NAME`.

No picture of a test takes part. What a candidate is judged by:

small        AUROC of `mse`: pictures of CIFAR-10's training split that the fit held back, against other pictures. The
             far ones are of sets that are in no test at all, for a setting chosen on other pictures of the tested sets
             would be chosen for those sets. No second near set could be had: the near ones are of CIFAR-100's
             training split, whose classes are those of the test.
small-faces  false alarms on faces of the validation splits, and which other pictures are refused: validation pictures
             of other sets

It prints the card's table and writes --out/selection-NAME.json. Features and fits are kept in --out: train.py's --out
may be the same. A test holds `SMALL` and `SHIPPED` against what was chosen.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.dlsr import dataset
from services.dlsr.conformal import Calibration
from services.dlsr.conformal import Scores as Totals
from services.dlsr.dataset import Part
from services.dlsr.detector import Detector, total
from services.dlsr.encoder import Encoder, load_encoder
from services.dlsr.encoding import Features
from services.dlsr.fitting import fit, split
from services.dlsr.learning import SMALL, Preset
from services.dlsr.lfdn import LFDN
from services.dlsr.metrics import auroc
from services.dlsr.train import SHIPPED, Shipped
from shared.training import Metrics

log = logging.getLogger("services.dlsr.selection")

SEEDS = (dataset.SEED, dataset.SEED + 1, dataset.SEED + 2)
TIE = 0.001
"""AUROC: of those that are nearer than this to the best, the smallest network is taken, then the shortest fit."""


def _preset(wide: int, narrow: int, blocks: int, steps: int, mirrored: bool = False) -> Preset:
    return replace(
        SMALL,
        model_channels=wide,
        bottleneck_channels=narrow,
        time_embed_dim=64,
        num_res_blocks=blocks,
        most_steps=steps,
        mirrored=mirrored,
    )


# None is larger than what fits into the 4 MB that a method may ship.
CANDIDATES = (
    _preset(128, 64, 4, 400),
    _preset(256, 64, 2, 300),
    _preset(256, 128, 4, 400),
    _preset(256, 256, 2, 300),
    _preset(384, 96, 2, 300),
    _preset(384, 96, 2, 600),
    _preset(384, 96, 2, 900),
    _preset(384, 96, 2, 600, mirrored=True),
    _preset(384, 96, 2, 900, mirrored=True),
    _preset(512, 64, 1, 300),
    _preset(512, 128, 2, 300),
    _preset(512, 128, 2, 600),
)
NEAR = Part(dataset.NEAR, ("train",), 1_000)
FAR = (
    Part("grocery_natural_128", ("train", "val"), 500),
    Part("fruits360_cutouts_100", ("train",)),
    Part("mri_brain_224", ("train", "val"), 500),
    Part("faces_utk_128", ("train", "val"), 500),
    Part("natural_sr", ("train", "val")),
)

FACE_SIZES = ((64, 32), (128, 64), (256, 64))
"""Widths of LFDN and of its blocks, smallest first."""
ALPHAS = (0.05, 0.04, 0.03, 0.025, 0.02, 0.015, 0.01, 0.0075, 0.005)
MOST_FALSE = 0.033
"""Of the faces of any set: two standard errors of a test of 500 below 0.05."""
LEAST_REFUSED = 0.95
"""Of any other kind."""
SPLITS = 20
OTHER_KINDS = (
    Part("mri_brain_224", ("val",)),
    Part("food101_64", ("val",)),
    Part("grocery_natural_128", ("val",)),
    Part("dtd10_128", ("val",)),
    Part("natural_sr", ("val",)),
    Part("omniglot_48", ("train",), 300),
    Part(dataset.NEAR, ("train",), 300),
)


def _silent(step: int, of: int, metrics: Metrics) -> None:
    return None


def size(preset: Preset, width: int) -> int:
    """How many numbers LFDN has for vectors of some width."""
    with torch.device("meta"):
        return sum(value.numel() for value in LFDN(preset.network(width)).parameters())


def totals(detector: Detector, features: Features) -> Totals:
    """The detector's own score of every picture (N,)."""
    kind = detector.config.kind
    return total(detector.parts(features, (kind,))[kind])


def judged(
    preset: Preset,
    train: Features,
    mirrored: Features,
    near: Features,
    far: Mapping[str, Features],
    encoder: Encoder,
    state: Path,
) -> dict[str, Any]:
    """How well the detectors that a preset and each of SEEDS give tell pictures apart: AUROC by set, mean of SEEDS."""
    mirrors = mirrored if preset.mirrored else None
    rows = []
    for seed in SEEDS:
        fitted = fit(train, encoder, preset, "candidate", seed, state / str(seed), _silent, mirrored=mirrors)
        detector = fitted.detector
        usual = totals(detector, train.at(split(train.keys, seed).calibration))
        rows.append({name: auroc(usual, totals(detector, x)) for name, x in {"near": near, **far}.items()})
    rows = [{**row, "mean far": float(np.mean([row[name] for name in far]))} for row in rows]
    means = [(row["near"] + row["mean far"]) / 2 for row in rows]
    return {
        "preset": asdict(preset),
        "numbers": size(preset, encoder.dimension),
        "auroc": {name: _mean([row[name] for row in rows]) for name in rows[0]},
        "mean": _mean(means),
        "spread": round(max(means) - min(means), 4),
    }


def best(rows: Sequence[Mapping[str, Any]]) -> int:
    """The place of the candidate to take: of those within TIE of the highest mean, the smallest, then the shortest."""
    highest = max(row["mean"] for row in rows)
    level = [place for place, row in enumerate(rows) if row["mean"] > highest - TIE]
    return min(level, key=lambda place: (rows[place]["numbers"], rows[place]["preset"]["most_steps"]))


def select_small(shipped: Shipped, data: Path, out: Path, candidates: Sequence[Preset] = CANDIDATES) -> dict[str, Any]:
    """Judge every candidate for `small`."""
    encoder = load_encoder(shipped.encoder, None, "cpu")

    def read(part: Part) -> Features:
        return dataset.features(data, part, encoder, out / "features")

    train = dataset.joined([read(part) for part in shipped.fit])
    mirrored = dataset.joined([read(replace(part, mirrored=True)) for part in shipped.fit])
    near, far = read(NEAR), {part.name: read(part) for part in FAR}
    rows = []
    for preset in candidates:
        rows.append(judged(preset, train, mirrored, near, far, encoder, out / "selection" / _name(preset)))
        log.info("%s  near %.4f  far %.4f", _name(preset), rows[-1]["auroc"]["near"], rows[-1]["auroc"]["mean far"])
    pictures = {"near": len(near), **{name: len(x) for name, x in far.items()}}
    return {"seeds": SEEDS, "pictures": pictures, "candidates": rows, "chosen": rows[best(rows)]["preset"]}


def false_alarms(by_set: Mapping[str, Totals], alphas: Sequence[float]) -> dict[float, dict[str, float]]:
    """Share of each set's pictures called strange, by alpha: means over halves, one to calibrate on and one to ask."""
    rng = np.random.default_rng(dataset.SEED)
    found: dict[float, dict[str, list[float]]] = {alpha: {name: [] for name in by_set} for alpha in alphas}
    for _ in range(SPLITS):
        orders = {name: rng.permutation(len(values)) for name, values in by_set.items()}
        halves = {name: np.array_split(by_set[name][order], 2) for name, order in orders.items()}
        calibration = Calibration(np.concatenate([known for known, _ in halves.values()]))
        for alpha in alphas:
            threshold = calibration.threshold(alpha)
            for name, (_, asked) in halves.items():
                found[alpha][name].append(float((asked > threshold).mean()))
    return {alpha: {name: _mean(rates) for name, rates in row.items()} for alpha, row in found.items()}


def largest_alpha(rates: Mapping[float, Mapping[str, float]]) -> float:
    """The largest alpha at which no set has more than MOST_FALSE false alarms; the smallest there is, if none."""
    return max(
        (alpha for alpha, row in rates.items() if max(row.values()) <= MOST_FALSE),
        default=min(rates),
    )


def guard(rows: Sequence[Mapping[str, Any]]) -> int:
    """The place of the size to take, smallest first: the first that refuses enough, else the one that refuses most."""
    least = [min(row["refused"].values()) for row in rows]
    return next((place for place, share in enumerate(least) if share >= LEAST_REFUSED), int(np.argmax(least)))


def select_faces(
    shipped: Shipped, data: Path, out: Path, sizes: Sequence[tuple[int, int]] = FACE_SIZES
) -> dict[str, Any]:
    """Judge every size and alpha for `small-faces`."""
    encoder = load_encoder(shipped.encoder, None, "cpu")

    def read(part: Part) -> Features:
        return dataset.features(data, part, encoder, out / "features")

    train = dataset.joined([read(part) for part in shipped.fit])
    validation = {part.name: read(part) for part in shipped.calibration}
    calibration = dataset.joined(list(validation.values()))
    other = {part.name: read(part) for part in OTHER_KINDS}
    rows = []
    for wide, narrow in sizes:
        preset = replace(shipped.preset, model_channels=wide, bottleneck_channels=narrow)
        state = out / "selection" / f"faces-{_name(preset)}"
        detector = fit(
            train, encoder, preset, "candidate", dataset.SEED, state, _silent, calibration=calibration
        ).detector
        rates = false_alarms({name: totals(detector, x) for name, x in validation.items()}, ALPHAS)
        alpha = largest_alpha(rates)
        p_values = {name: detector.p_values(x) for name, x in other.items()}
        rows.append(
            {
                "preset": asdict(replace(preset, alpha=alpha)),
                "numbers": size(preset, encoder.dimension),
                "false_alarms": {str(at): row for at, row in rates.items()},
                "refused": {name: _mean(values <= alpha) for name, values in p_values.items()},
            }
        )
        log.info("%s  alpha %g  refused %s", _name(preset), alpha, rows[-1]["refused"])
    pictures = {
        name: len(x) for name, x in {**validation, **{f"other: {name}": x for name, x in other.items()}}.items()
    }
    return {"pictures": pictures, "candidates": rows, "chosen": rows[guard(rows)]["preset"]}


def _name(preset: Preset) -> str:
    sizes = f"{preset.model_channels}-{preset.bottleneck_channels}-{preset.num_res_blocks}-{preset.most_steps}"
    return f"{sizes}-mirrored" if preset.mirrored else sizes


def _mean(values: Sequence[float] | NDArray[np.bool_]) -> float:
    return round(float(np.mean(values)), 4)


def table(found: Mapping[str, Any]) -> str:
    """What was found as Markdown, the chosen candidate marked; the card holds this text."""
    rows = found["candidates"]
    marks = ["**chosen**" if row["preset"] == found["chosen"] else "" for row in rows]
    if "seeds" in found:
        names = list(rows[0]["auroc"])
        lines = ["| width, blocks, steps | numbers | " + " | ".join(names) + " | near and far | spread | |"]
        lines += ["|" + "---|" * (5 + len(names))]
        for row, mark in zip(rows, marks, strict=True):
            cells = [f"{row['auroc'][name]:.4f}" for name in names]
            lines.append(f"| {_sizes(row)} | {' | '.join(cells)} | {row['mean']:.4f} | {row['spread']:.4f} | {mark} |")
        return "\n".join(lines)
    own, other = list(next(iter(rows[0]["false_alarms"].values()))), list(rows[0]["refused"])
    lines = ["| width, blocks, steps | numbers | alpha | " + " | ".join([*own, *other]) + " | |"]
    lines += ["|" + "---|" * (4 + len(own) + len(other))]
    for row, mark in zip(rows, marks, strict=True):
        alpha = row["preset"]["alpha"]
        cells = [f"{row['false_alarms'][str(alpha)][name]:.3f}" for name in own]
        cells += [f"{row['refused'][name]:.3f}" for name in other]
        lines.append(f"| {_sizes(row)} | {alpha:g} | {' | '.join(cells)} | {mark} |")
    return "\n".join(lines)


def _sizes(row: Mapping[str, Any]) -> str:
    of = row["preset"]
    widths = f"{of['model_channels']} / {of['bottleneck_channels']}, {of['num_res_blocks']}, {of['most_steps']}"
    return f"{widths}{', mirrored' if of['mirrored'] else ''} | {row['numbers']:,}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m services.dlsr.selection", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the packed sets")
    parser.add_argument("--out", type=Path, required=True, help="features, fits, and selection-NAME.json")
    parser.add_argument("--model", choices=SHIPPED, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(args.threads)
    select = select_small if args.model == "small" else select_faces
    found = select(SHIPPED[args.model], args.data, args.out)
    (args.out / f"selection-{args.model}.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(table(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
