"""The figures of the small super-resolution models, each beside its baselines, on pictures of no training.

Every row enlarges the same pictures in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from shared.images import Picture, Pixels
from shared.modelfolder import digest_of
from shared.naturalness import NaturalStatistics
from shared.perceptual import PerceptualDistance
from shared.picturemetrics import psnr_y, ssim_y
from shared.resshift.degradation import SCALE, TEST, degrade, shrunk
from shared.resshift.enlarging import enlarge
from shared.resshift.pipeline import ResShiftPipeline
from shared.resshift.sampler import Sampler
from shared.resshift.trainingdata import photographs

SEED = 20250601
# How many of each set by default, the first of the index: about 2 megapixels in all. `--full` takes all.
SUBSET: Mapping[str, int] = {"BSDS500": 3, "Kodak": 1, "Set5": 2, "Set14": 2, "Urban100 (centre 512 crop)": 1}
REAL_SUBSET = 2  # of RealSet65
REAL_LONGEST_PX = 260  # larger ones are too slow to enlarge in fifteen steps
REAL_WORLD, PLAIN, REAL = "real-world", "bicubic", "RealSet65"
FITTED_ON = 40  # training pictures that NIQE's natural statistics come from

Enlarge = Callable[[Pixels], Pixels]
"""A picture (h, w, 3) uint8 to one four times as large."""
Row = tuple[str, Callable[..., Enlarge], tuple[Any, ...]]
"""A name, a function of a module that makes the enlarger in the row's process, and its arguments."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A poor picture, and the sharp one where there is one."""

    name: str
    lq: Pixels
    hr: Pixels | None


def pixels_of(x: Tensor) -> Pixels:
    """(3, H, W), 0..1 -> (H, W, 3) uint8"""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def tensor_of(pixels: Pixels) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W), 0..1"""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def samples(data: Path, *, full: bool) -> dict[str, list[Sample]]:
    """The test pictures, spoilt in both ways, and real poor ones. The seed of a picture's degradation is its place."""
    found: dict[str, list[Sample]] = {REAL_WORLD: [], PLAIN: [], REAL: []}
    seen: dict[str, int] = {}
    for place, photograph in enumerate(photographs(data, "test")):
        count = seen.get(photograph.group, 0)
        if not photograph.has_truth:
            small = max(photograph.pixels.shape[1:]) <= REAL_LONGEST_PX
            if full or (small and count < REAL_SUBSET):
                found[REAL].append(Sample(photograph.name, pixels_of(photograph.pixels), None))
                seen[photograph.group] = count + 1
            continue
        seen[photograph.group] = count + 1
        if not full and count >= SUBSET[photograph.group]:
            continue
        height, width = (side // SCALE * SCALE for side in photograph.pixels.shape[1:])
        hr = photograph.pixels[None, :, :height, :width]
        spoilt = degrade(hr, TEST, torch.Generator().manual_seed(SEED + place))
        for kind, lq in ((REAL_WORLD, spoilt), (PLAIN, shrunk(hr))):
            found[kind].append(Sample(photograph.name, pixels_of(lq[0]), pixels_of(hr[0])))
    return found


def resampled(method: int) -> Enlarge:
    """Pillow's resampling: the baselines."""

    def enlarge_one(lq: Pixels) -> Pixels:
        size = lq.shape[1] * SCALE, lq.shape[0] * SCALE
        return np.asarray(PIL.Image.fromarray(lq).resize(size, PIL.Image.Resampling(method)))

    return enlarge_one


BASELINES: tuple[Row, ...] = (
    ("bicubic", resampled, (PIL.Image.Resampling.BICUBIC.value,)),
    ("Lanczos", resampled, (PIL.Image.Resampling.LANCZOS.value,)),
)


def walked(pipeline: type[ResShiftPipeline], folder: Path, steps: int | None, walk: Sampler) -> Enlarge:
    """A model as its service runs it, tiles included, in so many steps; None: one, from the noisiest."""
    model = pipeline.load(folder, torch.device("cpu"))
    schedule = model.schedule.one_step() if steps is None else model.schedule.respaced(steps)
    generate, tiles = model.generator(schedule, walk), model.tiles

    def enlarge_one(lq: Pixels) -> Pixels:
        picture = Picture(lq, None, False)
        return enlarge([picture], [SEED], generate, tiles, model.device, lambda step, of: None)[0].pixels

    return enlarge_one


def enlarged(row: Row, pictures: Sequence[Pixels], threads: int) -> tuple[list[Pixels], float, float]:
    """All pictures by one row: results, seconds a megapixel of result, and the peak memory of the process in MB."""
    torch.set_num_threads(threads)
    _, make, arguments = row
    enlarge_one = make(*arguments)
    enlarge_one(pictures[0][:32, :32])  # what is done once a process does not count
    started = time.perf_counter()
    results = [enlarge_one(picture) for picture in pictures]
    seconds = time.perf_counter() - started
    megapixels = sum(result.shape[0] * result.shape[1] for result in results) / 1e6
    return results, seconds / megapixels, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def apart(row: Row, pictures: Sequence[Pixels], threads: int) -> tuple[list[Pixels], float, float]:
    """`enlarged` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(enlarged, row, pictures, threads).result()


class Judge:
    """What the columns are made of."""

    def __init__(self, data: Path, teachers: Path) -> None:
        self.distance = PerceptualDistance.load(teachers)
        fitted = (one.pixels for _, one in zip(range(FITTED_ON), photographs(data, "train"), strict=False))
        self.natural = NaturalStatistics.fitted(fitted)

    @torch.no_grad()
    def figures(self, results: Sequence[Pixels], truths: Sequence[Sample]) -> dict[str, float]:
        """Means over the pictures that have a figure: small ones have no NIQE, real ones nothing else."""
        columns: dict[str, list[float]] = {"niqe": []}
        for result, sample in zip(results, truths, strict=True):
            sr = tensor_of(result)
            columns["niqe"].append(self.natural.niqe(sr[0]))
            if sample.hr is not None:
                hr = tensor_of(sample.hr)
                for name, metric in (("psnr_y", psnr_y), ("ssim", ssim_y), ("perceptual", self.distance)):
                    columns.setdefault(name, []).append(float(metric(sr, hr)))
        finite = {name: [value for value in values if np.isfinite(value)] for name, values in columns.items()}
        return {name: float(np.mean(values)) for name, values in finite.items() if values}


def evaluate(rows: Sequence[Row], data: Path, teachers: Path, *, full: bool, threads: int) -> dict[str, Any]:
    """All figures as a tree: test, row, column."""
    tests, judge = samples(data, full=full), Judge(data, teachers)
    figures: dict[str, Any] = {test: {} for test in tests}
    for row in rows:
        pictures = [sample.lq for group in tests.values() for sample in group]
        results, seconds, memory = apart(row, pictures, threads)
        remaining = iter(results)
        for test, group in tests.items():
            own = [next(remaining) for _ in group]
            figures[test][row[0]] = judge.figures(own, group) | {"s_per_megapixel": seconds, "peak_mb": memory}
        sys.stderr.write(f"{row[0]}: {seconds:.2f} s a megapixel\n")
    counts = {test: len(group) for test, group in tests.items()}
    return {"seed": SEED, "pictures": counts, "threads": threads, "figures": figures}


COLUMNS = {
    "psnr_y": ("PSNR-Y", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "perceptual": ("perceptual distance", ".3f"),
    "niqe": ("NIQE", ".2f"),
    "s_per_megapixel": ("s / Mpx", ".2f"),
    "peak_mb": ("peak MB", ".0f"),
}


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown, a table a test; the card holds this text."""
    lines = []
    for test, rows in figures["figures"].items():
        names = [name for name in COLUMNS if name in rows["bicubic"]]
        lines += [f"{test}, {figures['pictures'][test]} pictures", ""]
        lines.append("| | " + " | ".join(COLUMNS[name][0] for name in names) + " |")
        lines.append("|---" * (len(names) + 1) + "|")
        lines += [
            f"| {row} | " + " | ".join(format(values[name], COLUMNS[name][1]) for name in names) + " |"
            for row, values in rows.items()
        ]
        lines.append("")
    return "\n".join(lines)


def sheet(rows: Sequence[Row], lq: Sequence[Pixels], truths: Sequence[Pixels | None], path: Path, threads: int) -> None:
    """A contact sheet: a line a picture, a column a row of the table, the sharp picture last."""
    columns = [apart(row, lq, threads)[0] for row in rows]
    if all(truth is not None for truth in truths):
        columns.append([truth for truth in truths if truth is not None])
    lines = [np.concatenate([column[i] for column in columns], axis=1) for i in range(len(lq))]
    width = max(line.shape[1] for line in lines)
    padded = [np.pad(line, ((0, 4), (0, width - line.shape[1]), (0, 0))) for line in lines]
    PIL.Image.fromarray(np.concatenate(padded)).save(path)


def rounded(value: Any) -> Any:
    """Numbers to four places, through trees."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def command(
    prog: str, description: str, rows: Callable[[argparse.Namespace], list[Row]], given: Sequence[str] | None
) -> int:
    """An evaluation's command line: figures into the model folder, the tables to stdout."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder of natural_sr.zip")
    parser.add_argument("--teachers", type=Path, required=True, help="folder of the judge's weights (MobileNetV2)")
    parser.add_argument("--weights", type=Path, required=True, help="model folder; evaluate.json is written into it")
    parser.add_argument("--teacher", type=Path, help="model folder of TAD-SR's teacher, which is not shipped")
    parser.add_argument("--regression", type=Path, help="model folder of the regression network, which is not shipped")
    parser.add_argument("--full", action="store_true", help="all test pictures instead of the first of each set")
    parser.add_argument("--sheet", type=Path, help="contact sheets are written into this folder; not to publish")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(given)
    chosen = [*BASELINES, *rows(args)]
    if args.sheet is not None:
        args.sheet.mkdir(parents=True, exist_ok=True)
        for test, group in samples(args.data, full=args.full).items():
            path = args.sheet / f"{test}.png"
            sheet(chosen, [s.lq for s in group], [s.hr for s in group], path, args.threads)
        return 0
    figures = rounded(evaluate(chosen, args.data, args.teachers, full=args.full, threads=args.threads))
    figures["model_digest"] = digest_of(args.weights)
    (args.weights / "evaluate.json").write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.write(table(figures) + "\n")
    return 0
