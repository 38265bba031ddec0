"""The figures of the model cards: every score and every baseline, on the same features of the same pictures.

`python -m services.dlsr.evaluate --data DIR --cache DIR --weights DIR`, DIR the model folder, writes evaluate.json
beside the weights and prints the card's tables. For `small` all pictures are brought to 32 px first (the matched
protocol; a picture that is sharper than any CIFAR-10 picture is no riddle), and the unmatched figures stand beside.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage import data as bundled

from services.dlsr import dataset
from services.dlsr.conformal import Calibration
from services.dlsr.dataset import Part
from services.dlsr.detector import BASELINES, Detector, total
from services.dlsr.encoder import Encoder, load_encoder
from services.dlsr.encoding import Features, encode
from services.dlsr.fitting import split
from services.dlsr.metrics import aupr, auroc, fpr95, paired_interval
from services.dlsr.service import Kind
from shared.images import Picture
from shared.modelfolder import digest_of

SEED = dataset.SEED
A_SET = 600  # pictures of a far set
UNMATCHED = 300
SPLITS = 20
ROUNDS = 400
MRI = "mri_brain_224"
WHOLE_SETS = ("dtd10_128", "imagenet_sample_128")  # too small for their test splits alone; nothing was trained on them

Scores = dict[Kind, NDArray[np.float32]]


def far_part(name: str, at_most: int) -> Part:
    """The pictures of a far set: of its test split, or where that is too small of the whole set."""
    return Part(name, dataset.ALL if name in WHOLE_SETS else ("test",), at_most)


def scores(detector: Detector, features: Features) -> Scores:
    """Every score of every picture."""
    return {kind: total(parts) for kind, parts in detector.parts(features, detector.kinds).items()}


def told_apart(ind: Scores, ood: Mapping[str, Scores]) -> dict[str, Any]:
    """AUROC, FPR95 and AUPR by score and set, and their means over the far sets."""
    found: dict[str, Any] = {}
    for kind, usual in ind.items():
        rows = {
            name: {
                "auroc": auroc(usual, strange[kind]),
                "fpr95": fpr95(usual, strange[kind]),
                "aupr": aupr(usual, strange[kind]),
            }
            for name, strange in ood.items()
        }
        far = [row for name, row in rows.items() if name != dataset.NEAR]
        rows["mean far"] = {metric: float(np.mean([row[metric] for row in far])) for metric in far[0]}
        found[kind] = rows
    return found


def false_alarms(pool: Scores, alpha: float) -> dict[str, dict[str, float]]:
    """Share of pictures called OOD that are not, over random halves into calibration and test, by score."""
    rng = np.random.default_rng(SEED)
    found: dict[str, dict[str, float]] = {}
    for kind, values in pool.items():
        rates = []
        for _ in range(SPLITS):
            order = rng.permutation(len(values))
            known, rest = order[: len(order) // 2], order[len(order) // 2 :]
            rates.append(float((values[rest] > Calibration(values[known]).threshold(alpha)).mean()))
        found[kind] = {"mean": float(np.mean(rates)), "least": min(rates), "most": max(rates)}
    return found


def evaluate_small(detector: Detector, data: Path, cache: Path) -> dict[str, Any]:
    """The figures of a detector of CIFAR-10."""
    encoder = detector.encoder

    def read(part: Part, by: Encoder) -> Features:
        return dataset.features(data, part, by, cache)

    train = read(Part(dataset.IND, ("train",)), encoder)
    test = read(Part(dataset.IND, ("test",)), encoder)
    ind = scores(detector, test)
    near = scores(detector, read(Part(dataset.NEAR, ("test",)), encoder))
    far = {name: scores(detector, read(far_part(name, A_SET), encoder)) for name in dataset.FAR}
    ood = {dataset.NEAR: near, **far}
    sharp = load_encoder(replace(encoder.config, first_px=None), None, encoder.device)
    # CIFAR's own pictures have 32 px, and are the same by both ways.
    by_sharp = detector.with_encoder(sharp)
    unmatched = {name: scores(by_sharp, read(far_part(name, UNMATCHED), sharp)) for name in dataset.FAR}
    held_back = scores(detector, train.at(split(train.keys, detector.config.seed).calibration))
    pool = {kind: np.concatenate([held_back[kind], ind[kind]]) for kind in ind}
    return {
        "pictures": {"ind": len(test), **{name: len(next(iter(value.values()))) for name, value in ood.items()}},
        "matched": told_apart(ind, ood),
        "unmatched": told_apart(ind, {dataset.NEAR: near, **unmatched}),
        "mse_less": {
            kind: {
                name: dict(zip(("difference", "low", "high"), interval, strict=True))
                for name, interval in {
                    "far": versus(ind, list(far.values()), kind),
                    "near": versus(ind, [near], kind),
                    "six sets": versus(ind, list(ood.values()), kind),
                }.items()
            }
            for kind in BASELINES
        },
        "false_alarms": false_alarms(pool, alpha=0.05),
    }


def versus(ind: Scores, ood: Sequence[Scores], kind: Kind) -> tuple[float, float, float]:
    """How much the mean AUROC of mse is above that of another score, with its interval."""
    return paired_interval((ind["mse"], ind[kind]), [(x["mse"], x[kind]) for x in ood], ROUNDS, SEED)


def evaluate_faces(detector: Detector, data: Path, cache: Path) -> dict[str, Any]:
    """The figures of the face service's guard: what it refuses of its own kind and of other kinds, by every score."""
    own = {
        name: dataset.features(
            data, Part(name, ("test",), None if name == dataset.FACES[0] else 500, faces=True), detector.encoder, cache
        )
        for name in dataset.FACES
    }
    pages = [bundled.page(), bundled.text()]
    photos = {
        "cat": [bundled.chelsea()],
        "page of text": [np.stack([page] * 3, axis=2) for page in pages],
    }
    strange = {name: encode(detector.encoder, map(Picture, pixels)) for name, pixels in photos.items()}
    strange["MRI slices"] = dataset.features(data, Part(MRI, ("test",), UNMATCHED), detector.encoder, cache)
    alpha = detector.config.alpha

    def refused(features: Features, kind: Kind) -> dict[str, float]:
        p_values = detector.p_values(features, kind)
        return {"refused": float((p_values <= alpha).mean()), "largest_p": float(p_values.max())}

    whole = dataset.joined(list(own.values()))
    return {
        "alpha": alpha,
        "pictures": {name: len(features) for name, features in {**own, **strange}.items()},
        "false_alarms": {
            kind: {name: refused(features, kind)["refused"] for name, features in {"all": whole, **own}.items()}
            for kind in detector.kinds
        },
        "other_kinds": {
            kind: {name: refused(features, kind) for name, features in strange.items()} for kind in detector.kinds
        },
    }


def winner(figures: Mapping[str, Any]) -> str:
    """The card's first line: which score is best by mean AUROC, far and near."""
    rows = figures["matched"]

    def best(name: str) -> str:
        kind = max(rows, key=lambda kind: rows[kind][name]["auroc"])
        beside = "" if kind == "mse" else f"; `mse` {rows['mse'][name]['auroc']:.3f}"
        return f"`{kind}` ({rows[kind][name]['auroc']:.3f}{beside})"

    return f"Mean AUROC over the far sets: {best('mean far')} wins. Near (CIFAR-100): {best(dataset.NEAR)} wins."


def tables(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown; the card holds this text."""
    return _table_of_faces(figures) if "other_kinds" in figures else _tables_of_small(figures)


def _tables_of_small(figures: Mapping[str, Any]) -> str:
    names = [dataset.NEAR, *dataset.FAR, "mean far"]
    lines = [winner(figures), ""]
    for protocol in ("matched", "unmatched"):
        lines += [f"{protocol.capitalize()}: AUROC / FPR95 / AUPR", ""]
        lines += ["| score | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
        for kind, rows in figures[protocol].items():
            cells = [" / ".join(f"{rows[name][m]:.3f}" for m in ("auroc", "fpr95", "aupr")) for name in names]
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["AUROC of `mse` less that of a baseline (95 % interval, paired bootstrap over the pictures)", ""]
    lines += ["| baseline | far | near | six sets |", "|---|---|---|---|"]
    for kind, found in figures["mse_less"].items():
        cells = [f"{of['difference']:+.3f} ({of['low']:+.3f} to {of['high']:+.3f})" for of in found.values()]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    lines += ["", f"False alarms at alpha 0.05, {SPLITS} random halves into calibration and test", ""]
    lines += ["| score | mean | least | most |", "|---|---|---|---|"]
    lines += [
        f"| {kind} | {of['mean']:.3f} | {of['least']:.3f} | {of['most']:.3f} |"
        for kind, of in figures["false_alarms"].items()
    ]
    return "\n".join(lines)


def _table_of_faces(figures: Mapping[str, Any]) -> str:
    own = list(next(iter(figures["false_alarms"].values())))
    other = list(next(iter(figures["other_kinds"].values())))
    lines = [f"Refused at alpha {figures['alpha']}: of its own test sets (false alarms), and of other kinds", ""]
    lines += ["| score | " + " | ".join([*own, *other]) + " |", "|" + "---|" * (1 + len(own) + len(other))]
    for kind, false in figures["false_alarms"].items():
        cells = [f"{false[name]:.3f}" for name in own]
        cells += [f"{figures['other_kinds'][kind][name]['refused']:.3f}" for name in other]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rounded(value: Any) -> Any:
    """Numbers to four places, through trees."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m services.dlsr.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the packed sets")
    parser.add_argument("--cache", type=Path, required=True, help="folder for features; train.py's --out/features")
    parser.add_argument("--weights", type=Path, required=True, help="model folder; evaluate.json is written into it")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    detector = Detector.load(args.weights, "cpu")
    evaluate = evaluate_faces if detector.config.preset == "small-faces" else evaluate_small
    figures = rounded(evaluate(detector, args.data, args.cache)) | {"model_digest": digest_of(args.weights)}
    (args.weights / "evaluate.json").write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.write(tables(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
