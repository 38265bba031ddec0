"""DiT-SR's denoiser: a U of stages, and in every stage transformer layers of one width (dit-sr.md 2).

Class names are the reference's where it has one; attribute names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from services.dit_sr.layer import Filters, SwinTransformerBlockAdaFM, TransformerLayer
from shared.nn import onednn, winograd
from shared.nn.onednn import PackedConvolution
from shared.resshift.tokens import NORM_GROUPS, regroup
from shared.resshift.unet import Downsample, Upsample, feature_extractor, timestep_embedding

MIN_SIDE = 16  # of a map: below it there are too few tiles for Winograd to pay


class TimestepEmbedSequential(nn.Sequential):
    """Parts one after the other, of which the transformer layers also take the filters of their blocks."""

    def forward(self, x: Tensor, filters: Iterator[Filters]) -> Tensor:  # type: ignore[override]
        for part in self:
            x = part(x, [next(filters) for _ in part.blocks]) if isinstance(part, TransformerLayer) else part(x)
        return x


class Joint(nn.Conv2d):
    """The convolution behind a skip connection: (B, C, H, W) -> (B, C', H, W)"""

    _kernel: winograd.Kernel | None = None
    _packed: PackedConvolution | None = None

    def __init__(self, n_in: int, n_out: int, side: int) -> None:
        """`side` is that of the map that the network is built for."""
        super().__init__(n_in, n_out, 3, padding=1)
        self._few_tiles = side < MIN_SIDE

    def freeze(self) -> None:
        """Transform or order the kernel, for a network that no longer learns and stays where it is."""
        if not self._few_tiles:
            self._kernel = winograd.kernel(self.weight)
        elif onednn.usable(self.weight):
            self._packed = PackedConvolution(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self._kernel is not None:
            return winograd.convolution(x, self._kernel, cast(Tensor, self.bias))
        return super().forward(x) if self._packed is None else self._packed(x)


class UNetModelSwin(ModelMixin, ConfigMixin):  # type: ignore[misc]  # classes without types
    """The denoiser. `forward` is the whole; samplers call its three parts, of which two do not change on the way:
    `condition` once a picture, `filters` once a timestep, `predict` at every step."""

    @register_to_config
    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        channel_mult: Sequence[int],
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
        attention_resolutions  sides, as built, of the stages with transformer layers; the middle has one in any case
        swin_depth             blocks a layer
        swin_embed_dim         D, the width of all blocks
        dropout                after the attention's projection and within the MLP; in training only
        lq_size                side of the picture for a latent of `image_size`; where it is larger, convolutions bring
                               it down
        norm_groups            of every normalisation; published configurations do not name it

        Raises ValueError for sizes that do not divide.
        """
        super().__init__()
        halvings = len(channel_mult) - 1
        if image_size % 2**halvings or swin_embed_dim % num_head_channels:
            raise ValueError(f"image_size {image_size} or swin_embed_dim {swin_embed_dim} does not divide")
        if lq_size % image_size:
            raise ValueError(f"lq_size {lq_size} is no multiple of image_size {image_size}")
        m, emb = model_channels, 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(m, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.feature_extractor, lq_channels = feature_extractor(lq_size // image_size)
        widths = [m * factor for factor in channel_mult]
        sides = [image_size >> i for i in range(len(widths))]

        def layer(channels: int, side: int, depth: int) -> TransformerLayer:
            return TransformerLayer(
                channels,
                swin_embed_dim,
                emb,
                depth=depth,
                resolution=side,
                head_dim=num_head_channels,
                window=window_size,
                mlp_ratio=mlp_ratio,
                dropout=dropout,
            )

        first = nn.Conv2d(in_channels + lq_channels, widths[0], 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(first)])
        skips = [widths[0]]
        for i, (width, side) in enumerate(zip(widths, sides, strict=True)):
            if i:
                self.input_blocks.append(TimestepEmbedSequential(Downsample(widths[i - 1], width)))
                skips.append(width)
            attends = side in attention_resolutions
            # Without a layer the block is empty, and leaves its input a second time.
            parts = [layer(width, side, swin_depth)] if attends else []
            self.input_blocks.append(TimestepEmbedSequential(*parts))
            skips.append(width)
        self.middle_block = TimestepEmbedSequential(layer(widths[-1], sides[-1], swin_depth))
        self.output_blocks = nn.ModuleList()
        for i in reversed(range(len(widths))):
            for last in (False, True):
                joined = Joint(widths[i] + skips.pop(), widths[i], sides[i])
                depth = 1 if last else swin_depth
                layers = [layer(widths[i], sides[i], depth)] if sides[i] in attention_resolutions else []
                up = [Upsample(widths[i], widths[i - 1])] if last and i else []
                self.output_blocks.append(TimestepEmbedSequential(joined, *layers, *up))
        self.out = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], out_channels, 3, padding=1)
        )
        regroup(self, norm_groups)

    @property
    def multiple(self) -> int:
        """Sides of a latent must be multiples of this: whole windows in every stage."""
        side, window = self.config["image_size"], self.config["window_size"]
        return max(min(window, side >> i) << i for i in range(len(self.config["channel_mult"])))

    def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        """Predict the clean latent.

        x        (B, c, h, w)  the noisy latent, scaled as the schedule says; h and w multiples of `multiple`
        t        (B,)          timesteps as trained, 0 .. T-1
        lq       (B, 3, h', w') the low-quality picture in [-1, 1]; h' = h lq_size / image_size
        returns  (B, c, h, w)
        """
        return self.predict(x, self.condition(lq), self.filters(t))

    def condition(self, lq: Tensor) -> Tensor:
        """The share of the first convolution that the picture has: (B, 3, h', w') -> (B, M, h, w)"""
        first = self._first()
        weight = first.weight[:, self.config["in_channels"] :]
        return F.conv2d(self.feature_extractor(lq), weight, first.bias, padding=1)

    def filters(self, t: Tensor) -> list[Filters]:
        """AdaFM's matrices of all blocks at times t (B,), in the order in which `predict` meets them.

        One time stands for all pictures of a batch, whatever its size.
        """
        emb = self.time_embed(timestep_embedding(t, self.config["model_channels"]).to(self._first().weight.dtype))
        return [block.filters(emb) for block in self.transformer_blocks()]

    def enter(self, x: Tensor, condition: Tensor) -> Tensor:
        """The first convolution, of latent and picture: (B, c, h, w), (B, M, h, w) -> (B, M, h, w)"""
        return F.conv2d(x, self._first().weight[:, : self.config["in_channels"]], padding=1) + condition

    def predict(self, x: Tensor, condition: Tensor, filters: Sequence[Filters]) -> Tensor:
        """What `forward` gives, from its parts."""
        remaining = iter(filters)
        h = self.enter(x, condition).contiguous(memory_format=torch.channels_last)
        skips = [h]
        for block in self.input_blocks[1:]:
            h = block(h, remaining)
            skips.append(h)
        h = self.middle_block(h, remaining)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), remaining)
        return self.out(h)

    def transformer_blocks(self) -> Iterator[SwinTransformerBlockAdaFM]:
        """All blocks, in the order of computation."""
        for module in self.modules():
            if isinstance(module, SwinTransformerBlockAdaFM):
                yield module

    def start_with_identity_filters(self) -> None:
        """Let AdaFM begin as a filter that changes nothing; the reference begins with small random ones.

        A deviation for small networks, before training (dit-sr.md 2.4).
        """
        for block in self.transformer_blocks():
            for scale in (block.adaLN_scale_msa, block.adaLN_scale_mlp):
                nn.init.ones_(cast(nn.Linear, scale[1]).bias)

    def _first(self) -> nn.Conv2d:
        return cast(nn.Conv2d, self.get_submodule("input_blocks.0.0"))


PAPER: dict[str, Any] = {
    "image_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 160,
    "channel_mult": [1, 2, 2, 4],
    "attention_resolutions": [64, 32, 16, 8],
    "swin_depth": 6,
    "swin_embed_dim": 192,
    "num_head_channels": 32,
    "window_size": 8,
    "mlp_ratio": 4,
    "dropout": 0.1,
    "lq_size": 64,
}
PAPER_LITE = PAPER | {
    "model_channels": 128,
    "attention_resolutions": [64, 32, 16],
    "swin_depth": 4,
    "swin_embed_dim": 160,
}
PAPER_FACE = PAPER | {"in_channels": 8, "out_channels": 8, "lq_size": 512}
