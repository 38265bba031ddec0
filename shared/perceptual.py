"""How far apart two pictures look: a distance of features of MobileNetV2, for figures.

In the manner of LPIPS (Zhang et al., 2018) without its learnt weights; its values are not LPIPS values. Nothing may be
trained on it that it then judges.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nn.mobilenetv2 import MobileNetV2Features

LAYERS = (1, 3, 6, 10)  # beside the stem: maps at strides 2, 4, 8, 16 and 16


class PerceptualDistance(nn.Module):
    """Sum over five maps of the mean over positions of |a - b|^2, a and b of unit length over the channels: 0 to 20."""

    def __init__(self, features: MobileNetV2Features) -> None:
        super().__init__()
        self.features = features

    @classmethod
    def load(cls, folder: Path) -> PerceptualDistance:
        """With the weights in `folder`. Raises FileNotFoundError."""
        return cls(MobileNetV2Features.load(folder, LAYERS))

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a and b (B, 3, H, W), RGB 0..1 -> (B,)"""
        total = a.new_zeros(len(a))
        for ours, theirs in zip(self.features(a), self.features(b), strict=True):
            difference = F.normalize(ours, dim=1) - F.normalize(theirs, dim=1)
            total = total + difference.square().sum(1).mean((1, 2))
        return total
