"""D, the discriminator: trains the generator towards natural faces and is not shipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of D."""

    channels: tuple[int, ...]
    """Channels at a quarter of the picture's side, an eighth, …; the last map is 4 px."""
    unshuffle: int
    """Pixels of a square of this side become channels first: a quarter of the cost of a stem at full size."""


class Discriminator(nn.Module):
    """Residual discriminator of StyleGAN2's kind, with a standard deviation over the minibatch before its head."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        first, last = config.channels[0], config.channels[-1]
        self.config = config
        self.stem = nn.Conv2d(3 * config.unshuffle**2, first, 3, 1, 1)
        self.blocks = nn.ModuleList(
            DownBlock(n_in, n_out) for n_in, n_out in zip(config.channels, config.channels[1:], strict=False)
        )
        self.head = nn.Sequential(
            nn.Conv2d(last + 1, last, 3, 1, 1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(last * 16, 128),
            nn.LeakyReLU(0.2),
            nn.Linear(128, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, S, S), RGB 0..1 -> logits (B,): large for real."""
        h = F.leaky_relu(self.stem(F.pixel_unshuffle(x * 2 - 1, self.config.unshuffle)), 0.2)
        for block in self.blocks:
            h = block(h)
        spread = h.std(0, unbiased=False).mean().expand(len(h), 1, *h.shape[2:])
        return self.head(torch.cat([h, spread], 1)).squeeze(1)


class DownBlock(nn.Module):
    """Two convolutions and a halving, beside a halved 1 x 1 convolution."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_in, 3, 1, 1)
        self.conv2 = nn.Conv2d(n_in, n_out, 4, 2, 1)
        self.skip = nn.Conv2d(n_in, n_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) -> (B, n_out, H / 2, W / 2)"""
        h = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), 0.2)), 0.2)
        return (h + self.skip(F.avg_pool2d(x, 2))) / math.sqrt(2)


def augmented(x: Tensor, rng: Generator) -> Tensor:
    """Pictures (B, 3, S, S) as D sees them: shifted, with a square taken out, lighter or darker (Zhao et al. 2020).

    Real and drawn pictures are changed alike and the gradient passes, so that D cannot learn the few real faces by
    heart, nor the generator learn the changes. Equal generators change equal batches equally.
    """
    count, side = len(x), x.shape[2]
    reach = side // 8
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    corners = torch.randint(0, 2 * reach + 1, (count, 2), generator=rng).tolist()
    moved = torch.stack(
        [p[:, top : top + side, left : left + side] for p, (top, left) in zip(padded, corners, strict=True)]
    )
    places = torch.arange(side)
    centre = torch.randint(0, side, (2, count, 1), generator=rng)
    rows, columns = ((places - c).abs() < side // 6 for c in centre)  # (B, S)
    hole = (rows[:, None, :, None] & columns[:, None, None, :]).to(x.device)
    light = (torch.rand(count, 1, 1, 1, generator=rng) * 0.3 - 0.15).to(x)
    return torch.where(hole, 0.5, moved + light)


def discriminator_loss(real: Tensor, fakes: Sequence[Tensor]) -> Tensor:
    """Logistic loss of logits (B,) of real pictures and of each kind of drawn ones; the kinds weigh alike."""
    return F.softplus(-real).mean() + torch.stack([F.softplus(fake).mean() for fake in fakes]).mean()


def gradient_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """R1: the mean squared gradient of the logits by real pictures (B, 3, S, S) (Mescheder et al. 2018)."""
    real = real.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


SMALL = DiscriminatorConfig(channels=(64, 96, 128, 128), unshuffle=2)
