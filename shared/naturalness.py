"""NIQE (Mittal et al., 2013): how far a picture's local statistics lie from those of natural pictures; lower is better.

No reference picture is needed. The natural statistics are fitted here, on pictures that the caller names: the values
are comparable with each other, not with those of the authors' model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.picturemetrics import luma

PATCH_PX = 96  # at the first scale; half of it at the second
WINDOW, SIGMA = 7, 7 / 6
SHARPEST = 0.75  # natural patches must have this share of the sharpest one's deviation
SHAPES = torch.arange(0.2, 10.0, 0.001, dtype=torch.float64)
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


def windowed(x: Tensor) -> Tensor:
    """Gaussian local mean of (1, 1, H, W); borders are repeated."""
    offsets = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    taps = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    taps = taps / taps.sum()
    x = F.pad(x, (WINDOW // 2,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, taps[None, None, :, None]), taps[None, None, None])


def patches(x: Tensor, side: int) -> Tensor:
    """(1, 1, H, W) -> (N, side, side), whole patches only."""
    h, w = x.shape[2] // side * side, x.shape[3] // side * side
    blocks = x[0, 0, :h, :w].reshape(h // side, side, w // side, side).transpose(1, 2)
    return blocks.reshape(-1, side, side)


def asymmetric_gaussian(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, left and right deviation of the generalised Gaussian that fits each row of x (N, M); (N,) each."""
    left = (x.clamp(max=0).square().sum(1) / (x < 0).sum(1).clamp(min=1)).sqrt()
    right = (x.clamp(min=0).square().sum(1) / (x > 0).sum(1).clamp(min=1)).sqrt()
    ratio = left / right.clamp(min=1e-12)
    moments = x.abs().mean(1).square() / x.square().mean(1).clamp(min=1e-12)
    wanted = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1).square()
    g = torch.lgamma
    table = (2 * g(2 / SHAPES) - g(1 / SHAPES) - g(3 / SHAPES)).exp()  # rises with the shape
    shape = SHAPES[torch.searchsorted(table, wanted).clamp(max=len(SHAPES) - 1)]
    scale = ((g(1 / shape) - g(3 / shape)) / 2).exp()
    return shape, left * scale, right * scale


def features_at_scale(normalized: Tensor, side: int) -> Tensor:
    """(N, 18) of the patches of a normalised picture (1, 1, H, W)."""
    cut = patches(normalized, side)
    shape, left, right = asymmetric_gaussian(cut.flatten(1))
    columns = [shape, (left + right) / 2]
    for step in NEIGHBOURS:
        product = cut * torch.roll(cut, step, (1, 2))
        shape, left, right = asymmetric_gaussian(product.flatten(1))
        mean = (right - left) * (torch.lgamma(2 / shape) - torch.lgamma(1 / shape)).exp()
        columns += [shape, mean, left, right]
    return torch.stack(columns, 1)


def patch_features(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The 36 features of each patch of a picture (3, H, W), 0..1: (N, 36), and the patches' sharpness (N,)."""
    x = luma(pixels[None])
    found, sharpness = [], torch.zeros(0)
    for scale in (1, 2):
        mean = windowed(x)
        deviation = (windowed(x * x) - mean**2).clamp(min=0).sqrt()
        found.append(features_at_scale((x - mean) / (deviation + 1), PATCH_PX // scale))
        if scale == 1:
            sharpness = patches(deviation, PATCH_PX).mean((1, 2))
            size = x.shape[2] // 2, x.shape[3] // 2
            x = F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True)
    count = min(len(part) for part in found)
    return torch.cat([part[:count] for part in found], 1), sharpness[:count]


@dataclass(frozen=True, eq=False)
class NaturalStatistics:
    """A Gaussian of patch features."""

    mean: Tensor  # (36,)
    covariance: Tensor  # (36, 36)

    @classmethod
    def of(cls, features: Tensor) -> NaturalStatistics:
        """Of patches (N, 36)."""
        return cls(features.mean(0), torch.cov(features.T))

    @classmethod
    def fitted(cls, pictures: Iterable[Tensor]) -> NaturalStatistics:
        """Of the sharp patches of natural pictures (3, H, W), 0..1."""
        kept = []
        for pixels in pictures:
            features, sharpness = patch_features(pixels)
            kept.append(features[sharpness > SHARPEST * sharpness.max()])
        return cls.of(torch.cat(kept))

    def niqe(self, pixels: Tensor) -> float:
        """Of a picture (3, H, W), 0..1. NaN where it holds fewer than two patches of 96 px."""
        features, _ = patch_features(pixels)
        if len(features) < 2:
            return float("nan")
        seen = NaturalStatistics.of(features)
        difference = self.mean - seen.mean
        return float((difference @ torch.linalg.pinv((self.covariance + seen.covariance) / 2) @ difference).sqrt())
