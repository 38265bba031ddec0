"""How far a reconstruction is from its original (dlsr.md 3.3). Larger is more out of distribution.

Every score comes as its parts by layer, (B, M), whose sum is the score: so a caller sees what made it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from services.dlsr.layers import layer_cosines, layer_sums


def mse(z: Tensor, z_hat: Tensor, boundaries: Sequence[int]) -> Tensor:
    """Squared error, summed over all dimensions, not averaged."""
    return layer_sums((z - z_hat).square(), boundaries)


def mfsim(z: Tensor, z_hat: Tensor, boundaries: Sequence[int]) -> Tensor:
    """Minus the mean cosine over the layers but the first, which the reference leaves out."""
    parts = -layer_cosines(z, z_hat, boundaries)
    return torch.cat([torch.zeros_like(parts[:, :1]), parts[:, 1:] / (len(boundaries) - 1)], dim=1)


def mfsim_all(z: Tensor, z_hat: Tensor, boundaries: Sequence[int]) -> Tensor:
    """Minus the mean cosine over all layers."""
    return -layer_cosines(z, z_hat, boundaries) / len(boundaries)


def lr(z: Tensor, z_hat_end: Tensor, z_hat_first: Tensor, boundaries: Sequence[int]) -> Tensor:
    """By how much the early network reconstructs worse than the final one, from the same draws: likelihood regret."""
    return mse(z, z_hat_first, boundaries) - mse(z, z_hat_end, boundaries)
