"""G, the generator: StyleGAN2 (Karras et al. 2020) with the names of rosinality/stylegan2-pytorch (ifadit.md 2.4).

A modulated convolution is computed as "scale the inputs, convolve with one weight, scale the outputs": the same as a
weight of its own for every sample, without grouped convolutions. The noise maps are buffers and part of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.ifadit.equalized import EqualLinear, scaled_leaky_relu
from services.ifadit.fir import Blur, Upsample


@dataclass(frozen=True)
class SeedConfig:
    """A spatial seed: some style rows become a small map that is added to the features of one resolution.

    Styles alone on a constant 4 x 4 input learn a layout slowly; seeds are ours, the authors' generator has none.
    """

    rows: tuple[int, int]
    """First and end row of the style rows that are read."""
    channels: int
    size: int
    """Side of the map in pixels, and the resolution at which it is added."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of G."""

    channels: tuple[int, ...]
    """Channels at 4, 8, 16, … pixels; their number sets the size of the picture."""
    style_dim: int
    n_mlp: int
    """Layers of the mapping network."""
    lr_mlp: float
    """Learning-rate factor of the mapping network."""
    blur: tuple[int, ...]
    """Taps of the resampling filter, not normalised."""
    seeds: tuple[SeedConfig, ...]

    @property
    def size(self) -> int:
        """Side of the picture in pixels."""
        return 4 << (len(self.channels) - 1)

    @property
    def styles(self) -> int:
        """Number of style rows."""
        return 2 * len(self.channels)

    def __post_init__(self) -> None:
        sizes = [8 << level for level in range(len(self.channels) - 1)]
        for seed in self.seeds:
            if seed.size not in sizes or not 0 <= seed.rows[0] < seed.rows[1] <= self.styles:
                raise ValueError(f"{seed} does not fit sizes {sizes} and {self.styles} style rows")


class PixelNorm(nn.Module):
    """Scale every vector to a mean square of 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class ModulatedConv2d(nn.Module):
    """A convolution whose input channels are scaled by a style and whose output channels are brought to unit norm."""

    def __init__(
        self, n_in: int, n_out: int, kernel: int, style_dim: int, *, demodulate: bool, up: tuple[int, ...] | None
    ) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(n_in * kernel * kernel)
        self.demodulate = demodulate
        self.padding = kernel // 2
        self.weight = nn.Parameter(torch.randn(1, n_out, n_in, kernel, kernel))
        self.blur = Blur(up, kernel) if up else None
        self.modulation = EqualLinear(style_dim, n_in, bias_init=1.0, lr_mul=1.0, activate=False)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x (B, n_in, H, W), w (B, style_dim) -> (B, n_out, H, W), or twice the size"""
        style = self.modulation(w)  # (B, n_in)
        weight = self.scale * self.weight[0]
        x = x * style[:, :, None, None]
        if self.blur:
            y = self.blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
        else:
            y = F.conv2d(x, weight, padding=self.padding)
        if self.demodulate:
            power = style.square() @ weight.square().sum((2, 3)).T  # (B, n_out)
            y = y * torch.rsqrt(power + 1e-8)[:, :, None, None]
        return y


class NoiseInjection(nn.Module):
    """Add a fixed noise map, times one learned weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + self.weight * noise


class FusedLeakyReLU(nn.Module):
    """A bias a channel, then `scaled_leaky_relu`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return scaled_leaky_relu(x + self.bias[:, None, None])


class StyledConv(nn.Module):
    """Modulated 3 x 3 convolution, noise, activation."""

    def __init__(self, n_in: int, n_out: int, config: GeneratorConfig, *, up: bool) -> None:
        super().__init__()
        taps = config.blur if up else None
        self.conv = ModulatedConv2d(n_in, n_out, 3, config.style_dim, demodulate=True, up=taps)
        self.noise = NoiseInjection()
        self.activate = FusedLeakyReLU(n_out)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        return self.activate(self.noise(self.conv(x, w), noise))


class ToRGB(nn.Module):
    """From features to colours, on top of the enlarged colours of the resolution below."""

    def __init__(self, n_in: int, config: GeneratorConfig, *, up: bool) -> None:
        super().__init__()
        self.upsample = Upsample(config.blur) if up else None
        self.conv = ModulatedConv2d(n_in, 3, 1, config.style_dim, demodulate=False, up=None)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, w: Tensor, below: Tensor | None) -> Tensor:
        rgb = self.conv(x, w) + self.bias
        return rgb if self.upsample is None or below is None else rgb + self.upsample(below)


class ConstantInput(nn.Module):
    """The learned 4 x 4 map that every picture starts from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))

    def forward(self, batch: int) -> Tensor:
        return self.input.expand(batch, -1, -1, -1)


class SpatialSeed(nn.Module):
    """Some style rows as a map of one resolution. Equalised like the rest of the generator."""

    def __init__(self, config: SeedConfig, style_dim: int, n_out: int) -> None:
        super().__init__()
        self.config = config
        values = config.channels * config.size * config.size
        self.linear = EqualLinear(
            style_dim * (config.rows[1] - config.rows[0]), values, bias_init=0.0, lr_mul=1.0, activate=True
        )
        self.weight = nn.Parameter(torch.randn(n_out, config.channels, 1, 1))

    def forward(self, wplus: Tensor) -> Tensor:
        """(B, styles, style_dim) -> (B, n_out, size, size)"""
        read = self.linear(wplus[:, self.config.rows[0] : self.config.rows[1]].flatten(1))
        grid = read.unflatten(1, (self.config.channels, self.config.size, self.config.size))
        return F.conv2d(grid, self.weight / math.sqrt(self.config.channels))


class Generator(nn.Module):
    """Mapping and synthesis network."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        channels, dim = config.channels, config.style_dim
        mapping = [
            EqualLinear(dim, dim, bias_init=0.0, lr_mul=config.lr_mlp, activate=True) for _ in range(config.n_mlp)
        ]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        self.input = ConstantInput(channels[0])
        self.conv1 = StyledConv(channels[0], channels[0], config, up=False)
        self.to_rgb1 = ToRGB(channels[0], config, up=False)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        self.noises = nn.Module()
        self.noises.register_buffer("noise_0", torch.randn(1, 1, 4, 4))
        for level, (n_in, n_out) in enumerate(pairwise(channels)):
            side = 8 << level
            self.convs.append(StyledConv(n_in, n_out, config, up=True))
            self.convs.append(StyledConv(n_out, n_out, config, up=False))
            self.to_rgbs.append(ToRGB(n_out, config, up=True))
            for number in (2 * level + 1, 2 * level + 2):
                self.noises.register_buffer(f"noise_{number}", torch.randn(1, 1, side, side))
        self.seeds = nn.ModuleList(
            SpatialSeed(seed, dim, channels[seed.size.bit_length() - 3]) for seed in config.seeds
        )

    def forward(self, wplus: Tensor) -> Tensor:
        """Draw pictures.

        wplus    (B, styles, style_dim)
        returns  (B, 3, size, size)  RGB, about [-1, 1], not clipped
        """
        noises = list(self.noises.buffers())
        seeds = {seed.config.size: seed for seed in self.seeds}
        x = self.conv1(self.input(len(wplus)), wplus[:, 0], noises[0])
        rgb = self.to_rgb1(x, wplus[:, 1], None)
        for level, to_rgb in enumerate(self.to_rgbs):
            row = 2 * level + 1
            x = self.convs[2 * level](x, wplus[:, row], noises[row])
            if seed := seeds.get(x.shape[2]):
                x = x + seed(wplus)
            x = self.convs[2 * level + 1](x, wplus[:, row + 1], noises[row + 1])
            rgb = to_rgb(x, wplus[:, row + 2], rgb)
        return rgb


PAPER = GeneratorConfig(
    channels=(512, 512, 512, 512, 512, 256, 128),
    style_dim=512,
    n_mlp=8,
    lr_mlp=0.01,
    blur=(1, 3, 3, 1),
    seeds=(),
)
