"""A network whose time is known: what the benchmarks put behind every server that they compare."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 1024
MOST_LAYERS = 64


class Thinker(nn.Module):
    """A residual perceptron. One picture streams its weights, eight stream them once: a batch costs little more."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        weights = torch.randn(MOST_LAYERS, WIDTH, WIDTH, generator=rng) / WIDTH**0.5
        self.register_buffer("weights", weights)

    def forward(self, x: Tensor, layers: int) -> Tensor:
        """x (B, WIDTH) through the first `layers` layers."""
        for weight in self.weights[:layers]:  # type: ignore[index]
            x = x + torch.relu(x @ weight.T)
            x = x / x.norm(dim=1, keepdim=True)
        return x


def think(network: Thinker, seeds: list[int], layers: int) -> list[float]:
    """One number a seed."""
    x = torch.stack([torch.full((WIDTH,), 1.0 + seed % 97) for seed in seeds])
    return [float(value) for value in network(x, layers)[:, 0]]
