"""Feature maps as windows of tokens, and the windows of a shifted block (dit-sr.md 2.3).

Within a layer a map lies as (B, n, w w, D): windows row by row, tokens of a window row by row. A shifted block attends
in windows that lie half a window further down and to the right, wrapping around.

Which tokens of a wrapped window may meet is said by a mask. The published weights were trained with the reference's,
which is not the usual one: it cuts the last row of windows only, and between the left and the right half of a window
(the reference marks rows, and reads the marks transposed). So there are two kinds of windows, whatever the size of the
map, and a shifted block takes those of the last row after all others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

APART = -100.0  # added to the logit of two tokens that may not meet; not minus infinity, as in the reference


class Shifted(NamedTuple):
    """Where the tokens of shifted windows come from."""

    gather: Tensor
    """(B n w w,) for each token of the shifted windows, its place among the unshifted; the last rows at the end"""
    scatter: Tensor
    """(B n w w,) the way back"""
    free: int
    """How many windows, from the first, have no mask"""


def to_windows(x: Tensor, w: int) -> Tensor:
    """(B, C, H, W) -> (B, n, w w, C). Raises ValueError unless H and W are multiples of w."""
    b, c, height, width = x.shape
    if height % w or width % w:
        raise ValueError(f"a map of {height} x {width} does not divide into windows of {w}")
    cut = x.reshape(b, c, height // w, w, width // w, w).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(b, height * width // w**2, w * w, c)


def from_windows(x: Tensor, w: int, height: int, width: int) -> Tensor:
    """(B, n, w w, C) -> (B, C, H, W), as the view of a channels-last tensor"""
    b, _, _, c = x.shape
    rows = x.view(b, height // w, width // w, w, w, c).permute(0, 1, 3, 2, 4, 5)
    return rows.reshape(b, height, width, c).permute(0, 3, 1, 2)


@lru_cache(maxsize=64)
def shifted(batch: int, height: int, width: int, w: int, shift: int, device: torch.device) -> Shifted:
    """The windows of a block that shifts by `shift`, for maps of `height` x `width`."""
    with torch.inference_mode(False):  # the first caller may be a sampler, the next one a training
        here = torch.arange(batch * height * width).view(batch, -1, w * w, 1)
        rolled = from_windows(here, w, height, width).roll((-shift, -shift), dims=(2, 3))
        origin = to_windows(rolled, w)[..., 0]  # (B, n, w w)
        free = origin.shape[1] - width // w
        gather = torch.cat([origin[:, :free].flatten(), origin[:, free:].flatten()])
        return Shifted(gather.to(device), torch.argsort(gather).to(device), batch * free)


@lru_cache(maxsize=16)
def last_row_mask(w: int, shift: int, device: torch.device) -> Tensor:
    """(w w, w w): what is added to the logits in the last row of shifted windows."""
    with torch.inference_mode(False):
        right = (torch.arange(w) >= w - shift).repeat(w)
        return (APART * (right[:, None] != right)).to(device)
