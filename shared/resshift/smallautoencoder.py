"""The autoencoder of the small variants: everything happens at the latent's resolution, and nothing is normalised.

The paper's VQ autoencoder works at the picture's resolution and costs far more than a small denoiser. This one takes
its place behind the same calls: `encode`, `decode`, `factor`. Three latent channels hold twice the mean colour of each
block of pixels; the convolutions add what the mean lacks. No codebook, so no quantisation.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + conv(SiLU(conv(SiLU(x))))"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Encoder(nn.Module):
    """Pixels to what the mean colours lack."""

    def __init__(self, factor: int, latent_channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3 * factor**2, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.conv_out = nn.Conv2d(width, latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3 factor^2, h, w) -> (B, latent_channels, h, w)"""
        return self.conv_out(F.silu(self.blocks(self.conv_in(x))))


class Decoder(nn.Module):
    """The latent to what its enlarged colours lack: blocks at its resolution, then two steps of twice the size."""

    def __init__(self, factor: int, latent_channels: int, width: int, blocks: int, fine_width: int) -> None:
        super().__init__()
        self.last = factor // 2
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.conv_fine = nn.Conv2d(width, 4 * fine_width, 3, padding=1)
        self.conv_out = nn.Conv2d(fine_width, 3 * self.last**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, latent_channels, h, w) -> (B, 3, factor h, factor w)"""
        h = F.silu(self.blocks(self.conv_in(z)))
        h = F.silu(F.pixel_shuffle(self.conv_fine(h), 2))
        return F.pixel_shuffle(self.conv_out(h), self.last)


class SmallAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # of classes without types
    """Pictures in [-1, 1] to latents of a `factor`-th of the side, and back."""

    @register_to_config
    def __init__(
        self,
        *,
        factor: int,
        latent_channels: int,
        encoder_width: int,
        encoder_blocks: int,
        decoder_width: int,
        decoder_blocks: int,
        fine_width: int,
    ) -> None:
        """
        factor           pixels of the picture to one of the latent, along a side; even
        latent_channels  at least 3
        fine_width       channels at twice the latent's resolution
        """
        super().__init__()
        self.encoder = Encoder(factor, latent_channels, encoder_width, encoder_blocks)
        self.decoder = Decoder(factor, latent_channels, decoder_width, decoder_blocks, fine_width)

    @property
    def factor(self) -> int:
        """Pixels of the picture to one of the latent, along a side."""
        return int(self.config["factor"])

    @property
    def channels(self) -> int:
        """Of the latent."""
        return int(self.config["latent_channels"])

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, factor h, factor w) in [-1, 1] -> z (B, latent_channels, h, w)"""
        z = self.encoder(F.pixel_unshuffle(pixels, self.factor))
        colours = 2 * F.avg_pool2d(pixels, self.factor)
        return z + F.pad(colours, (0, 0, 0, 0, 0, z.shape[1] - 3))

    def decode(self, z: Tensor) -> Tensor:
        """z (B, latent_channels, h, w) -> pixels (B, 3, factor h, factor w), not clamped"""
        enlarged = F.interpolate(z[:, :3] / 2, scale_factor=self.factor, mode="bilinear", align_corners=False)
        return enlarged + self.decoder(z)


SMALL: dict[str, Any] = {
    "factor": 4,
    "latent_channels": 3,
    "encoder_width": 48,
    "encoder_blocks": 2,
    "decoder_width": 80,
    "decoder_blocks": 5,
    "fine_width": 32,
}
