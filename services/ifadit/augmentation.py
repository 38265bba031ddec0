"""Harmless changes of an aligned face, and the codecs that a face passes through between two services."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from services.ifadit.teachers import luma

SHIFT = 0.04  # share of half a side; alignments differ by about as much between two finders
SCALE = 0.04
DEGREES = 4.0
JPEG_QUALITIES = (60, 95)


def uniform(count: int, low: float, high: float, rng: Generator) -> Tensor:
    """(count, 1, 1, 1) draws from [low, high)."""
    return torch.rand(count, 1, 1, 1, generator=rng) * (high - low) + low


def chance(count: int, share: float, rng: Generator) -> Tensor:
    """(count, 1, 1, 1) booleans, true with the probability `share`."""
    return torch.rand(count, 1, 1, 1, generator=rng) < share


def mirrored(x: Tensor, rng: Generator) -> Tensor:
    """Half of the pictures (B, 3, H, W) mirrored left to right."""
    return torch.where(chance(len(x), 0.5, rng).to(x.device), x.flip(3), x)


def jittered(x: Tensor, rng: Generator) -> Tensor:
    """Pictures (B, 3, H, W), 0..1, as another camera and another alignment could have given them."""
    count = len(x)
    angle = uniform(count, -DEGREES, DEGREES, rng).flatten() * (math.pi / 180)
    scale = uniform(count, 1 - SCALE, 1 + SCALE, rng).flatten()
    shift = torch.rand(count, 2, generator=rng) * 2 * SHIFT - SHIFT
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).reshape(count, 2, 3).to(x)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    coarse = F.interpolate(F.interpolate(moved, scale_factor=0.6, mode="area"), size=x.shape[2:], mode="bilinear")
    moved = torch.where(chance(count, 0.25, rng).to(x.device), coarse, moved)
    gain, offset = uniform(count, 0.8, 1.25, rng).to(x), uniform(count, -0.12, 0.12, rng).to(x)
    moved = (moved - 0.5) * gain + 0.5 + offset
    noise = torch.randn(x.shape, generator=rng) * uniform(count, 0, 0.03, rng)
    moved = (moved + noise.to(x)).clamp(0, 1)
    return torch.where(chance(count, 0.5, rng).to(x.device), luma(moved), moved)


def morphed(a: Tensor, b: Tensor, rng: Generator) -> Tensor:
    """Blends of aligned faces a and b (B, 3, S, S): half are even mixtures, half take parts of the face from each."""
    count, side = len(a), a.shape[2]
    share = uniform(count, 0.2, 0.8, rng).expand(-1, 1, side, side)
    blobs = F.interpolate(torch.randn(count, 1, 4, 4, generator=rng), size=side, mode="bicubic", align_corners=False)
    share = torch.where(chance(count, 0.5, rng), share, (3 * blobs).sigmoid()).to(a.device)
    return share * a + (1 - share) * b


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Pictures (B, 3, H, W), 0..1, after a JPEG file of 4:2:0; no gradient."""
    out = []
    for pixels in to_uint8(x):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(stream)))
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).to(x) / 255


def to_uint8(x: Tensor) -> np.ndarray:
    """(B, 3, H, W), 0..1 -> (B, H, W, 3) uint8."""
    return (x.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def through_codec(x: Tensor, rng: Generator) -> Tensor:
    """Pictures (B, 3, H, W) as they come out of a file: PNG half of the time, else JPEG of quality 60 to 95.

    The gradient passes as if the file changed nothing (straight through).
    """
    clean = x.clamp(0, 1)
    if torch.rand((), generator=rng) < 0.5:
        stored = (clean.detach() * 255).round() / 255
    else:
        low, high = JPEG_QUALITIES
        stored = jpeg(clean, int(torch.randint(low, high + 1, (), generator=rng)))
    return clean + (stored - clean).detach()
