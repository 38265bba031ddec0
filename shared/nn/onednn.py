"""Layers of frozen networks on a CPU, with weights in oneDNN's own order and what follows a layer done in one pass.

The operators are those that torch's own compiler emits for frozen networks; they are not part of its public interface,
so everything here has a plain form that computes the same, and `usable` says which one it will be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_OPERATORS: Any = torch.ops.mkldnn
_NAMES = ("_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise", "_reorder_convolution_weight")


def usable(weight: Tensor) -> bool:
    """Whether a weight can be put into oneDNN's order here."""
    present = torch.backends.mkldnn.is_available() and all(hasattr(_OPERATORS, name) for name in _NAMES)
    return present and weight.device.type == "cpu" and weight.dtype == torch.float32


class PackedLinear:
    """A linear layer with fixed weights, in float32: (..., n_in) -> (..., n_out)"""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight (n_out, n_in)"""
        self._weight = _OPERATORS._reorder_linear_weight(weight.detach().contiguous(), None)
        self._bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        return _OPERATORS._linear_pointwise(x, self._weight, self._bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """And the exact GELU."""
        return _OPERATORS._linear_pointwise(x, self._weight, self._bias, "gelu", [], "none")

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """And a sum with `other` (..., n_out)."""
        return _OPERATORS._linear_pointwise.binary(x, other, self._weight, self._bias, "add")


class PackedConvolution:
    """A convolution of 3 x 3 with one zero around and fixed weights, in float32: (B, C, H, W) -> (B, C', H', W')"""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int = 1) -> None:
        """weight (C', C, 3, 3)"""
        self._stride = [stride, stride]
        self._weight = _OPERATORS._reorder_convolution_weight(weight.detach(), [1, 1], self._stride, [1, 1], 1, None)
        self._bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        return _OPERATORS._convolution_pointwise(
            x, self._weight, self._bias, [1, 1], self._stride, [1, 1], 1, "none", [], ""
        )
