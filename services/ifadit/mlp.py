"""The plain multi-layer perceptron that three of iFADIT's networks consist of."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def mlp(widths: tuple[int, ...], negative_slope: float) -> nn.Sequential:
    """Linear layers of these widths with LeakyReLU between them, none after the last.

    The linear layers stand at the even positions (`0.weight`, `2.weight`, …), as in the published checkpoints.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.LeakyReLU(negative_slope)]
    return nn.Sequential(*layers[:-1])
