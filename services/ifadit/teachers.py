"""The frozen network that teaches identity. The other teacher, of features, is `shared.nn.mobilenetv2`.

Neither is part of the product: no number of theirs is copied or fine-tuned into a file that ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.nn.frozen import FrozenConv, folded

IDENTITY_FILE = "mobilefacenet_ms1m.safetensors"

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)
TEACHER_PX = 112  # what the identity teacher was trained on
RAISED_PX = 4  # of 112: our frame is the ArcFace template moved up 4 % (shared.faces.aligned_template)
# (expansion, width, repeats, first stride) of the inverted residuals
MOBILEFACENET = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
FEATURE_LAYERS = (0, 1, 3)  # with the stem: maps at strides 2, 4, 4 and 8


def luma(x: Tensor) -> Tensor:
    """Grey picture of three equal channels (BT.601), shape and range of x (B, 3, H, W)."""
    weights = x.new_tensor(LUMA)[None, :, None, None]
    return (x * weights).sum(1, keepdim=True).expand_as(x)


class MobileFaceNet(nn.Module):
    """Identity teacher: 128 values a face, trained by others on MS-Celeb-1M (refined)."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.limits: list[float] = []  # of the activation: 6 for ReLU6, inf for ReLU, -1 for none
        self.skip_from: list[int] = []  # index of the layer whose input is added to the output, or -1

        def add(
            conv: str, norm: str, limit: float, stride: int = 1, padding: int = 0, groups: int = 1, skip: int = -1
        ) -> None:
            self.layers.append(FrozenConv(*folded(weights, conv, norm, 1e-5), stride, padding, groups))
            self.limits.append(limit)
            self.skip_from.append(skip)

        add("conv1.0", "conv1.1", 6, stride=2, padding=1)
        add("dw_conv.depthwise", "dw_conv.bn1", float("inf"), padding=1, groups=64)
        add("dw_conv.pointwise", "dw_conv.bn2", float("inf"))
        index, width_in = 0, 64
        for expansion, width, repeats, first_stride in MOBILEFACENET:
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                start, name = len(self.layers), f"features.{index}.conv"
                add(f"{name}.0.0", f"{name}.0.1", 6)
                add(f"{name}.1.0", f"{name}.1.1", 6, stride=stride, padding=1, groups=width_in * expansion)
                add(f"{name}.2", f"{name}.3", -1, skip=start if stride == 1 and width_in == width else -1)
                index, width_in = index + 1, width
        add("conv2.0", "conv2.1", 6)
        add("gdconv.depthwise", "gdconv.bn", -1, groups=512)
        add("conv3", "bn", -1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, 112, 112), normalised by ImageNet's mean and deviation -> (B, 128), not of unit length."""
        skips: dict[int, Tensor] = {}
        for i, (layer, limit, skip) in enumerate(zip(self.layers, self.limits, self.skip_from, strict=True)):
            if i in self.skip_from:
                skips[i] = x
            x = layer(x)
            if limit >= 0:
                x = F.relu6(x) if limit == 6 else F.relu(x)
            if skip >= 0:
                x = x + skips.pop(skip)
        return x.flatten(1)


def resizing(side: int, raised: int) -> Tensor:
    """(TEACHER_PX, side): the matrix that enlarges a column bicubically and moves it down by `raised` px.

    Two products with it cost a tenth of the library's own bicubic resampling and its gradient.
    """
    enlarged = F.interpolate(torch.eye(side)[None, None], size=(TEACHER_PX, side), mode="bicubic", align_corners=False)[
        0, 0
    ]
    return torch.cat([enlarged[:1].expand(raised, -1), enlarged[: TEACHER_PX - raised]])


class IdentityTeacher(nn.Module):
    """The identity of an aligned face as the teacher sees it: in grey, moved back to the teacher's own frame.

    Grey, because a loss on colour paints identity into the skin. `mirror` adds the mirrored picture's embedding, as
    the teacher's authors do; without it a pass costs half. Computes in the dtype that it was moved to.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.network = MobileFaceNet(weights)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1))

    @classmethod
    def load(cls, folder: Path) -> IdentityTeacher:
        """From `mobilefacenet_ms1m.safetensors` in `folder`."""
        return cls(load_file(folder / IDENTITY_FILE)).eval()

    def forward(self, x: Tensor, mirror: bool = False) -> Tensor:
        """x (B, 3, S, S), RGB 0..1, aligned -> (B, 128) float32 of unit length."""
        down, across = (resizing(x.shape[2], raised).to(x) for raised in (RAISED_PX, 0))
        x = (down @ luma(x)[:, :1] @ across.T).clamp(0, 1)
        x = ((x - self.mean) / self.std).to(self.mean.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        embedding = self.network(x).float()
        if mirror:
            embedding = embedding + self.network(x.flip(3)).float()
        return F.normalize(embedding, dim=1)
