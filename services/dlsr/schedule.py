"""The noise schedule of DLSR (dlsr.md 3.1), "linear" in latent-diffusion's sense.

x_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps,   t = 0 (least noise) .. T-1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """The chain's numbers, (T,) in float64."""

    betas: NDArray[np.float64]
    alpha_bar: NDArray[np.float64]

    def add_noise(self, z_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw x_t. z_0 and noise (B, D), t (B,) int64; returns (B, D)."""
        alpha_bar = torch.from_numpy(self.alpha_bar).to(z_0.device)[t][:, None]
        return alpha_bar.sqrt().to(z_0.dtype) * z_0 + (1 - alpha_bar).sqrt().to(z_0.dtype) * noise


@dataclass(frozen=True)
class Step:
    """One reverse step.

    t               the network's timestep; the prediction of the noise uses alpha_bar_t
    alpha_bar       the sampler's own, which the reference reads one place lower, at t - 1
    alpha_bar_prev  the one that the step goes to
    sigma           deviation of the noise that is drawn
    """

    t: int
    alpha_bar_t: float
    alpha_bar: float
    alpha_bar_prev: float
    sigma: float

    @property
    def is_identity(self) -> bool:
        """Whether the step gives its input back: the last one of the reference does, for its table ends in a double."""
        return self.alpha_bar == self.alpha_bar_prev


def linear_schedule(timesteps: int, linear_start: float, linear_end: float) -> Schedule:
    """Betas whose roots are evenly spaced."""
    betas = np.square(np.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=np.float64))
    return Schedule(betas, np.cumprod(1 - betas))


def reverse_steps(schedule: Schedule, timesteps: Sequence[int], eta: float) -> list[Step]:
    """The steps of the sampler, in the order in which they are taken.

    timesteps  ascending, from 1 on
    eta        of DDIM: 1 draws noise as the chain does, 0 draws none
    """
    steps = []
    for place, t in enumerate(timesteps):
        now = float(schedule.alpha_bar[t - 1])
        prev = float(schedule.alpha_bar[timesteps[place - 1] - 1 if place else 0])
        sigma = eta * ((1 - prev) / (1 - now) * (1 - now / prev)) ** 0.5
        steps.append(Step(t, float(schedule.alpha_bar[t]), now, prev, sigma))
    return steps[::-1]


PAPER = linear_schedule(100, 0.0015, 0.0195)
STEPS, ETA = 3, 1.0
