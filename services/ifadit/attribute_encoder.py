"""E_attr, the attribute encoder: everything but the identity, as one vector a style row (ifadit.md 2.2).

pSp's gradual style encoder: a feature pyramid over an IR-SE trunk; every style row has a small head of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.ifadit.arcface import IR_SE_50
from services.ifadit.equalized import EqualLinear
from services.ifadit.irse import IrSeConfig, body, stem


@dataclass(frozen=True)
class AttributeEncoderConfig:
    """Sizes of E_attr."""

    trunk: IrSeConfig
    input_size: int
    """Side of the pictures in pixels."""
    taps: tuple[int, int, int]
    """Units after which the fine, the middle and the coarse map are taken."""
    styles: int
    """Style rows. Rows [0, coarse_end) read the coarse map, up to middle_end the middle one, the rest the fine one."""
    coarse_end: int
    middle_end: int
    style_width: int
    """Channels inside a head."""
    style_dim: int
    """Length of a style row."""

    def __post_init__(self) -> None:
        if not 0 <= self.taps[0] < self.taps[1] < self.taps[2] < sum(self.trunk.units):
            raise ValueError(f"taps {self.taps} must ascend within the {sum(self.trunk.units)} units of the trunk")
        if not 0 <= self.coarse_end <= self.middle_end <= self.styles:
            raise ValueError(
                f"coarse_end {self.coarse_end} and middle_end {self.middle_end} must ascend to {self.styles}"
            )

    def tap_shapes(self) -> list[tuple[int, int]]:
        """(channels, side in pixels) of the three maps."""
        side, shapes = self.input_size, []
        for unit, (_, width, stride) in enumerate(self.trunk.unit_shapes()):
            side = -(-side // stride)
            if unit in self.taps:
                shapes.append((width, side))
        return shapes


class GradualStyleBlock(nn.Module):
    """Head of one style row: halve the map until one pixel is left, then one linear layer."""

    def __init__(self, n_in: int, width: int, n_out: int, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for position in range(max(1, (side - 1).bit_length())):
            layers += [nn.Conv2d(width if position else n_in, width, 3, 2, 1), nn.LeakyReLU(0.01)]
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(width, n_out, bias_init=0.0, lr_mul=1.0, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, side, side) -> (B, n_out)"""
        return self.linear(self.convs(x).flatten(1))


class AttributeEncoder(nn.Module):
    """pSp's GradualStyleEncoder. Its input is in [0, 1], unlike the identity encoder's network: the released weights
    were trained so."""

    def __init__(self, config: AttributeEncoderConfig) -> None:
        super().__init__()
        self.config = config
        (fine, fine_side), (middle, middle_side), (width, coarse_side) = config.tap_shapes()
        self.input_layer = stem(config.trunk)
        self.body: nn.Sequential = nn.Sequential(*list(body(config.trunk))[: config.taps[2] + 1])
        sides = (coarse_side, middle_side, fine_side)
        self.styles = nn.ModuleList(
            GradualStyleBlock(width, config.style_width, config.style_dim, sides[self._level(row)])
            for row in range(config.styles)
        )
        self.latlayer1 = nn.Conv2d(middle, width, 1)
        self.latlayer2 = nn.Conv2d(fine, width, 1)

    def _level(self, row: int) -> int:
        """0 where the style row reads the coarse map, 1 the middle one, 2 the fine one."""
        return (row >= self.config.coarse_end) + (row >= self.config.middle_end)

    def forward(self, x: Tensor) -> Tensor:
        """Read the attributes off aligned pictures.

        x        (B, 3, input_size, input_size)  RGB in [0, 1]
        returns  (B, styles, style_dim)
        """
        x = self.input_layer(x)
        maps = []
        for unit, layer in enumerate(self.body):
            x = layer(x)
            if unit in self.config.taps:
                maps.append(x)
        c1, c2, c3 = maps  # fine to coarse
        p2 = enlarge(c3, c2) + self.latlayer1(c2)
        p1 = enlarge(p2, c1) + self.latlayer2(c1)
        pyramid = (c3, p2, p1)
        return torch.stack([head(pyramid[self._level(row)]) for row, head in enumerate(self.styles)], dim=1)


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, corners on corners (align_corners=True), to the size of `like`."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


PAPER = AttributeEncoderConfig(
    trunk=IR_SE_50,
    input_size=256,
    taps=(6, 20, 23),
    styles=14,
    coarse_end=3,
    middle_end=7,
    style_width=512,
    style_dim=512,
)
