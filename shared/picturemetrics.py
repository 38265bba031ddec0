"""PSNR and SSIM of the luma channel, as super-resolution papers count them: pictures in 8 bits, 4 px of border cut."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CROP_PX = 4  # the scale: what lies nearer to the border was guessed without neighbours
LUMA_BT601 = (65.481, 128.553, 24.966)  # MATLAB's rgb2ycbcr, for RGB 0..1; offset 16
SSIM_TAPS, SSIM_SIGMA = 11, 1.5


def luma(x: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), RGB 0..1, rounded to 8 bits -> luma (B, 1, H, W), 16 .. 235 (float64)"""
    eight_bit = (x.double().clamp(0, 1) * 255).round() / 255
    return (eight_bit * eight_bit.new_tensor(LUMA_BT601)[None, :, None, None]).sum(1, keepdim=True) + 16


def cropped(x: Tensor, crop_px: int) -> Tensor:
    """Without `crop_px` at every side; small pictures stay whole."""
    if min(x.shape[-2:]) <= 2 * crop_px:
        return x
    return x[..., crop_px : x.shape[-2] - crop_px, crop_px : x.shape[-1] - crop_px]


def psnr_y(pred: Tensor, target: Tensor, crop_px: int = CROP_PX) -> Tensor:
    """(B,) in dB, of pictures (B, 3, H, W), 0..1; data range 255. Infinite where they are equal."""
    error = cropped(luma(pred) - luma(target), crop_px).square().mean((1, 2, 3))
    return 10 * (255**2 / error).log10()


def ssim_y(pred: Tensor, target: Tensor, crop_px: int = CROP_PX) -> Tensor:
    """(B,) Wang et al. 2004 with a Gaussian of 11 taps and sigma 1.5, only where it lies inside; data range 255."""
    offsets = torch.arange(SSIM_TAPS, dtype=torch.float64, device=pred.device) - SSIM_TAPS // 2
    taps = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    taps = taps / taps.sum()

    def local(v: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(v, taps[None, None, :, None]), taps[None, None, None])

    a, b = (cropped(luma(x), crop_px) for x in (pred, target))
    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return value.mean((1, 2, 3))
