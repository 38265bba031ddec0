"""StyleGAN's linear layer with an equalised learning rate: unit-variance weights, scaled when they are used."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scaled_leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, times sqrt(2) so that the variance stays (`fused_leaky_relu` of the reference)."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class EqualLinear(nn.Module):
    """x W^T lr_mul / sqrt(n_in) + b lr_mul, optionally followed by `scaled_leaky_relu`."""

    def __init__(self, n_in: int, n_out: int, *, bias_init: float, lr_mul: float, activate: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr_mul)
        self.bias = nn.Parameter(torch.full((n_out,), bias_init))
        self.scale = lr_mul / math.sqrt(n_in)
        self.lr_mul = lr_mul
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_in) -> (..., n_out)"""
        y = F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)
        return scaled_leaky_relu(y) if self.activate else y
