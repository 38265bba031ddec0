"""Swin transformer layers of one width D between the residual blocks of the U-Net (tad-sr.md 2.1)."""

from __future__ import annotations

from torch import Tensor, nn

from shared.resshift.attention import WindowAttention
from shared.resshift.tokens import GroupNorm, Mlp, Projection
from shared.resshift.windows import from_windows, shifted, to_windows


class SwinTransformerBlock(nn.Module):
    """Attention within windows and an MLP, each behind a normalisation, each added to its input."""

    def __init__(self, dim: int, head_dim: int, window: int, shift: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.shift = shift
        self.window = window
        self.norm1 = GroupNorm(dim)
        self.attn = WindowAttention(dim, head_dim, window, dropout)
        self.norm2 = GroupNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, n, w w, D) -> (B, n, w w, D), windows of a map of `size` = (H, W)"""
        x = x + self.attend(self.norm1(x).to(x.dtype), size)
        return self.mlp(self.norm2(x).to(x.dtype), skip=x)

    def attend(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Attention in the windows of this block: (B, n, w w, D) -> (B, n, w w, D)"""
        if not self.shift:
            return self.attn(x)
        windows = shifted(len(x), *size, self.window, self.shift, x.device)
        mixed = self.attn(x.flatten(0, 2).index_select(0, windows.gather), self.shift, windows)
        return mixed.index_select(0, windows.scatter).view(x.shape)


class BasicLayer(nn.Module):
    """C channels into width D, some blocks, and back; no residual around it. Every second block shifts its windows."""

    def __init__(
        self,
        channels: int,
        dim: int,
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
            SwinTransformerBlock(dim, head_dim, self.window, shift * (i % 2), mlp_ratio, dropout) for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); sides are multiples of the window"""
        height, width = x.shape[-2:]
        tokens = self.patch_embed(to_windows(x, self.window))  # (B, n, w w, D)
        for block in self.blocks:
            tokens = block(tokens, (height, width))
        return from_windows(self.patch_unembed(tokens), self.window, height, width)
