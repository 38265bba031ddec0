"""The denoiser of student and teacher: ResShift's U-Net with a Swin layer in every stage (tad-sr.md 2.1).

Class names are the reference's where it has one; attribute names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from services.tad_sr.swin import BasicLayer
from shared.resshift.tokens import NORM_GROUPS, regroup
from shared.resshift.unet import Downsample, Upsample, feature_extractor, start_at_zero, timestep_embedding


class ResBlock(nn.Module):
    """(B, C, H, W) -> (B, C', H, W): two convolutions, of which the time scales and shifts what the second gets."""

    def __init__(self, n_in: int, n_out: int, emb_dim: int, dropout: float) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, n_in), nn.SiLU(inplace=True), nn.Conv2d(n_in, n_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, 2 * n_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, n_out),
            nn.SiLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(n_out, n_out, 3, padding=1),
        )
        start_at_zero(self.out_layers[3])
        self.skip_connection = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """emb  (B, 4M)"""
        h = self.in_layers(x)
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        norm, *rest = self.out_layers
        h = torch.addcmul(shift, norm(h), 1 + scale)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


class TimestepEmbedSequential(nn.Sequential):
    """Parts one after the other, of which the residual blocks also take the time."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for part in self:
            x = part(x, emb) if isinstance(part, ResBlock) else part(x)
        return x


class UNetModelSwin(ModelMixin, ConfigMixin):  # type: ignore[misc]  # classes without types
    """Student and teacher alike."""

    @register_to_config
    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: Sequence[int],
        attention_resolutions: Sequence[int],
        swin_depth: int,
        swin_embed_dim: int,
        num_head_channels: int,
        window_size: int,
        mlp_ratio: float,
        dropout: float,
        lq_size: int,
        norm_groups: int = NORM_GROUPS,
    ) -> None:
        """Sizes as the published configurations name them.

        image_size             side of the latent that the network is built for; others work too, see `multiple`
        model_channels         M; a stage is M times its `channel_mult` wide, and has half the side of the one before
        num_res_blocks         a stage, on the way down; one more on the way up
        attention_resolutions  sides, as built, of the stages with Swin layers; the middle has one in any case
        swin_depth             blocks a layer
        swin_embed_dim         D, the width of all blocks
        dropout                in training only
        lq_size                side of the picture for a latent of `image_size`; where it is larger, convolutions bring
                               it down
        norm_groups            of every normalisation; published configurations do not name it

        Raises ValueError for sizes that do not divide.
        """
        super().__init__()
        if image_size % 2 ** (len(channel_mult) - 1) or swin_embed_dim % num_head_channels or lq_size % image_size:
            raise ValueError("image_size, swin_embed_dim or lq_size does not divide")
        if len(num_res_blocks) != len(channel_mult):
            raise ValueError(f"{len(num_res_blocks)} numbers of blocks for {len(channel_mult)} stages")
        m, emb = model_channels, 4 * model_channels
        widths = [m * factor for factor in channel_mult]
        sides = [image_size >> i for i in range(len(widths))]

        def swin(channels: int, side: int) -> BasicLayer:
            return BasicLayer(
                channels,
                swin_embed_dim,
                depth=swin_depth,
                resolution=side,
                head_dim=num_head_channels,
                window=window_size,
                mlp_ratio=mlp_ratio,
                dropout=dropout,
            )

        self.time_embed = nn.Sequential(nn.Linear(m, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.feature_extractor, lq_channels = feature_extractor(lq_size // image_size)
        first = nn.Conv2d(in_channels + lq_channels, widths[0], 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(first)])
        channels, skips = widths[0], [widths[0]]
        for i, (width, side) in enumerate(zip(widths, sides, strict=True)):
            for index in range(num_res_blocks[i]):
                layers = [swin(width, side)] if side in attention_resolutions and index == 0 else []
                self.input_blocks.append(TimestepEmbedSequential(ResBlock(channels, width, emb, dropout), *layers))
                channels = width
                skips.append(width)
            if i < len(widths) - 1:
                self.input_blocks.append(TimestepEmbedSequential(Downsample(width, width)))
                skips.append(width)
        self.middle_block = TimestepEmbedSequential(
            ResBlock(channels, channels, emb, dropout),
            swin(channels, sides[-1]),
            ResBlock(channels, channels, emb, dropout),
        )
        self.output_blocks = nn.ModuleList()
        for i in reversed(range(len(widths))):
            for index in range(num_res_blocks[i] + 1):
                layers = [swin(widths[i], sides[i])] if sides[i] in attention_resolutions and index == 0 else []
                up = [Upsample(widths[i], widths[i])] if i and index == num_res_blocks[i] else []
                block = ResBlock(channels + skips.pop(), widths[i], emb, dropout)
                self.output_blocks.append(TimestepEmbedSequential(block, *layers, *up))
                channels = widths[i]
        self.out = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        regroup(self, norm_groups)

    @property
    def multiple(self) -> int:
        """Sides of a latent must be multiples of this: whole windows in every stage."""
        side, window = self.config["image_size"], self.config["window_size"]
        return max(min(window, side >> i) << i for i in range(len(self.config["channel_mult"])))

    def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        """What the schedule calls its prediction.

        x        (B, c, h, w)   the noisy latent, scaled as the schedule says; h and w multiples of `multiple`
        t        (B,)           timesteps as trained, 0 .. T-1
        lq       (B, 3, h', w') the low-quality picture in [-1, 1]; h' = h lq_size / image_size
        returns  (B, c, h, w)
        """
        emb = self.embedding(t)
        *skips, h = self._down(x, emb, lq)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h)

    def features(self, x: Tensor, t: Tensor, lq: Tensor) -> list[Tensor]:
        """What a discriminator looks at: the outputs of every downsampling, of the last input block and of the middle.

        For the published network these are the reference's input blocks 3, 6, 9, 11 and the middle block.
        """
        outputs = list(self._down(x, self.embedding(t), lq))
        return [outputs[index] for index in self.feature_places()]

    def feature_places(self) -> list[int]:
        """Which of the input blocks `features` gives; the number behind the last stands for the middle block."""
        ends = list(accumulate(count + 1 for count in self.config["num_res_blocks"]))
        last = len(self.input_blocks) - 1
        return [*ends[:-1], last, last + 1]

    def feature_channels(self) -> list[int]:
        """How wide those are."""
        widths = [self.config["model_channels"] * factor for factor in self.config["channel_mult"]]
        return [*widths[:-1], widths[-1], widths[-1]]

    def embedding(self, t: Tensor) -> Tensor:
        """(B,) -> (B, 4M)"""
        sinusoids = timestep_embedding(t, self.config["model_channels"])
        return self.time_embed(sinusoids.to(self.get_parameter("time_embed.0.weight").dtype))

    def _down(self, x: Tensor, emb: Tensor, lq: Tensor) -> Iterator[Tensor]:
        """The outputs of the input blocks, then of the middle."""
        h = torch.cat([x, self.feature_extractor(lq)], dim=1)
        for block in (*self.input_blocks, self.middle_block):
            h = block(h, emb)
            yield h


PAPER: dict[str, Any] = {
    "image_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 160,
    "channel_mult": [1, 2, 2, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "attention_resolutions": [64, 32, 16, 8],
    "swin_depth": 2,
    "swin_embed_dim": 192,
    "num_head_channels": 32,
    "window_size": 8,
    "mlp_ratio": 4,
    "dropout": 0.0,
    "lq_size": 64,
}
PAPER_FACE = PAPER | {"in_channels": 8, "out_channels": 8, "lq_size": 512}
