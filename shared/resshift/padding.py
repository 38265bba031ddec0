"""Sizes: padding to what the networks can divide, and enlarging for the encoder (resshift-diffusion.md 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def up_to_multiple(length: int, multiple: int) -> int:
    """The least multiple that is not below `length`."""
    return -(-length // multiple) * multiple


def reflected(start: int, stop: int, length: int) -> Tensor:
    """Which of `length` samples stand at the places start .. stop-1, the sequence being mirrored at its ends.

    The mirror's own sample is not doubled (d c b | a b c d | c b a). Where more is asked for than one reflection gives
    it goes to and fro; a single sample is repeated. Equal to padding mode "reflect" as far as that goes.
    """
    period = max(2 * (length - 1), 1)
    folded = torch.arange(start, stop) % period
    return torch.minimum(folded, period - folded) if length > 1 else torch.zeros_like(folded)


def pad_reflect(x: Tensor, height: int, width: int) -> Tensor:
    """A picture (..., H, W) continued at the bottom and at the right to height x width, by reflection."""
    h, w = x.shape[-2:]
    if (h, w) == (height, width):
        return x
    rows, columns = (reflected(0, to, of).to(x.device) for to, of in ((height, h), (width, w)))
    return x.index_select(-2, rows).index_select(-1, columns)


def upsample(x: Tensor, factor: int) -> Tensor:
    """A picture (B, C, H, W) enlarged for the encoder: bicubic, a = -0.75, may overshoot [-1, 1]."""
    if factor == 1:
        return x
    return F.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False)
