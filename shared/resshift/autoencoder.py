"""The frozen autoencoder of the family: VQ-f4 for photographs, VQ-f8 for faces (LDM; resshift-diffusion.md 5).

Names of modules and parameters are those of the published files. `encode` does not quantise, `decode` does: the
diffusion runs on the continuous latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from shared.resshift.convolution import Convolution, PointwiseConvolution
from shared.resshift.unet import Upsample

GROUPS = 32
EPS = 1e-6
LOOKUP_ROWS = 4096  # latent positions that are compared with the codebook at once: 128 MB at 8192 codes


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=EPS)


class ResnetBlock(nn.Module):
    """(B, C, h, w) -> (B, C', h, w): twice normalise, swish, convolve; the input is added."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = Convolution(in_channels, out_channels)
        self.norm2 = norm(out_channels)
        self.conv2 = Convolution(out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut = PointwiseConvolution(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return h.add_(self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Attention of one head over all positions of the latent; (B, C, h, w) -> the same.

    Computed in blocks (flash attention): memory grows with h w, time with its square.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = PointwiseConvolution(channels, channels)
        self.k = PointwiseConvolution(channels, channels)
        self.v = PointwiseConvolution(channels, channels)
        self.proj_out = PointwiseConvolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        normed = self.norm(x)
        q, k, v = (layer(normed).permute(0, 2, 3, 1).reshape(b, 1, h * w, c) for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, 1, h w, C)
        return x + self.proj_out(attended.reshape(b, h, w, c).permute(0, 3, 1, 2))


class Downsample(nn.Module):
    """Halves the sides: one zero at the right and at the bottom, then a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Middle(nn.Module):
    """The coarsest stage of both halves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Blocks at one resolution, an attention behind each where the configuration asks for it, and a change of size."""

    def __init__(self, channels: Sequence[int], *, attention: bool, resample: tuple[str, nn.Module] | None) -> None:
        """channels  of the input, then of every block"""
        super().__init__()
        pairs = list(pairwise(channels))
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(b) for _, b in pairs if attention)
        self._resample = None
        if resample is not None:
            self._resample, module = resample
            self.add_module(self._resample, module)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return x if self._resample is None else getattr(self, self._resample)(x)


class Encoder(nn.Module):
    """Picture (B, 3, H, W) in [-1, 1] -> (B, z_channels, H / f, W / f)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        ch, mult, blocks = config["ch"], config["ch_mult"], config["num_res_blocks"]
        widths = [ch, *(ch * m for m in mult)]
        self.conv_in = Convolution(config["in_channels"], ch)
        self.down = nn.ModuleList(
            Level(
                [widths[level], *[widths[level + 1]] * blocks[level]],
                attention=_attends(config, level),
                resample=("downsample", Downsample(widths[level + 1])) if level < len(mult) - 1 else None,
            )
            for level in range(len(mult))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = Convolution(widths[-1], config["z_channels"])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latent (B, z_channels, h, w) -> picture (B, 3, f h, f w), not clamped. `up` is indexed by level, 0 the finest."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        ch, mult, blocks = config["ch"], config["ch_mult"], config["num_res_blocks"]
        widths = [*(ch * m for m in mult), ch * mult[-1]]  # of the levels, and of what comes into the coarsest
        self.conv_in = Convolution(config["z_channels"], widths[-1])
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(
                [widths[level + 1], *[widths[level]] * (blocks[level] + 1)],
                attention=_attends(config, level),
                resample=("upsample", Upsample(widths[level], widths[level])) if level else None,
            )
            for level in range(len(mult))
        )
        self.norm_out = norm(widths[0])
        self.conv_out = Convolution(widths[0], config["out_ch"])

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def _attends(config: Mapping[str, Any], level: int) -> bool:
    return config["resolution"] // 2**level in config["attn_resolutions"]


class VectorQuantizer(nn.Module):
    """The nearest of `n_embed` vectors at every position."""

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)

    def indices(self, z: Tensor) -> Tensor:
        """Which vector is nearest; (B, C, h, w) -> (B h w,) int64. The first of equals.

        In float32 whatever z is: in half precision neighbours in the codebook cannot be told apart.
        """
        with torch.autocast(z.device.type, enabled=False):
            codes = self.embedding.weight.float()
            size = codes.square().sum(1)
            rows = z.float().permute(0, 2, 3, 1).reshape(-1, z.shape[1])
            # |z|^2 is the same for all codes.
            return torch.cat([torch.addmm(size, part, codes.T, alpha=-2).argmin(1) for part in rows.split(LOOKUP_ROWS)])

    def forward(self, z: Tensor) -> Tensor:
        b, c, h, w = z.shape
        return self.embedding(self.indices(z)).to(z.dtype).reshape(b, h, w, c).permute(0, 3, 1, 2)


class VqAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # classes without types
    """A picture as a latent of `factor` times smaller sides, and back."""

    @register_to_config
    def __init__(
        self,
        *,
        embed_dim: int,
        n_embed: int,
        z_channels: int,
        resolution: int,
        in_channels: int,
        out_ch: int,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: Sequence[int],
        attn_resolutions: Sequence[int],
    ) -> None:
        """Sizes as the published configurations name them; `num_res_blocks` and `ch_mult` a level, finest first."""
        super().__init__()
        if len(num_res_blocks) != len(ch_mult):
            raise ValueError(f"{len(num_res_blocks)} numbers of blocks for {len(ch_mult)} levels")
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.quantize = VectorQuantizer(n_embed, embed_dim)
        self.quant_conv = PointwiseConvolution(z_channels, embed_dim)
        self.post_quant_conv = PointwiseConvolution(embed_dim, z_channels)

    @property
    def factor(self) -> int:
        """How many pixels a latent position is wide."""
        return 2 ** (len(self.config["ch_mult"]) - 1)

    @property
    def channels(self) -> int:
        """Of the latent."""
        return int(self.config["embed_dim"])

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, f h, f w) in [-1, 1] -> (B, C, h, w), not quantised."""
        return self.quant_conv(self.encoder(pixels))

    def decode(self, z: Tensor, *, quantize: bool = True) -> Tensor:
        """(B, C, h, w) -> (B, 3, f h, f w), about [-1, 1] and not clamped."""
        return self.decoder(self.post_quant_conv(self.quantize(z) if quantize else z))


def reference_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our configuration from a published one (`embed_dim`, `n_embed`, `ddconfig`). Raises ValueError if it has more."""
    inner = dict(config["ddconfig"])
    levels = len(inner["ch_mult"])
    if inner.pop("double_z") or inner.pop("dropout"):
        raise ValueError("a Gaussian latent or dropout is not part of this family")
    inner.pop("padding_mode", None)  # the published code ignores it
    blocks = inner.pop("num_res_blocks")
    inner["num_res_blocks"] = [blocks] * levels if isinstance(blocks, int) else list(blocks)
    return {"embed_dim": config["embed_dim"], "n_embed": config["n_embed"], **inner}


PAPER_F4 = {
    "embed_dim": 3,
    "n_embed": 8192,
    "z_channels": 3,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
    "attn_resolutions": [],
}
PAPER_F8 = {
    "embed_dim": 8,
    "n_embed": 4096,
    "z_channels": 8,
    "resolution": 512,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 64,
    "ch_mult": [1, 2, 4, 8],
    "num_res_blocks": [1, 2, 3, 4],
    "attn_resolutions": [],
}
