"""M, the fusion mapper: from an identity and the attributes to the generator's style rows (ifadit.md 2.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.ifadit.mlp import mlp


@dataclass(frozen=True)
class LatentMapperConfig:
    """Sizes of M."""

    layers: tuple[int, ...]
    """Widths; the first is identity plus attribute row, the last the style row."""
    negative_slope: float
    identity_gain: float
    """Factor on the identity before it is joined to an attribute row: a unit vector is small beside attributes of
    order 1 a coordinate. The authors' networks have 1."""
    unit_identity: bool
    """Bring the identity to unit length first. T does not keep lengths, least of all backwards under a wrong key, and a
    generator that has only seen unit identities draws others as no face at all. The authors' networks do not."""


class LatentMapper(nn.Module):
    """One perceptron shared by all style rows."""

    def __init__(self, config: LatentMapperConfig) -> None:
        super().__init__()
        self.config = config
        self.model = mlp(config.layers, config.negative_slope)
        for layer in self.model:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, a=config.negative_slope)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, rows, identity + attribute) -> (B, rows, style)"""
        return self.model(x)

    def fuse(self, identity: Tensor, attributes: Tensor) -> Tensor:
        """Join an identity with attributes and map them to style rows.

        identity    (B, d)        z, or the transformed z' (not of unit length: `unit_identity` says what becomes of it)
        attributes  (B, rows, e)  d + e is the first width of the layers
        returns     (B, rows, style)
        """
        if self.config.unit_identity:
            identity = F.normalize(identity)
        repeated = (self.config.identity_gain * identity)[:, None].expand(-1, attributes.shape[1], -1)
        return self(torch.cat([repeated, attributes], dim=2))


PAPER = LatentMapperConfig(layers=(1024, 512, 512), negative_slope=0.2, identity_gain=1.0, unit_identity=False)
