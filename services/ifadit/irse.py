"""The IR-SE trunk (improved residual units with squeeze and excitation) that both encoders share.

TreB1eN/InsightFace_Pytorch and eladrich/pixel2style2pixel; the names are those of their checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class IrSeConfig:
    """Sizes of the trunk. Every group halves the resolution in its first unit."""

    widths: tuple[int, ...]
    """Channels of each group. The stem has those of the first."""
    units: tuple[int, ...]
    """Units of each group."""
    se_reduction: int | None
    """Squeeze factor; None leaves squeeze and excitation out (plain IR)."""
    norm: bool
    """Batch normalisation. Without it a small encoder trains on small batches and behaves alike in train and eval."""

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.units) or not self.widths or min(self.units) < 1:
            raise ValueError(f"widths {self.widths} and units {self.units} must name the same groups, one unit or more")
        if self.se_reduction is not None and min(self.widths) < self.se_reduction:
            raise ValueError(f"se_reduction {self.se_reduction} leaves no channel of the {min(self.widths)} there are")

    def unit_shapes(self) -> list[tuple[int, int, int]]:
        """(in, out, stride) of every unit, in order."""
        shapes = []
        n_in = self.widths[0]
        for n_out, count in zip(self.widths, self.units, strict=True):
            for position in range(count):
                shapes.append((n_in, n_out, 2 if position == 0 else 1))
                n_in = n_out
        return shapes


class SEModule(nn.Module):
    """Scale every channel by a gate in (0, 1) computed from the global means."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        return x * self.sigmoid(self.fc2(self.relu(self.fc1(gate))))


class BottleneckUnit(nn.Module):
    """One residual unit: BN - conv - PReLU - conv (stride) - BN - SE, beside a subsampled or projected shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int, config: IrSeConfig) -> None:
        super().__init__()
        self.stride = stride
        self.shortcut_layer: nn.Sequential | None = None
        if n_in != n_out:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), norm(n_out, config))
        layers = [
            norm(n_in, config),
            nn.Conv2d(n_in, n_out, 3, 1, 1, bias=False),
            nn.PReLU(n_out),
            nn.Conv2d(n_out, n_out, 3, stride, 1, bias=False),
            norm(n_out, config),
        ]
        if config.se_reduction is not None:
            layers.append(SEModule(n_out, config.se_reduction))
        self.res_layer = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) -> (B, n_out, ceil(H / stride), ceil(W / stride))"""
        # The reference max-pools with a kernel of 1: that is taking every stride-th pixel.
        shortcut = self.shortcut_layer(x) if self.shortcut_layer else x[:, :, :: self.stride, :: self.stride]
        return self.res_layer(x) + shortcut


def norm(channels: int, config: IrSeConfig) -> nn.Module:
    """Batch normalisation, or nothing in its place (the positions of the other layers stay)."""
    return nn.BatchNorm2d(channels) if config.norm else nn.Identity()


def stem(config: IrSeConfig) -> nn.Sequential:
    """(B, 3, H, W) -> (B, widths[0], H, W)"""
    width = config.widths[0]
    return nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), norm(width, config), nn.PReLU(width))


def body(config: IrSeConfig) -> nn.Sequential:
    """The units in order; the resolution halves at the first of each group."""
    return nn.Sequential(*(BottleneckUnit(n_in, n_out, stride, config) for n_in, n_out, stride in config.unit_shapes()))
