"""What makes a picture good in the training of the small variants: near the truth, pixel by pixel and in features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from shared.nn.efficientnet import LITE0_MEAN, LITE0_STD, EfficientNet, load_lite0
from shared.resshift.degradation import SCALE

SHIFTS = 8
CELL = 4
WEAVE_WEIGHT = 100.0
TAPS = (0, 2, 4, 7)  # blocks of Lite0 whose maps are compared: strides 2, 4, 8 and 16


def feature_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Squared distance of two maps (B, C, h, w) whose pixels are scaled to unit length over the channels; the mean."""
    return (F.normalize(ours.float(), dim=1) - F.normalize(theirs.float(), dim=1)).square().sum(1).mean()


def weave(error: Tensor) -> Tensor:
    """How much of an error (B, 3, H, W) repeats with the blocks of pixels that a position of the latent stands for.

    The error's mean at each of a block's 16 places, over CELL x CELL blocks, less their mean: its mean square. What a
    decoder paints alike into every block shows as a woven texture, which a feature loss likes better than a blur.
    """
    places = F.avg_pool2d(F.pixel_unshuffle(error, SCALE), CELL)
    places = places.unflatten(1, (error.shape[1], SCALE**2))  # (B, 3, 16, h, w)
    return (places - places.mean(2, keepdim=True)).square().mean()


class ImageLoss(nn.Module):
    """L1, no pattern of blocks, and a distance of features of EfficientNet-Lite0; another network judges the result."""

    def __init__(self, network: EfficientNet, perceptual_weight: float) -> None:
        super().__init__()
        self.network = network.folded().requires_grad_(False)
        self.weight = perceptual_weight

    @classmethod
    def load(cls, perceptual_weight: float) -> ImageLoss:
        """With the weights of the package. Raises WeightsDamaged."""
        return cls(load_lite0(), perceptual_weight)

    def features(self, x: Tensor) -> list[Tensor]:
        """Maps of pictures (B, 3, H, W) in [-1, 1]."""
        return self.network(((x + 1) * 127.5 - LITE0_MEAN) / LITE0_STD, TAPS)

    def forward(self, sr: Tensor, hr: Tensor, rng: Generator) -> dict[str, Tensor]:
        """sr and hr (B, 3, H, W) in [-1, 1] -> `l1`, `perceptual`, `weave`, and `image`, their weighted sum.

        Features are taken from a place that `rng` shifts by up to 7 px. Else their strides fall on the blocks of pixels
        that a latent stands for, at every step, and what repeats with the blocks is never seen: a woven texture.
        """
        l1, woven = (sr - hr).abs().mean(), weave(sr - hr)
        top, left = torch.randint(SHIFTS, (2,), generator=rng).tolist()
        rows, columns = (slice(at, side - SHIFTS + 1 + at) for at, side in ((top, sr.shape[2]), (left, sr.shape[3])))
        sr, hr = sr[:, :, rows, columns], hr[:, :, rows, columns]
        perceptual = sum(
            (feature_distance(a, b) for a, b in zip(self.features(sr), self.features(hr.detach()), strict=True)),
            start=l1.new_zeros(()),
        )
        image = l1 + self.weight * perceptual + WEAVE_WEIGHT * woven
        return {"l1": l1, "perceptual": perceptual, "weave": woven, "image": image}
