"""The figures of the model card, each beside its baselines, on pictures of no training.

`python -m services.tad_sr.evaluate --data DIR --teachers DIR --weights DIR [--teacher DIR] [--regression DIR]`, the
last three model folders of which only the first is shipped, writes evaluate.json beside the weights and prints the
tables; with `--sheet DIR` it writes contact sheets instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from services.tad_sr.pipeline import TadSrPipeline
from shared.resshift.evaluation import Row, command, walked
from shared.resshift.sampler import sample_deterministic


def rows(args: argparse.Namespace) -> list[Row]:
    """The networks that were given, the shipped one last."""
    found: list[Row] = []
    if args.regression is not None:
        found.append(("regression network", walked, (TadSrPipeline, args.regression, None, sample_deterministic)))
    if args.teacher is not None:
        for steps in (15, 4):
            row = walked, (TadSrPipeline, args.teacher, steps, sample_deterministic)
            found.append((f"ResShift teacher, {steps} steps", *row))
        found.append(("ResShift teacher, 1 step", walked, (TadSrPipeline, args.teacher, None, sample_deterministic)))
    found.append(("TAD-SR, 1 step", walked, (TadSrPipeline, args.weights, None, sample_deterministic)))
    return found


def main(given: Sequence[str] | None = None) -> int:
    """The command."""
    return command("python -m services.tad_sr.evaluate", (__doc__ or "").splitlines()[0], rows, given)


if __name__ == "__main__":
    sys.exit(main())
