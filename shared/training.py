"""The one training loop: a method brings a learner, the loop brings time, averages, checkpoints and progress.

A step draws all its randomness from a generator that is seeded by (seed, step), and the loop keeps nothing else
between steps: so a run that was killed and resumed continues with the very numbers it would have had.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from shared.problems import Problem

CHECKPOINT = "checkpoint.pt"

Metrics = Mapping[str, float]
Report = Callable[[int, int, Metrics], None]


class Learner(Protocol):
    """What a method brings: networks, their optimizers, and what one step does to them."""

    @property
    def networks(self) -> nn.Module:
        """Everything that learns, the networks that are not shipped included."""

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        """Optimizers by name: their state is part of a checkpoint."""

    def step(self, step: int, done: float, rng: Generator) -> Mapping[str, Tensor]:
        """Learn once.

        step     counts from 0, over all resumes
        done     share of the budget that is spent, 0 .. 1: what a schedule of learning rates goes by
        rng      a CPU generator for this step alone: data, noise and every other draw come from it
        returns  scalars worth reporting; they are read only when a line is due
        """


@dataclass(frozen=True)
class Budget:
    """When to stop: after `steps` in all or `seconds` of computing in all (resumes included), whichever is first."""

    steps: int
    seconds: float = float("inf")

    def spent(self, step: int, elapsed_s: float) -> float:
        """Share of the budget that is used up, 0 .. 1."""
        return min(1.0, max(step / max(self.steps, 1), elapsed_s / self.seconds))


@dataclass(frozen=True)
class Rhythm:
    """How often the loop does what is not learning."""

    report_steps: int = 50
    checkpoint_s: float = 120.0


class CheckpointUnusable(Problem):
    """The checkpoint in the folder belongs to other networks or is damaged. Name another folder, or remove it."""

    code, status, title = "checkpoint_unusable", 409, "The checkpoint cannot be resumed."


class Average:
    """Exponential moving average of a module's floating values (its "EMA"); other values are copied.

    The decay grows to its final value over the first steps, so that the average forgets the random start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module's present values."""
        self.steps += 1
        keep = min(self.decay, (self.steps + 1) / (self.steps + 10))
        for name, value in module.state_dict().items():
            average = self.values[name]
            if average.is_floating_point():
                average.lerp_(value.to(average), 1 - keep)
            else:
                average.copy_(value)


@dataclass(frozen=True)
class Trained:
    """What is left when the loop ends."""

    step: int
    elapsed_s: float  # of computing, all resumes together
    average: dict[str, Tensor]  # the state dict of the averaged networks


def train(
    learner: Learner,
    folder: Path,
    budget: Budget,
    seed: int,
    ema_decay: float,
    report: Report,
    rhythm: Rhythm = Rhythm(),
    clock: Callable[[], float] = time.monotonic,
) -> Trained:
    """Let a learner learn until the budget is spent, and leave a checkpoint at the end.

    folder   holds the checkpoint; where one lies there, the run continues from it
    report   is told the steps done, the steps in all and the metrics; what it raises ends the run (a cancel), and
             the last checkpoint stays
    raises   CheckpointUnusable
    """
    folder.mkdir(parents=True, exist_ok=True)
    average = Average(learner.networks, ema_decay)
    step, elapsed_s = restore(learner, average, folder / CHECKPOINT, seed)
    started, saved = clock() - elapsed_s, clock()
    while (done := budget.spent(step, clock() - started)) < 1:
        metrics = learner.step(step, done, step_rng(seed, step))
        average.update(learner.networks)
        step += 1
        if step % rhythm.report_steps == 0:
            report(step, budget.steps, {name: float(value) for name, value in metrics.items()})
        if clock() - saved >= rhythm.checkpoint_s:
            save(learner, average, folder / CHECKPOINT, seed, step, clock() - started)
            saved = clock()
    elapsed_s = clock() - started
    save(learner, average, folder / CHECKPOINT, seed, step, elapsed_s)
    return Trained(step, elapsed_s, average.values)


def step_rng(seed: int, step: int) -> Generator:
    """The generator of one step: a hash of seed and step, so that steps are independent and none needs the last."""
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def save(learner: Learner, average: Average, path: Path, seed: int, step: int, elapsed_s: float) -> None:
    """Write a checkpoint so that a crash at any moment leaves either the old or the new one whole."""
    state = {
        "seed": seed,
        "step": step,
        "elapsed_s": elapsed_s,
        "networks": learner.networks.state_dict(),
        "average": average.values,
        "average_steps": average.steps,
        "optimizers": {name: optimizer.state_dict() for name, optimizer in learner.optimizers.items()},
    }
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def restore(learner: Learner, average: Average, path: Path, seed: int) -> tuple[int, float]:
    """Steps done and seconds spent according to the checkpoint, whose state the learner then has; (0, 0.0) if none."""
    if not path.exists():
        return 0, 0.0
    device = next(iter(learner.networks.state_dict().values())).device
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        if state["seed"] != seed:
            raise CheckpointUnusable(f"{path} was made with seed {state['seed']}, not {seed}.")
        learner.networks.load_state_dict(state["networks"])
        for name, optimizer in learner.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if state["average"].keys() != average.values.keys():
            raise CheckpointUnusable(f"{path} averages other networks.")
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise CheckpointUnusable(f"{path}: {error}") from error
    average.values, average.steps = state["average"], state["average_steps"]
    return state["step"], state["elapsed_s"]


def restored_average(folder: Path) -> dict[str, Tensor]:
    """The averaged networks that a run left in its folder. Raises FileNotFoundError where none did."""
    state: dict[str, Any] = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    average: dict[str, Tensor] = state["average"]
    return average
