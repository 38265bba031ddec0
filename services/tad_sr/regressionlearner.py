"""The baseline that every diffusion has to be held against: the same network, asked once, without noise."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from shared.resshift.denoiserlearner import DenoiserLearner


class RegressionLearner(DenoiserLearner):
    """As the teacher learns, but from z_y alone. Its schedule has no noise to speak of."""

    def noised(self, z: Tensor, z_y: Tensor, lq: Tensor, rng: Generator, own: bool) -> tuple[Tensor, Tensor]:
        return z_y, torch.full((len(z),), len(self.schedule) - 1)
