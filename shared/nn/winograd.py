"""Convolutions of 3 x 3 with fewer multiplications (Winograd's F(2x2, 3x3); Lavin & Gray, arXiv 1509.09308).

For networks that no longer learn: kernels are transformed once. Two outputs of a filter of three taps take four inputs
and four multiplications instead of six; in two dimensions that is 16 instead of 36 for each 2 x 2 outputs. Behind
nearest neighbours times two, the four inputs are a, b, b, c: one of the four products is always zero, and 9 remain.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.nn import onednn
from shared.nn.onednn import PackedLinear

_KERNEL = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
# The inputs d of a tile as d[a] + sign d[b].
_INPUT = ((0, 2, -1), (1, 2, 1), (2, 1, -1), (1, 3, -1))


Kernel = tuple[Callable[[Tensor], Tensor], ...]
"""The products of a tile, each (..., C) -> (..., C')."""


def kernel(weight: Tensor) -> Kernel:
    """A kernel for `convolution`, of 16 products, from (C', C, 3, 3)."""
    return _transformed(weight, torch.tensor(_KERNEL, dtype=torch.float64, device=weight.device))


def doubling_kernel(weight: Tensor) -> Kernel:
    """A kernel for `doubling_convolution`, of 9 products, from (C', C, 3, 3)."""
    rows = torch.tensor(_KERNEL, dtype=torch.float64, device=weight.device)[[0, 1, 3]]
    rows[1] *= 2  # of b + b
    return _transformed(weight, rows)


def _transformed(weight: Tensor, rows: Tensor) -> Kernel:
    made = torch.einsum("iy,jx,ocyx->ijoc", rows, rows, weight.detach().double()).flatten(0, 1).to(weight.dtype)
    if onednn.usable(weight):
        return tuple(PackedLinear(matrix, None) for matrix in made)
    return tuple(partial(F.linear, weight=matrix) for matrix in made)


def convolution(x: Tensor, kernel: Kernel, bias: Tensor) -> Tensor:
    """3 x 3, stride 1, one zero around.

    x        (B, C, H, W)  H and W even; fastest when channels lie last in memory
    kernel   from `kernel`
    returns  (B, C', H, W), channels last in memory
    """
    b, _, height, width = x.shape
    padded = _framed(x)
    cut = [padded[:, i : i + height - 1 : 2] for i in range(4)]
    rows = [torch.add(cut[p], cut[q], alpha=sign) for p, q, sign in _INPUT]  # each (B, H / 2, W + 2, C)
    upper, lower = [], []
    for j, (p, q, sign) in enumerate(_INPUT):
        tiles = (
            torch.add(row[:, :, p : p + width - 1 : 2], row[:, :, q : q + width - 1 : 2], alpha=sign) for row in rows
        )
        m = [kernel[4 * i + j](tile) for i, tile in enumerate(tiles)]  # each (B, H / 2, W / 2, C')
        upper.append(m[0].add_(m[1]).add_(m[2]))
        lower.append(m[1].sub_(m[2]).sub_(m[3]))
    y = x.new_empty(b, height // 2, 2, width // 2, 2, len(bias))
    for i, m in enumerate((upper, lower)):
        torch.add(m[0].add_(m[1]).add_(m[2]), bias, out=y[:, :, i, :, 0])
        torch.add(m[1].sub_(m[2]).sub_(m[3]), bias, out=y[:, :, i, :, 1])
    return y.view(b, height, width, len(bias)).permute(0, 3, 1, 2)


def doubling_convolution(x: Tensor, kernel: Kernel, bias: Tensor) -> Tensor:
    """Nearest neighbours times two, then 3 x 3 with one zero around.

    x        (B, C, h, w)  fastest when channels lie last in memory
    kernel   from `doubling_kernel`
    returns  (B, C', 2h, 2w), channels last in memory
    """
    b, _, h, w = x.shape
    padded = _framed(x)
    middle = padded[:, 1:-1]
    rows = (padded[:, :-2] - middle, middle, middle - padded[:, 2:])  # each (B, h, w + 2, C)
    upper, lower = [], []
    for j in range(3):
        m = [kernel[3 * i + j](_column(row, j)) for i, row in enumerate(rows)]  # each (B, h, w, C')
        upper.append(m[0].add_(m[1]))
        lower.append(m[1].sub_(m[2]))
    y = x.new_empty(b, h, 2, w, 2, len(bias))
    for i, m in enumerate((upper, lower)):
        shared = m[1] + bias
        torch.add(m[0], shared, out=y[:, :, i, :, 0])
        torch.sub(shared, m[2], out=y[:, :, i, :, 1])
    return y.view(b, 2 * h, 2 * w, len(bias)).permute(0, 3, 1, 2)


def _column(row: Tensor, j: int) -> Tensor:
    """a - b, b or b - c of every three neighbours: (B, h, w + 2, C) -> (B, h, w, C)"""
    a, b, c = row[:, :, :-2], row[:, :, 1:-1], row[:, :, 2:]
    match j:
        case 0:
            return a - b
        case 1:
            return b.contiguous()
        case _:
            return b - c


def _framed(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H + 2, W + 2, C), zeros around"""
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
