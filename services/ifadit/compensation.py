"""ICL, the compensation network: from the identity that E_id reads off an anonymized picture back to the vector that
the identity transform had produced (ifadit.md 2.7). Recovery alone uses it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from services.ifadit.mlp import mlp


@dataclass(frozen=True)
class CompensationConfig:
    """Sizes of ICL."""

    layers: tuple[int, ...]
    """Widths; the first and the last are the length of an embedding."""
    negative_slope: float
    skip: bool
    """Add the input to the output, so that the network learns the difference only. The authors' network has none."""


class Compensation(nn.Module):
    """A perceptron from embedding to embedding."""

    def __init__(self, config: CompensationConfig) -> None:
        super().__init__()
        self.config = config
        if config.skip and config.layers[0] != config.layers[-1]:
            raise ValueError(f"a skip needs equal widths at both ends, not {config.layers[0]} and {config.layers[-1]}")
        self.model = mlp(config.layers, config.negative_slope)

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, d) of unit length -> (B, d) of free length"""
        y = self.model(embedding)
        return embedding + y if self.config.skip else y


PAPER = CompensationConfig(layers=(512, 1024, 2048, 1024, 512), negative_slope=0.2, skip=False)
