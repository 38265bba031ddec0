"""ResNet-50 (He et al., 2016) up to its third stage, by the names of torchvision's published files.

The stride of a stage is in the 3 x 3 convolution of its first block, as in those files and not as in the paper.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nn.folding import fold
from shared.nn.published import load_exactly

BLOCKS = (3, 4, 6)  # of stages 1, 2, 3; the fourth, which a published file holds too, is not needed
WIDTHS = (64, 128, 256)
EXPANSION = 4
BEYOND = ("layer4.", "fc.")
"""Prefixes of what a published file holds beyond this network."""


class Bottleneck(nn.Module):
    """Narrow, filter, widen, add."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.downsample.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet50(nn.Module):
    """Stem and three stages: 256, 512 and 1,024 channels at strides 4, 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, (blocks, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True), start=1):
            layer = nn.Sequential()
            for block in range(blocks):
                layer.append(Bottleneck(channels, width, 2 if block == 0 and stage > 1 else 1))
                channels = EXPANSION * width
            self.add_module(f"layer{stage}", layer)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The outputs of the stages, for pictures (B, 3, H, W) with ImageNet's mean and deviation taken out."""
        y = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        maps = []
        for stage in range(1, len(BLOCKS) + 1):
            y = self.get_submodule(f"layer{stage}")(y)
            maps.append(y)
        return maps

    def folded(self) -> ResNet50:
        """A copy in eval mode whose batch norms are part of the convolutions: the same numbers, sooner."""
        copied = copy.deepcopy(self).eval()
        fold(copied, "conv1", "bn1")
        for module in copied.modules():
            if isinstance(module, Bottleneck):
                for place in ("1", "2", "3"):
                    fold(module, f"conv{place}", f"bn{place}")
                if len(module.downsample):
                    fold(module.downsample, "0", "1")
        return copied


def load_resnet50(state: Mapping[str, Tensor], name: str) -> ResNet50:
    """The network with published weights, in eval mode. Raises WeightsDamaged, naming the tensor."""
    with torch.device("meta"):
        network = ResNet50()
    load_exactly(network, state, name, BEYOND)
    return network.eval().requires_grad_(False)
