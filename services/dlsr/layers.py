"""From feature maps to the vector that the detector sees, and back to what each layer says (dlsr.md 2.1, 3.3).

The reference resizes every map to the size of stride 16 (bilinear, corners aligned) and averages. Both are linear, so
that the average is a weighted mean of the map itself, with weights that are fixed and separate for rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGN_STRIDE = 16
Z_EPS = 1e-5


@lru_cache(maxsize=64)
def pooling_weights(size: int, stride: int, align_stride: int) -> Tensor:
    """Weights (size,) in float64, sum 1: of each row in the mean over a map that was resized to `align_stride`."""
    out = max(1, size * stride // align_stride)
    weights = torch.zeros(size, dtype=torch.float64)
    for k in range(out):
        place = k * (size - 1) / (out - 1) if out > 1 else 0.0
        below = min(int(place), size - 1)
        weights[below] += (1 - (place - below)) / out
        if place > below:
            weights[below + 1] += (place - below) / out
    return weights


def pooled(maps: Sequence[Tensor], strides: Sequence[int], align_stride: int = ALIGN_STRIDE) -> Tensor:
    """The weighted means of maps (B, C_m, h_m, w_m), side by side: (B, sum of C_m)."""
    means = []
    for map_, stride in zip(maps, strides, strict=True):
        rows, columns = (pooling_weights(size, stride, align_stride).to(map_) for size in map_.shape[-2:])
        means.append(torch.einsum("bchw,h,w->bc", map_, rows, columns))
    return torch.cat(means, dim=1)


def normalised(raw: Tensor, boundaries: Sequence[int], eps: float = Z_EPS) -> Tensor:
    """The z-score of every layer of every vector by itself; raw (B, D). The deviation is the unbiased one."""
    groups = by_layer(raw, boundaries)
    return torch.cat([(g - g.mean(1, keepdim=True)) / (g.std(1, keepdim=True) + eps) for g in groups], dim=1)


def by_layer(x: Tensor, boundaries: Sequence[int]) -> list[Tensor]:
    """Vectors (B, D) cut into their layers; `boundaries` are the ends of the layers, the last one D."""
    ends = [0, *boundaries]
    return list(x.split([b - a for a, b in pairwise(ends)], dim=1))


def layer_sums(x: Tensor, boundaries: Sequence[int]) -> Tensor:
    """(B, D) summed within each layer: (B, M)"""
    return torch.stack([group.sum(1) for group in by_layer(x, boundaries)], dim=1)


def layer_cosines(z: Tensor, z_hat: Tensor, boundaries: Sequence[int]) -> Tensor:
    """Cosines of two vectors layer by layer: (B, M)"""
    pairs = zip(by_layer(z, boundaries), by_layer(z_hat, boundaries), strict=True)
    return torch.stack([F.cosine_similarity(a, b, dim=1) for a, b in pairs], dim=1)
