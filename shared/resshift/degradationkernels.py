"""Blur kernels of the Real-ESRGAN degradation, the filter that applies them, and unsharp masking (its section 3).

Kernels are square tensors of odd side in float64 whose sum is 1. x is the column, y the row, the centre is 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def quadratic_form(side: int, sigma_x: float, sigma_y: float, theta: float) -> Tensor:
    """(side, side): d = v^T Sigma^-1 v at every offset v, Sigma = R(theta) diag(sigma_x^2, sigma_y^2) R(theta)^T."""
    offsets = torch.arange(side, dtype=torch.float64) - side // 2
    x, y = offsets[None, :], offsets[:, None]
    along = math.cos(theta) * x + math.sin(theta) * y
    across = -math.sin(theta) * x + math.cos(theta) * y
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def normalized(kernel: Tensor) -> Tensor:
    """The kernel divided by its sum."""
    return kernel / kernel.sum()


def gaussian(side: int, sigma_x: float, sigma_y: float, theta: float) -> Tensor:
    """Gaussian: exp(-d / 2)."""
    return normalized(torch.exp(-0.5 * quadratic_form(side, sigma_x, sigma_y, theta)))


def generalized_gaussian(side: int, sigma_x: float, sigma_y: float, theta: float, beta: float) -> Tensor:
    """Generalised Gaussian: exp(-d^beta / 2). Sharper than a Gaussian below beta 1, boxier above."""
    return normalized(torch.exp(-0.5 * quadratic_form(side, sigma_x, sigma_y, theta) ** beta))


def plateau(side: int, sigma_x: float, sigma_y: float, theta: float, beta: float) -> Tensor:
    """Plateau-shaped: 1 / (1 + d^beta)."""
    return normalized(1 / (1 + quadratic_form(side, sigma_x, sigma_y, theta) ** beta))


def sinc(side: int, cutoff: float) -> Tensor:
    """Ideal circular low-pass, cut at `side`: c J1(c r) / (2 pi r). It rings, as sharpened and over-compressed
    pictures do. `cutoff` is in radians a pixel, 0 .. pi.
    """
    offsets = torch.arange(side, dtype=torch.float64) - side // 2
    r = (offsets[None, :] ** 2 + offsets[:, None] ** 2).sqrt()
    ringing = cutoff * torch.special.bessel_j1(cutoff * r) / (2 * math.pi * r)
    ringing[side // 2, side // 2] = cutoff**2 / (4 * math.pi)  # the limit at r = 0
    return normalized(ringing)


def impulse(side: int) -> Tensor:
    """The kernel that changes nothing."""
    kernel = torch.zeros(side, side, dtype=torch.float64)
    kernel[side // 2, side // 2] = 1
    return kernel


def padded(kernel: Tensor, side: int) -> Tensor:
    """The kernel in the middle of zeros, (side, side)."""
    around = (side - len(kernel)) // 2
    return F.pad(kernel, (around, around, around, around))


def filtered(x: Tensor, kernels: Tensor) -> Tensor:
    """Correlate every picture (B, C, H, W) with its own kernel (B, k, k); borders are reflected.

    H and W must be more than k // 2.
    """
    b, c, h, w = x.shape
    k = kernels.shape[-1]
    x = F.pad(x, (k // 2, k // 2, k // 2, k // 2), mode="reflect")
    weights = kernels.to(x)[:, None].repeat_interleave(c, dim=0)  # (B C, 1, k, k)
    return F.conv2d(x.reshape(1, b * c, *x.shape[2:]), weights, groups=b * c).reshape(b, c, h, w)


def unsharp_kernel(side: int) -> Tensor:
    """The Gaussian of `side` taps whose width OpenCV derives from that number (8 px for 51 taps)."""
    sigma = 0.3 * ((side - 1) * 0.5 - 1) + 0.8
    return gaussian(side, sigma, sigma, 0.0)


def unsharp_masked(x: Tensor, side: int, weight: float, threshold: float) -> Tensor:
    """Sharpen pictures (B, C, H, W), 0..1, where they differ from their blur by more than `threshold` of 255."""
    kernel = unsharp_kernel(side).expand(len(x), -1, -1)
    residual = x - filtered(x, kernel)
    soft_mask = filtered((residual.abs() * 255 > threshold).to(x), kernel)
    return soft_mask * (x + weight * residual).clamp(0, 1) + (1 - soft_mask) * x
