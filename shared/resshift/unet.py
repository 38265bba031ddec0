"""Parts of the U-shaped denoisers that DiT-SR and TAD-SR have alike, under the published names."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nn import onednn, winograd
from shared.nn.onednn import PackedConvolution

PICTURE_CHANNELS = 3


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoids of integer timesteps, cosines first: (B,) -> (B, dim) float32"""
    half = dim // 2
    frequencies = max_period ** (-torch.arange(half, device=t.device, dtype=torch.float64) / half)
    angles = (t[:, None].double() * frequencies).float()
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C', H/2, W/2)"""

    _packed: PackedConvolution | None = None

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1)

    def freeze(self) -> None:
        """Order the kernel, for a network that no longer learns and stays where it is."""
        if onednn.usable(self.op.weight):
            self._packed = PackedConvolution(self.op.weight, self.op.bias, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x) if self._packed is None else self._packed(x)


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C', 2H, 2W)"""

    _kernel: winograd.Kernel | None = None

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, padding=1)

    def freeze(self) -> None:
        """Transform the kernel, for a network that no longer learns."""
        self._kernel = winograd.doubling_kernel(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self._kernel is not None:
            return winograd.doubling_convolution(x, self._kernel, cast(Tensor, self.conv.bias))
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def start_at_zero(layer: nn.Module) -> None:
    """Let a layer answer with zeros until it learns."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def feature_extractor(factor: int) -> tuple[nn.Module, int]:
    """What brings the picture to the side of the latent, and its channels: for each halving two convolutions.

    Raises ValueError unless `factor` is a power of two.
    """
    if factor.bit_count() != 1:
        raise ValueError(f"a picture {factor} times as large as the latent is not halved to it")
    if factor == 1:
        return nn.Identity(), PICTURE_CHANNELS
    parts: list[nn.Module] = []
    n_in, n_out = PICTURE_CHANNELS, 16
    while factor > 1:
        parts += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.SiLU(), Downsample(n_out, 2 * n_out)]
        n_in = n_out = 2 * n_out
        factor //= 2
    return nn.Sequential(*parts), n_out
