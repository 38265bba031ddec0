"""Walking the chain: from the low-quality latent to the clean one.

Randomness, progress and cancel come in from outside: the same functions run in a worker, in a test that replays the
reference's noise, and in a notebook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from shared.resshift.schedule import ResShiftSchedule


class Denoiser(Protocol):
    """The network in its role."""

    def __call__(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        """What the schedule calls its prediction.

        x        (B, C, h, w)  scaled noisy latent
        t        (B,) int64    index in the chain that it was trained on
        lq       (B, 3, H, W)  the picture itself, in [-1, 1]: the condition
        returns  (B, C, h, w)
        """


OnStep = Callable[[int, int], None]
"""Told the step (from 0) before it is taken, and how many there are; raises to cancel."""


class Sampler(Protocol):
    """A way to walk a chain: `sample` or `sample_deterministic`."""

    def __call__(
        self,
        denoiser: Denoiser,
        schedule: ResShiftSchedule,
        z_y: Tensor,
        lq: Tensor,
        noise: Iterator[Tensor],
        on_step: OnStep,
    ) -> Tensor: ...


def sample(
    denoiser: Denoiser,
    schedule: ResShiftSchedule,
    z_y: Tensor,
    lq: Tensor,
    noise: Iterator[Tensor],
    on_step: OnStep,
) -> Tensor:
    """Ancestral sampling, as DiT-SR and ResShift do it.

    z_y      (B, C, h, w)  latent of the enlarged picture
    lq       (B, 3, H, W)  the picture itself, in [-1, 1]
    noise    yields (B, C, h, w) normals: one for the start, then one a step but the last, which needs none
    on_step  see `OnStep`
    returns  (B, C, h, w)  the prediction of x_0, not clamped
    """
    x = schedule.start(z_y, next(noise))
    steps = len(schedule)
    for step, now in enumerate(reversed(range(steps))):
        on_step(step, steps)
        t = torch.full((len(x),), now, device=x.device)
        pred_x0 = predict(denoiser, schedule, x, z_y, lq, t)
        x = schedule.step(x, pred_x0, t, next(noise)) if now else pred_x0
    return x


def sample_deterministic(
    denoiser: Denoiser,
    schedule: ResShiftSchedule,
    z_y: Tensor,
    lq: Tensor,
    noise: Iterator[Tensor],
    on_step: OnStep,
) -> Tensor:
    """Sampling that draws noise at the start only (SinSR; the teacher of TAD-SR). As `sample`, with one draw."""
    x = schedule.start(z_y, next(noise))
    steps = len(schedule)
    for step, now in enumerate(reversed(range(steps))):
        on_step(step, steps)
        t = torch.full((len(x),), now, device=x.device)
        x = schedule.deterministic_step(x, predict(denoiser, schedule, x, z_y, lq, t), z_y, t)
    return x


def predict(denoiser: Denoiser, schedule: ResShiftSchedule, x_t: Tensor, z_y: Tensor, lq: Tensor, t: Tensor) -> Tensor:
    """The clean latent that the network sees in x_t."""
    output = denoiser(schedule.scale_input(x_t, t), schedule.trained_index(t), lq)
    return schedule.pred_x0(output, z_y)
