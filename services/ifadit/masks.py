"""Which pixels of an aligned face are replaced, and how the edge is blended (ifadit.md 2.8).

A hard mask is 1 where the face is; a soft mask is a hard one, dilated and blurred. All are (B or 1, 1, H, W) in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Points = NDArray[np.float64]

# Parts of the face as indices of the 68 landmarks; the mask is the union of their convex hulls.
HULLS_68: tuple[tuple[int, ...], ...] = (
    (*range(9), 17),  # right jaw
    (*range(8, 17), 26),  # left jaw
    (*range(17, 20), 8),  # right cheek
    (*range(24, 27), 8),  # left cheek
    (*range(19, 25), 8),  # mid-brow
    (*range(17, 22), 27, *range(31, 36), 8),  # right eye
    (*range(22, 27), 27, *range(31, 36), 8),  # left eye
    tuple(range(27, 36)),  # nose
)


@dataclass(frozen=True)
class EdgeConfig:
    """How a hard mask becomes a soft one."""

    dilate: int
    """Side of the square maximum in pixels; odd."""
    gaussian: int
    """Side of the Gaussian kernel in pixels; odd."""
    sigma: float
    """Standard deviation of the Gaussian in pixels."""


@dataclass(frozen=True)
class EllipseConfig:
    """The face of an aligned picture without landmarks, in shares of its side."""

    center: tuple[float, float]
    """x, y"""
    half_axes: tuple[float, float]
    """x, y"""


def gaussian_taps(size: int, sigma: float) -> Tensor:
    """(size,) sampled Gaussian of sum 1, in float64."""
    distance = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    taps = torch.exp(-(distance**2) / (2 * sigma**2))
    return taps / taps.sum()


def soften(mask: Tensor, edge: EdgeConfig) -> Tensor:
    """Dilate and blur a hard mask. The picture continues at its border by reflection without repeating the edge."""
    if edge.dilate > 1:
        mask = F.max_pool2d(mask, edge.dilate, stride=1, padding=edge.dilate // 2)
    taps = gaussian_taps(edge.gaussian, edge.sigma).to(mask)
    half = edge.gaussian // 2
    mask = F.pad(mask, (half, half, half, half), mode="reflect")
    return F.conv2d(F.conv2d(mask, taps[None, None, None]), taps[None, None, :, None])


def compose(foreground: Tensor, background: Tensor, mask: Tensor) -> Tensor:
    """The foreground where the soft mask is 1, the background where it is 0."""
    return foreground * mask + (1 - mask) * background


def ellipse_mask(size: int, ellipse: EllipseConfig) -> Tensor:
    """(1, 1, size, size) hard mask: pixels whose centre lies inside the ellipse."""
    at = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    x = (at - ellipse.center[0]) / ellipse.half_axes[0]
    y = (at - ellipse.center[1]) / ellipse.half_axes[1]
    return (x**2 + y[:, None] ** 2 <= 1).float()[None, None]


def convex_hull(points: Points) -> Points:
    """Corners of the convex hull in order around it (Andrew's monotone chain): (n, 2) -> (m, 2), m <= n"""
    ordered = sorted({(float(x), float(y)) for x, y in points})
    if len(ordered) < 3:
        return np.array(ordered)

    def chain(sequence: list[tuple[float, float]]) -> list[tuple[float, float]]:
        kept: list[tuple[float, float]] = []
        for point in sequence:
            while len(kept) >= 2 and _turn(kept[-2], kept[-1], point) <= 0:
                kept.pop()
            kept.append(point)
        return kept[:-1]

    return np.array(chain(ordered) + chain(ordered[::-1]))


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def landmark_mask(landmarks: Points, height: int, width: int) -> Tensor:
    """The face region of 68 landmarks.

    landmarks  (68, 2)  x, y in pixels; (0, 0) is the centre of the top left pixel
    returns    (1, 1, height, width)  hard mask; a pixel on the edge of a hull belongs to it
    """
    if landmarks.shape != (68, 2):
        raise ValueError(f"68 landmarks of x and y are needed, not {landmarks.shape}")
    x, y = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)[:, None]
    mask = np.zeros((height, width), dtype=bool)
    for part in HULLS_68:
        corners = convex_hull(np.asarray(landmarks, dtype=np.float64)[list(part)])
        if len(corners) < 3:
            continue
        inside = np.ones((height, width), dtype=bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            inside &= (bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0
        mask |= inside
    return torch.from_numpy(mask).float()[None, None]
