"""MobileNetV2 as a frozen feature extractor: it teaches and judges, and no number of it is in a file that ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.nn.frozen import FrozenConv, folded

WEIGHTS_FILE = "mobilenetv2_imagenet1001_fp16.safetensors"
STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)  # of layers 0..15


class MobileNetV2Features(nn.Module):
    """Maps of a MobileNetV2 trained on ImageNet, for comparing pictures by what they show.

    Computes in the dtype that it was moved to.
    """

    unit: Tensor  # tells that dtype

    def __init__(self, weights: Mapping[str, Tensor], layers: Sequence[int]) -> None:
        """layers  whose maps are given, beside the stem's; what follows the last is not computed"""
        super().__init__()
        self.layers = frozenset(layers)
        self.register_buffer("unit", torch.ones(()))
        root = "mobilenet_v2"

        def conv(name: str, stride: int = 1, groups: int = 1) -> nn.Module:
            kernel, bias = folded(weights, f"{root}.{name}.convolution", f"{root}.{name}.normalization", 1e-3)
            if stride == 2:  # TensorFlow pads an even side at the end only
                return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), FrozenConv(kernel, bias, stride, 0, groups))
            return FrozenConv(kernel, bias, stride, kernel.shape[2] // 2, groups)

        self.stem = nn.ModuleList(
            [conv("conv_stem.first_conv", 2), conv("conv_stem.conv_3x3", 1, 32), conv("conv_stem.reduce_1x1")]
        )
        self.blocks = nn.ModuleList()
        for i, stride in enumerate(STRIDES[: max(layers) + 1]):
            name = f"layer.{i}"
            hidden = len(weights[f"{root}.{name}.conv_3x3.convolution.weight"])
            parts = conv(f"{name}.expand_1x1"), conv(f"{name}.conv_3x3", stride, hidden), conv(f"{name}.reduce_1x1")
            self.blocks.append(nn.ModuleList(parts))

    @classmethod
    def load(cls, folder: Path, layers: Sequence[int]) -> MobileNetV2Features:
        """From `mobilenetv2_imagenet1001_fp16.safetensors` in `folder`."""
        return cls(load_file(folder / WEIGHTS_FILE), layers).eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, 3, H, W), RGB 0..1 -> the stem's map and those of the layers, float32."""
        x = (x * 2 - 1).to(self.unit.dtype).contiguous(memory_format=torch.channels_last)
        x = self.stem[2](self.stem[1](self.stem[0](x).clamp(0, 6)).clamp(0, 6))
        maps = [x.float()]
        for i, block in enumerate(self.blocks):
            expand, depthwise, reduce = block.children()
            h = reduce(depthwise(expand(x).clamp(0, 6)).clamp(0, 6))
            x = x + h if h.shape == x.shape else h
            if i in self.layers:
                maps.append(x.float())
        return maps
