"""What the training commands of the family share: their arguments, their report, and the stage of the autoencoder."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import load_file
from torch import nn

from shared.resshift import autoencoderlearner, decoderlearner
from shared.resshift.autoencoderlearner import AutoencoderLearner
from shared.resshift.decoderlearner import DecoderLearner
from shared.resshift.denoiserlearner import LATENTS_ALONE, DenoiserLearner
from shared.resshift.imageloss import ImageLoss
from shared.resshift.pipeline import WEIGHTS
from shared.resshift.schedule import exponential
from shared.resshift.smallautoencoder import SMALL, SmallAutoencoder
from shared.resshift.trainingdata import Pairs, load_pairs
from shared.training import Budget, Learner, Metrics, Trained, restored_average, train

Placed = TypeVar("Placed", bound=nn.Module)

log = logging.getLogger("train")

AUTOENCODER, DECODER = "autoencoder", "decoder"  # the stages that both methods begin with, and their folders
SEED = 20250601


def arguments(prog: str, description: str, stages: Sequence[str], given: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line of a training and set up its log and threads."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder of natural_sr.zip")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, caches and what `export` writes")
    parser.add_argument("--stage", choices=stages, required=True)
    parser.add_argument("--init", type=Path, help="model folder whose networks a stage learns on from")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="seconds of computing, resumes included")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(args.threads)
    return args


def report(step: int, of: int, metrics: Metrics) -> None:
    """One line a report, on stderr."""
    log.info("step %d of %d  %s", step, of, "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def material(args: argparse.Namespace, perceptual_weight: float) -> tuple[Pairs, ImageLoss, torch.device]:
    """What every stage learns from."""
    device = torch.device(args.device)
    loss = placed(ImageLoss.load(perceptual_weight), device)
    return load_pairs(args.data, args.out, args.seed), loss, device


def placed(module: Placed, device: torch.device) -> Placed:
    """A module on its device, channels last: on a CPU its convolutions are half as fast again in bfloat16."""
    return cast(Placed, module.to(device).to(memory_format=torch.channels_last))  # type: ignore[call-overload]


def fresh_autoencoder(seed: int) -> SmallAutoencoder:
    """The autoencoder as training finds it; the same seed gives the same one, and the caller's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        return SmallAutoencoder(**SMALL)


def autoencoder_learner(args: argparse.Namespace) -> Learner:
    """The learner of one of the stages that both methods begin with."""
    if args.stage == DECODER:
        pairs, loss, device = material(args, decoderlearner.PERCEPTUAL_WEIGHT)
        autoencoder = trained_autoencoder(args, AUTOENCODER) if args.init is None else fresh_autoencoder(args.seed)
        continued(autoencoder, args.init, "autoencoder")
        return DecoderLearner(placed(autoencoder, device), pairs, loss, device)
    pairs, loss, device = material(args, autoencoderlearner.PERCEPTUAL_WEIGHT)
    return AutoencoderLearner(placed(fresh_autoencoder(args.seed), device), pairs, loss, device)


def trained_autoencoder(args: argparse.Namespace, stage: str) -> SmallAutoencoder:
    """What a stage left in --out. Raises FileNotFoundError."""
    autoencoder = fresh_autoencoder(args.seed)
    autoencoder.load_state_dict(restored_average(args.out / stage))
    return autoencoder


def continued(network: Placed, init: Path | None, name: str) -> Placed:
    """A network, with the weights that a model folder has under this name. Raises OSError where it has none."""
    if init is not None:
        network.load_state_dict(load_file(init / name / WEIGHTS))
    return network


def denoiser_learner(
    args: argparse.Namespace,
    denoiser: nn.Module,
    kind: type[DenoiserLearner],
    chain: Mapping[str, Any],
    perceptual_weight: float,
) -> Learner:
    """The learner of a stage that trains a denoiser, with its own copy of the autoencoder.

    With --init the denoiser learns on from that folder's, and on pictures at once.
    """
    pairs, loss, device = material(args, perceptual_weight)
    autoencoder = placed(trained_autoencoder(args, DECODER), device)
    continued(denoiser, args.init, "denoiser")
    latents_alone = LATENTS_ALONE if args.init is None else 0
    return kind(placed(denoiser, device), autoencoder, exponential(**chain), pairs, loss, device, latents_alone)


def run(learner: Learner, args: argparse.Namespace, ema_decay: float) -> Trained:
    """One stage to the end of its budget."""
    budget = Budget(args.steps, args.budget_s)
    trained = train(learner, args.out / args.stage, budget, args.seed, ema_decay, report)
    log.info("%s: %d steps in %.1f min", args.stage, trained.step, trained.elapsed_s / 60)
    return trained
