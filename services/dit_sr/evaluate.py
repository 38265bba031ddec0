"""The figures of the model card, each beside its baselines, on pictures of no training.

`python -m services.dit_sr.evaluate --data DIR --teachers DIR --weights DIR`, the last a model folder, writes
evaluate.json beside the weights and prints the tables; with `--sheet DIR` it writes contact sheets instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from services.dit_sr.pipeline import DitSrPipeline
from shared.resshift.evaluation import Row, command, walked
from shared.resshift.sampler import sample

STEPS = (15, 8, 4, 2, 1)


def rows(args: argparse.Namespace) -> list[Row]:
    """The shipped network in every number of steps."""
    return [(f"DiT-SR, {steps} steps", walked, (DitSrPipeline, args.weights, steps, sample)) for steps in STEPS]


def main(given: Sequence[str] | None = None) -> int:
    """The command."""
    return command("python -m services.dit_sr.evaluate", (__doc__ or "").splitlines()[0], rows, given)


if __name__ == "__main__":
    sys.exit(main())
