"""Linear layers on tokens, under the two names and shapes that checkpoints give them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from shared.nn import onednn
from shared.nn.onednn import PackedLinear


class _OnTokens(nn.Module):
    """What both share: (..., n_in) -> (..., n_out), alone or with what follows."""

    weight: Tensor
    bias: Any
    _packed: PackedLinear | None = None

    def freeze(self) -> None:
        """Order the weights for the CPU, for a network that no longer learns and stays where it is."""
        if onednn.usable(self.weight):
            self._packed = PackedLinear(self.weight.flatten(1), self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._plain(x) if self._packed is None else self._packed(x)

    def gelu(self, x: Tensor) -> Tensor:
        """The layer and the exact GELU."""
        return F.gelu(self._plain(x)) if self._packed is None else self._packed.gelu(x)

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer, added to `other` (..., n_out)."""
        return other + self._plain(x) if self._packed is None else self._packed.add(x, other)

    def _plain(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class Linear(_OnTokens, nn.Linear):
    """Weights (n_out, n_in)."""


class Pointwise(_OnTokens, nn.Conv2d):
    """A 1 x 1 convolution by name and shape: weights (n_out, n_in, 1, 1)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, kernel_size=1)
