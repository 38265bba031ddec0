"""T, the identity transform: a small invertible network that moves an identity as a secret key says (ifadit.md 2.6).

A block, on x of length n with the condition c (passive part x1 of length n - n // 2, active part x2 of length n // 2):

    h  = 0.1 subnet([x1, c])          s = clamp tanh(h[: n // 2]),   t = h[n // 2 :]
    u  = [x1, x2 exp(s) + t] g + o    g = 0.2 log(1 + exp(global_scale / 2)),   o = global_offset
    y  = W u                          W a fixed permutation
    log|det dy/dx| = sum(s) + sum(log g)

The output is not of unit length. With saturated scales the inverse amplifies rounding by up to exp(clamp) a block:
whoever needs the exact inverse runs the module in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.ifadit.mlp import mlp


@dataclass(frozen=True)
class FlowConfig:
    """Sizes of T."""

    dim: int
    """Length of an identity."""
    condition: int
    """Length of the condition c = G.style(k)."""
    hidden: tuple[int, ...]
    """Widths of the hidden layers of each subnet."""
    blocks: int
    clamp: float
    """Bound of |s|, the log of the factor a coordinate is multiplied by in one block."""
    negative_slope: float


class Step(NamedTuple):
    """What one block did."""

    value: Tensor  # (B, dim)
    log_scale: Tensor  # (B, dim // 2), s as computed from the passive part, in either direction
    logdet: Tensor  # (B,), of the direction taken


class CouplingBlock(nn.Module):
    """Affine coupling, global affine, permutation: FrEIA 0.2's AllInOneBlock with a condition."""

    w_perm: Tensor
    w_perm_inv: Tensor

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.clamp = config.clamp
        self.active = config.dim // 2
        self.passive = config.dim - self.active
        # 0.2 log(1 + exp(x / 2)) = 1 at the start.
        self.global_scale = nn.Parameter(torch.full((1, config.dim), 2 * math.log(math.expm1(5))))
        self.global_offset = nn.Parameter(torch.zeros(1, config.dim))
        permutation = torch.eye(config.dim)[torch.randperm(config.dim)]
        self.register_buffer("w_perm", permutation)
        self.register_buffer("w_perm_inv", permutation.T.contiguous())
        widths = (self.passive + config.condition, *config.hidden, 2 * self.active)
        self.subnet = mlp(widths, config.negative_slope)

    def forward(self, x: Tensor, condition: Tensor) -> Step:
        """x (B, dim), condition (B, cond)"""
        x1, x2 = x.split((self.passive, self.active), dim=1)
        s, t = self._coupling(x1, condition)
        g = self._gain()
        u = torch.cat([x1, x2 * s.exp() + t], dim=1) * g + self.global_offset
        return Step(F.linear(u, self.w_perm), s, s.sum(1) + g.log().sum())

    def inverse(self, y: Tensor, condition: Tensor) -> Step:
        """y (B, dim), condition (B, cond)"""
        g = self._gain()
        u = (F.linear(y, self.w_perm_inv) - self.global_offset) / g
        x1, x2 = u.split((self.passive, self.active), dim=1)
        s, t = self._coupling(x1, condition)
        return Step(torch.cat([x1, (x2 - t) * (-s).exp()], dim=1), s, -s.sum(1) - g.log().sum())

    def _coupling(self, passive: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        h = 0.1 * self.subnet(torch.cat([passive, condition], dim=1))
        s, t = h.split(self.active, dim=1)
        return self.clamp * s.tanh(), t

    def _gain(self) -> Tensor:
        """(1, dim), g of the module's docstring"""
        return 0.1 * F.softplus(self.global_scale, beta=0.5)


class IdentityTransform(nn.Module):
    """The blocks in order; conditions are the rows of `condition`, one for each identity."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.module_list = nn.ModuleList(CouplingBlock(config) for _ in range(config.blocks))

    def steps(self, z: Tensor, condition: Tensor) -> Iterator[Step]:
        """Every block of the forward direction, for monitors and tests."""
        for block in self.module_list:
            step = block(z, condition)
            yield step
            z = step.value

    def inverse_steps(self, z: Tensor, condition: Tensor) -> Iterator[Step]:
        """Every block of the inverse direction, the last block first."""
        for block in reversed(self.module_list):
            step = cast(CouplingBlock, block).inverse(z, condition)
            yield step
            z = step.value

    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Move identities.

        z          (B, dim)   in the dtype of the parameters
        condition  (B, cond)
        returns    z' (B, dim), not of unit length, and log|det dz'/dz| (B,)
        """
        return collect(self.steps(z, condition))

    def inverse(self, z: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Move identities back: z (B, dim) and log|det| (B,) of this direction."""
        return collect(self.inverse_steps(z, condition))


def collect(steps: Iterator[Step]) -> tuple[Tensor, Tensor]:
    """The last value, and the sum of the log-determinants."""
    value, _, logdet = next(steps)
    for step in steps:
        value, logdet = step.value, logdet + step.logdet
    return value, logdet


PAPER = FlowConfig(dim=512, condition=512, hidden=(256, 128, 128, 256), blocks=4, clamp=2.0, negative_slope=0.01)
