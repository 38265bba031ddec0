"""Make the weights of `small`: `python -m services.dit_sr.train --data DIR --out DIR --stage STAGE`.

Stages, in order, each resumed where it was stopped; every one reads what the ones before left in --out.

autoencoder  the small autoencoder
decoder      its decoder, as a restorer; TAD-SR's training has the same first two stages, and may use the same --out
denoiser     the denoiser, and the decoder along with it
export       the averaged networks in half precision, as the model folder dit-sr-small/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from services.dit_sr.configuration_small import PIPELINE, SMALL
from services.dit_sr.denoiser import UNetModelSwin
from services.dit_sr.pipeline import DitSrPipeline
from shared.resshift.denoiserlearner import DenoiserLearner
from shared.resshift.scheduler import ResShiftScheduler
from shared.resshift.smallchain import SMALL as SMALL_CHAIN
from shared.resshift.trainingcommand import (
    AUTOENCODER,
    DECODER,
    arguments,
    autoencoder_learner,
    denoiser_learner,
    fresh_autoencoder,
    run,
)
from shared.training import Learner, restored_average

DENOISER, EXPORT = "denoiser", "export"
STAGES = (AUTOENCODER, DECODER, DENOISER, EXPORT)
PERCEPTUAL_WEIGHT = 0.5  # makes the term about twelve times as large as L1
EMA = {AUTOENCODER: 0.998, DECODER: 0.998, DENOISER: 0.998}


def fresh_denoiser(seed: int) -> UNetModelSwin:
    """The denoiser as training finds it; the same seed gives the same one, and the caller's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        denoiser = UNetModelSwin(**SMALL)
        denoiser.start_with_identity_filters()
        return denoiser


def learner(args: argparse.Namespace) -> Learner:
    """The learner of a stage, starting from what the stages before left."""
    if args.stage in (AUTOENCODER, DECODER):
        return autoencoder_learner(args)
    return denoiser_learner(args, fresh_denoiser(args.seed), DenoiserLearner, SMALL_CHAIN, PERCEPTUAL_WEIGHT)


def export(out: Path, seed: int) -> None:
    """The networks of the last stage as a model folder."""
    networks = nn.ModuleDict({"denoiser": fresh_denoiser(seed), "autoencoder": fresh_autoencoder(seed)})
    networks.load_state_dict(restored_average(out / DENOISER))
    scheduler = ResShiftScheduler(**SMALL_CHAIN)
    DitSrPipeline(networks["denoiser"], networks["autoencoder"], scheduler, **PIPELINE).save(
        out / "dit-sr-small", torch.float16
    )


def main(given: Sequence[str] | None = None) -> int:
    """The command. Raises Problem for a checkpoint that does not fit, OSError for files that are not there."""
    args = arguments("python -m services.dit_sr.train", (__doc__ or "").splitlines()[0], STAGES, given)
    if args.stage == EXPORT:
        export(args.out, args.seed)
        return 0
    run(learner(args), args, EMA[args.stage])
    return 0


if __name__ == "__main__":
    sys.exit(main())
