"""E_id, the identity encoder: who is in the picture, as a vector of unit length (ifadit.md 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from services.ifadit.irse import IrSeConfig, body, stem


@dataclass(frozen=True)
class IdentityEncoderConfig:
    """Sizes of E_id."""

    trunk: IrSeConfig
    crop: tuple[int, int, int, int] | None
    """First row, end row, first column, end column of the part that the network sees; None sees everything."""
    input_size: int
    """Side in pixels that the (cropped) picture is average-pooled to."""
    embedding: int
    """Length of the embedding."""
    dropout: float
    """Before the last linear layer, in training only."""
    mirrored: bool
    """Answer with the mean of a picture's and its mirror image's embedding, when not training."""


class IdentityEncoder(nn.Module):
    """ArcFace's IR-SE network."""

    def __init__(self, config: IdentityEncoderConfig) -> None:
        super().__init__()
        self.config = config
        trunk = config.trunk
        side = config.input_size >> len(trunk.widths)
        if side << len(trunk.widths) != config.input_size:
            raise ValueError(f"input_size {config.input_size} is no multiple of {1 << len(trunk.widths)}")
        self.input_layer = stem(trunk)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(trunk.widths[-1]),
            nn.Dropout(config.dropout),
            nn.Flatten(),
            nn.Linear(trunk.widths[-1] * side * side, config.embedding),
            nn.BatchNorm1d(config.embedding),
        )
        self.body = body(trunk)

    def prepare(self, x: Tensor) -> Tensor:
        """Pictures in [0, 1] as the network reads them: cropped, pooled to input_size, in [-1, 1]."""
        x = 2 * x - 1
        if self.config.crop is not None:
            top, bottom, left, right = self.config.crop
            x = x[:, :, top:bottom, left:right]
        if x.shape[2:] != (self.config.input_size, self.config.input_size):
            x = F.adaptive_avg_pool2d(x, self.config.input_size)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Embed aligned pictures.

        x        (B, 3, H, W)    RGB in [0, 1]; `config.crop` refers to its pixels
        returns  (B, embedding)  unit length
        """
        x = self.prepare(x)
        embedding = self._embed(x)
        if self.config.mirrored and not self.training:
            embedding = F.normalize(embedding + self._embed(x.flip(3)))
        return embedding

    def _embed(self, x: Tensor) -> Tensor:
        return F.normalize(self.output_layer(self.body(self.input_layer(x))))


IR_SE_50 = IrSeConfig(widths=(64, 128, 256, 512), units=(3, 4, 14, 3), se_reduction=16, norm=True)

PAPER = IdentityEncoderConfig(
    trunk=IR_SE_50, crop=(35, 223, 32, 220), input_size=112, embedding=512, dropout=0.6, mirrored=False
)
