"""Make the weights of `small`: `python -m services.tad_sr.train --data DIR --out DIR --stage STAGE`.

Stages, in order, each resumed where it was stopped; every one reads what the ones before left in --out.

autoencoder  the small autoencoder
decoder      its decoder, as a restorer; DiT-SR's training has the same first two stages, and may use the same --out
teacher      the ResShift teacher, and the decoder along with it
student      the one-step student, on the frozen teacher and its decoder
export       the averaged student and teacher in half precision, as model folders tad-sr-small/ and tad-sr-teacher/
regression   a baseline for the evaluation, as a model folder tad-sr-regression/: the teacher's network without a chain
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from services.tad_sr.configuration_small import DISCRIMINATOR_LOGITS, PIPELINE, SMALL
from services.tad_sr.denoiser import UNetModelSwin
from services.tad_sr.discriminator import TimeAwareDiscriminator
from services.tad_sr.pipeline import TadSrPipeline
from services.tad_sr.regressionlearner import RegressionLearner
from services.tad_sr.studentlearner import StudentLearner
from shared.resshift.denoiserlearner import DenoiserLearner
from shared.resshift.schedule import exponential
from shared.resshift.scheduler import ResShiftScheduler
from shared.resshift.smallchain import SMALL as SMALL_CHAIN
from shared.resshift.trainingcommand import (
    AUTOENCODER,
    DECODER,
    arguments,
    autoencoder_learner,
    denoiser_learner,
    fresh_autoencoder,
    material,
    placed,
    run,
)
from shared.training import Learner, restored_average

TEACHER, STUDENT, REGRESSION, EXPORT = "teacher", "student", "regression", "export"
STAGES = (AUTOENCODER, DECODER, TEACHER, STUDENT, REGRESSION, EXPORT)
PERCEPTUAL_WEIGHT = 0.2  # makes the term about five times as large as L1
STUDENT_PERCEPTUAL_WEIGHT = 0.3
EMA = {AUTOENCODER: 0.998, DECODER: 0.998, TEACHER: 0.998, STUDENT: 0.995, REGRESSION: 0.998}
NOISELESS_CHAIN = SMALL_CHAIN | {"kappa": 1e-6}


def fresh_denoiser(seed: int) -> UNetModelSwin:
    """The denoiser as training finds it; the same seed gives the same one, and the caller's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        denoiser: UNetModelSwin = UNetModelSwin(**SMALL)
        return denoiser


def fresh_discriminator(seed: int, teacher: UNetModelSwin) -> TimeAwareDiscriminator:
    """The discriminator as training finds it."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        return TimeAwareDiscriminator(
            teacher.feature_channels(), embed_dim=SMALL["model_channels"], c_dim=DISCRIMINATOR_LOGITS
        )


def part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The values of one of a stage's networks."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def trained(network: nn.Module, out: Path, stage: str, name: str) -> nn.Module:
    """A network with the average that a stage left of it. Raises FileNotFoundError where it left none."""
    network.load_state_dict(part(restored_average(out / stage), name))
    return network


def learner(args: argparse.Namespace) -> Learner:
    """The learner of a stage, starting from what the stages before left."""
    if args.stage in (AUTOENCODER, DECODER):
        return autoencoder_learner(args)
    if args.stage == TEACHER:
        return denoiser_learner(args, fresh_denoiser(args.seed), DenoiserLearner, SMALL_CHAIN, PERCEPTUAL_WEIGHT)
    if args.stage == REGRESSION:
        return denoiser_learner(args, fresh_denoiser(args.seed), RegressionLearner, NOISELESS_CHAIN, PERCEPTUAL_WEIGHT)
    pairs, loss, device = material(args, STUDENT_PERCEPTUAL_WEIGHT)
    teacher, student = fresh_denoiser(args.seed), fresh_denoiser(args.seed)
    autoencoder = fresh_autoencoder(args.seed)
    trained(autoencoder, args.out, TEACHER, "autoencoder")
    for network in (teacher, student):
        trained(network, args.out, TEACHER, "denoiser")
    return StudentLearner(
        placed(student, device),
        fresh_discriminator(args.seed, teacher).to(device),
        placed(teacher, device),
        placed(autoencoder, device),
        exponential(**SMALL_CHAIN),
        pairs,
        loss,
        device,
    )


def export(out: Path, seed: int, folder: str, stage: str, name: str, chain: Mapping[str, object]) -> None:
    """A denoiser that a stage left, with the autoencoder of its decoder's stage, as a model folder."""
    denoiser, autoencoder = fresh_denoiser(seed), fresh_autoencoder(seed)
    trained(denoiser, out, stage, name)
    trained(autoencoder, out, TEACHER if stage == STUDENT else stage, "autoencoder")
    TadSrPipeline(denoiser, autoencoder, ResShiftScheduler(**chain), **PIPELINE).save(out / folder, torch.float16)


def main(given: Sequence[str] | None = None) -> int:
    """The command. Raises Problem for a checkpoint that does not fit, OSError for files that are not there."""
    args = arguments("python -m services.tad_sr.train", (__doc__ or "").splitlines()[0], STAGES, given)
    if args.stage == EXPORT:
        export(args.out, args.seed, "tad-sr-teacher", TEACHER, "denoiser", SMALL_CHAIN)
        export(args.out, args.seed, "tad-sr-small", STUDENT, "student", SMALL_CHAIN)
        return 0
    run(learner(args), args, EMA[args.stage])
    if args.stage == REGRESSION:
        export(args.out, args.seed, "tad-sr-regression", REGRESSION, "denoiser", NOISELESS_CHAIN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
