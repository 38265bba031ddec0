"""LFDN, the Latent Feature Diffusion Network (dlsr.md 2.2): an MLP that predicts the clean vector from a noisy one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

NORM_EPS = 1e-5


@dataclass(frozen=True)
class LFDNConfig:
    """Sizes, by their names in the reference's configuration."""

    in_channels: int
    model_channels: int
    bottleneck_channels: int
    time_embed_dim: int
    num_res_blocks: int


class ResBlock(nn.Module):
    """Norm, narrow, shift by the timestep, norm, widen, add."""

    def __init__(self, config: LFDNConfig) -> None:
        super().__init__()
        wide, narrow = config.model_channels, config.bottleneck_channels
        self.in_layers = nn.Sequential(nn.LayerNorm(wide, NORM_EPS), nn.SiLU(), nn.Linear(wide, narrow))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(config.time_embed_dim, narrow))
        last = zero(nn.Linear(narrow, wide))
        # The reference drops out with probability 0, which leaves the name of the last layer.
        self.out_layers = nn.Sequential(nn.LayerNorm(narrow, NORM_EPS), nn.SiLU(), nn.Identity(), last)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """x (B, C), shift (B, narrow) or (1, narrow); returns (B, C)."""
        return x + self.out_layers(self.in_layers(x) + shift)


class LFDN(nn.Module):
    """The network. The reference's group norms have one group of all channels: a layer norm."""

    def __init__(self, config: LFDNConfig) -> None:
        super().__init__()
        self.config = config
        wide = config.model_channels
        self.input_proj = nn.Sequential(nn.SiLU(), nn.Linear(config.in_channels, wide))
        self.time_embed = nn.Sequential(
            nn.Linear(wide, config.time_embed_dim), nn.SiLU(), nn.Linear(config.time_embed_dim, config.time_embed_dim)
        )
        self.res_blocks = nn.ModuleList(ResBlock(config) for _ in range(config.num_res_blocks))
        last = zero(nn.Linear(wide, config.in_channels))
        self.out = nn.Sequential(nn.LayerNorm(wide, NORM_EPS), nn.SiLU(), last)

    def shifts(self, t: Tensor) -> list[Tensor]:
        """What the timesteps (B,) add inside each block: (B, narrow) a block. It does not depend on the vectors."""
        table = sinusoid(t, self.config.model_channels).to(next(self.parameters()).dtype)
        embedded = self.time_embed(table)
        return [cast(ResBlock, block).emb_layers(embedded) for block in self.res_blocks]

    def denoise(self, x: Tensor, shifts: Sequence[Tensor]) -> Tensor:
        """The clean vectors (B, D) predicted from noisy ones (B, D), with `shifts` of their timesteps."""
        x = self.input_proj(x)
        for block, shift in zip(self.res_blocks, shifts, strict=True):
            x = block(x, shift)
        return self.out(x)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, D), t (B,) int64 in 0..T-1; returns the predicted z_0 (B, D)."""
        return self.denoise(x, self.shifts(t))


def zero(layer: nn.Linear) -> nn.Linear:
    """The layer with all its numbers 0, as the network begins."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def sinusoid(t: Tensor, channels: int) -> Tensor:
    """cos, then sin, of t at falling frequencies (B, channels), in float32; a zero at the end where that is odd."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t[:, None].float() * frequencies
    table = torch.cat([angles.cos(), angles.sin()], dim=1)
    return nn.functional.pad(table, (0, channels % 2))
