"""LFDN learns (dlsr.md 4) in stretches: after each, its average is validated, and the best one kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.optim import AdamW, Optimizer

from services.dlsr import schedule as schedules
from services.dlsr.lfdn import LFDN, LFDNConfig
from services.dlsr.service import Kind, NotLearned
from shared.training import Budget, Metrics, Report, Rhythm, step_rng, train

VALIDATION_NOISES = 8  # for each vector of validation: the loss is then steady to a percent
VALIDATION_STEP, EPOCH_STEP = -1, -2  # random numbers that belong to no step of the training; epochs count on downwards
LEARNED = 0.9  # of the loss of a network that answers 0, as all do at first: above it nothing was learned
HISTORY, BEST, FIRST = "history.json", "best.safetensors", "first.safetensors"


@dataclass(frozen=True)
class Preset:
    """How a detector is fitted.

    epochs, most_steps  whichever ends sooner, and validation may end it before
    first_epochs        after so many the early network is kept, for the score `lr`
    stretch             steps from one look at validation to the next
    patience            so many looks without a better one end the fit
    lr, lr_end          the learning rate falls from one to the other along a cosine
    bank                at most so many fitted vectors are kept, for the score `knn`
    mirrored            LFDN learns from the mirror image of every picture, too
    """

    model_channels: int
    bottleneck_channels: int
    time_embed_dim: int
    num_res_blocks: int
    lr: float
    lr_end: float
    weight_decay: float
    batch: int
    ema_decay: float
    epochs: int
    most_steps: int
    first_epochs: int
    stretch: int
    patience: int
    bank: int
    mirrored: bool
    draws: int
    kind: Kind
    alpha: float

    def network(self, width: int) -> LFDNConfig:
        """The network for vectors of some width."""
        return LFDNConfig(
            width, self.model_channels, self.bottleneck_channels, self.time_embed_dim, self.num_res_blocks
        )

    def steps(self, count: int) -> tuple[int, int]:
        """How many steps for `count` vectors, and after which of them the early network is kept."""
        an_epoch = max(1, count // self.batch)  # the last, smaller batch is dropped
        steps = min(self.epochs * an_epoch, self.most_steps)
        return steps, min(self.first_epochs * an_epoch, max(1, steps // 4))


class LfdnLearner:
    """LFDN learns to tell clean vectors from noisy ones (dlsr.md 4)."""

    def __init__(self, network: LFDN, vectors: Tensor, preset: Preset, steps: int, seed: int) -> None:
        self.networks: nn.Module = network
        self._network, self._vectors, self._preset, self._steps, self._seed = network, vectors, preset, steps, seed
        self._adam = AdamW(network.parameters(), preset.lr, weight_decay=preset.weight_decay)
        self.optimizers: Mapping[str, Optimizer] = {"adam": self._adam}

    def step(self, step: int, done: float, rng: Generator) -> Mapping[str, Tensor]:
        """One batch. The learning rate goes by the step: a fit consists of several runs of the loop."""
        preset = self._preset
        if preset.lr_end < preset.lr:
            fall = (1 + math.cos(math.pi * step / self._steps)) / 2
            for group in self._adam.param_groups:
                group["lr"] = preset.lr_end + (preset.lr - preset.lr_end) * fall
        loss = reconstruction_loss(self._network, self._vectors[self._batch(step)], rng)
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()
        return {"loss": loss.detach()}

    def _batch(self, step: int) -> Tensor:
        """Places of the vectors of a step: every epoch has its own order."""
        size = min(self._preset.batch, len(self._vectors))
        epoch, place = divmod(step, len(self._vectors) // size)
        order = torch.randperm(len(self._vectors), generator=step_rng(self._seed, EPOCH_STEP - epoch))
        return order[place * size : (place + 1) * size]


def reconstruction_loss(network: LFDN, z: Tensor, rng: Generator) -> Tensor:
    """Mean squared error of the predicted clean vectors (B, D); t is uniform over the chain."""
    t = torch.randint(len(schedules.PAPER.betas), (len(z),), generator=rng).to(z.device)
    noise = torch.randn(z.shape, generator=rng).to(z.device)
    return F.mse_loss(network(schedules.PAPER.add_noise(z, t, noise), t), z)


@dataclass(frozen=True)
class Trained:
    """The averaged networks: the best by validation, and the early one. `losses` of validation by step."""

    end: LFDN
    first: LFDN
    steps: int
    losses: dict[str, float]


def fit_networks(
    vectors: Tensor,
    validation: Tensor,
    preset: Preset,
    seed: int,
    folder: Path,
    device: torch.device,
    on_progress: Report,
    on_checkpoint: Callable[[], None],
) -> Trained:
    """Train LFDN in stretches; after each the averaged network is validated, and the best one kept."""
    steps, first_at = preset.steps(len(vectors))
    network = fresh(preset.network(vectors.shape[1]), seed).to(device)
    learner = LfdnLearner(network, vectors.to(device), preset, steps, seed)
    held_back = validation.to(device)
    folder.mkdir(parents=True, exist_ok=True)
    losses = _history(folder)
    for until in sorted({first_at, steps, *range(preset.stretch, steps, preset.stretch)}):
        if str(until) in losses:
            continue
        if str(first_at) in losses and _stalled(losses, preset.patience):
            break

        def report(step: int, _: int, metrics: Metrics) -> None:
            on_progress(step, steps, metrics)

        average = train(learner, folder, Budget(until), seed, preset.ema_decay, report, Rhythm(10, 30)).average
        loss = _validated(network.config, average, held_back, seed)
        if until == first_at:
            _keep(average, folder / FIRST)
        if loss < min(losses.values(), default=math.inf):
            _keep(average, folder / BEST)
        losses[str(until)] = loss
        _write_history(folder, losses)
        on_progress(until, steps, {"validation_loss": loss})
        on_checkpoint()
    before, after = float(validation.square().mean()), min(losses.values())
    if not after < LEARNED * before:
        raise NotLearned(f"The loss of validation was {before:.3f} before the first step and {after:.3f} at best.")
    best, first = (_kept(network.config, folder / name, device) for name in (BEST, FIRST))
    return Trained(best, first, int(list(losses)[-1]), losses)


def _validated(config: LFDNConfig, state: dict[str, Tensor], vectors: Tensor, seed: int) -> float:
    """The loss of an averaged network. Raises `NotLearned` where it is not a number."""
    network = LFDN(config).to(vectors.device)
    network.load_state_dict(state)
    with torch.inference_mode():
        repeated = vectors.repeat(VALIDATION_NOISES, 1)
        loss = float(reconstruction_loss(network, repeated, step_rng(seed, VALIDATION_STEP)))
    if not math.isfinite(loss):
        raise NotLearned("The loss of validation is no number any more.")
    return loss


def fresh(config: LFDNConfig, seed: int) -> LFDN:
    """A network as training finds it; the same seed gives the same one, and the caller's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        return LFDN(config)


def _stalled(losses: Mapping[str, float], patience: int) -> bool:
    values = list(losses.values())
    return len(values) > patience and min(values[-patience:]) >= min(values[:-patience])


def _history(folder: Path) -> dict[str, float]:
    try:
        known: dict[str, float] = json.loads((folder / HISTORY).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return known


def _write_history(folder: Path, losses: Mapping[str, float]) -> None:
    part = (folder / HISTORY).with_suffix(".part")
    part.write_text(json.dumps(losses))
    part.replace(folder / HISTORY)


def _keep(state: Mapping[str, Tensor], path: Path) -> None:
    """In half precision, as it will be stored: the calibration is made for the numbers that will score."""
    part = path.with_suffix(".part")
    save_file({name: value.half().contiguous() for name, value in state.items()}, part)
    part.replace(path)


def _kept(config: LFDNConfig, path: Path, device: torch.device) -> LFDN:
    network = LFDN(config)
    network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return network.to(device).eval().requires_grad_(False)


# Widths, blocks and steps were chosen by validation (selection.py).
SMALL = Preset(
    model_channels=384,
    bottleneck_channels=96,
    time_embed_dim=64,
    num_res_blocks=2,
    lr=1e-3,
    lr_end=1e-6,
    weight_decay=0.02,
    batch=256,
    ema_decay=0.9999,
    epochs=100,
    most_steps=600,
    first_epochs=8,
    stretch=50,
    patience=2,
    bank=4_000,
    mirrored=False,
    draws=4,
    kind="mse",
    alpha=0.05,
)
# The reference's values (dlsr.md 2.2 and 4); it neither validates nor averages draws.
PAPER = Preset(
    model_channels=1440,
    bottleneck_channels=1440,
    time_embed_dim=720,
    num_res_blocks=16,
    lr=1e-5,
    lr_end=1e-5,
    weight_decay=0.02,
    batch=256,
    ema_decay=0.9999,
    epochs=150,
    most_steps=2**31,
    first_epochs=1,
    stretch=2_000,
    patience=2**31,
    bank=4_000,
    mirrored=False,
    draws=1,
    kind="mfsim",
    alpha=0.05,
)
PRESETS: Mapping[str, Preset] = {"small": SMALL, "paper": PAPER}
