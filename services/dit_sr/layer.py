"""The isotropic part of DiT-SR: transformer layers of one width D, whatever the width of the stage (dit-sr.md 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from services.dit_sr.adafm import adafm, filter_matrix
from shared.resshift.attention import WindowAttention
from shared.resshift.tokens import GroupNorm, Mlp, Projection
from shared.resshift.windows import from_windows, shifted, to_windows


class Filters(NamedTuple):
    """AdaFM of one block at one time, as matrices (B or 1, w w, w w)."""

    msa: Tensor
    mlp: Tensor


class SwinTransformerBlockAdaFM(nn.Module):
    """Attention and MLP, each behind a normalisation and AdaFM, each added to its input."""

    def __init__(
        self, dim: int, emb_dim: int, head_dim: int, window: int, shift: int, mlp_ratio: float, dropout: float
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = GroupNorm(dim)
        self.attn = WindowAttention(dim, head_dim, window, dropout)
        self.norm2 = GroupNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)
        numbers = window * (window // 2 + 1)
        self.adaLN_scale_msa = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, numbers))
        self.adaLN_scale_mlp = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, numbers))

    def scales(self, emb: Tensor) -> tuple[Tensor, Tensor]:
        """The spectral maps for attention and MLP: (B, 4M) -> twice (B, p, p // 2 + 1), p the window"""
        shape = (len(emb), self.window, self.window // 2 + 1)
        return self.adaLN_scale_msa(emb).view(shape), self.adaLN_scale_mlp(emb).view(shape)

    def filters(self, emb: Tensor) -> Filters:
        """What the time makes of this block: (B, 4M) -> matrices (B, w w, w w)"""
        msa, mlp = self.scales(emb)
        return Filters(filter_matrix(msa), filter_matrix(mlp))

    def forward(self, x: Tensor, filters: Filters, size: tuple[int, int]) -> Tensor:
        """(B, n, w w, D) -> (B, n, w w, D), windows of a map of `size` = (H, W)"""
        x = x + self.attend(adafm(self.norm1(x), filters.msa), size)
        return self.mlp(adafm(self.norm2(x), filters.mlp), skip=x)

    def attend(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Attention in the windows of this block: (B, n, w w, D) -> (B, n, w w, D)"""
        if not self.shift:
            return self.attn(x)
        windows = shifted(len(x), *size, self.window, self.shift, x.device)
        mixed = self.attn(x.flatten(0, 2).index_select(0, windows.gather), self.shift, windows)
        return mixed.index_select(0, windows.scatter).view(x.shape)


class TransformerLayer(nn.Module):
    """C channels into width D, some blocks, and back; no residual around it. Every second block shifts its windows."""

    def __init__(
        self,
        channels: int,
        dim: int,
        emb_dim: int,
        *,
        depth: int,
        resolution: int,
        head_dim: int,
        window: int,
        mlp_ratio: float,
        dropout: float,
    ) -> None:
        """`resolution` is the side of the map that the layer is built for: it decides window and shift for good."""
        super().__init__()
        self.resolution = resolution
        self.window = min(window, resolution)
        shift = self.window // 2 if resolution > window else 0
        self.patch_embed = Projection(channels, dim)
        self.patch_unembed = Projection(dim, channels)
        self.blocks = nn.ModuleList(
            SwinTransformerBlockAdaFM(dim, emb_dim, head_dim, self.window, shift * (i % 2), mlp_ratio, dropout)
            for i in range(depth)
        )

    def forward(self, x: Tensor, filters: Sequence[Filters]) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); one pair of filters a block"""
        height, width = x.shape[-2:]
        tokens = self.patch_embed(to_windows(x, self.window))  # (B, n, w w, D)
        for block, at_time in zip(self.blocks, filters, strict=True):
            tokens = block(tokens, at_time, (height, width))
        return from_windows(self.patch_unembed(tokens), self.window, height, width)
