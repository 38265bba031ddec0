"""Attention within windows (dit-sr.md 2.3). The relative bias is all the network knows of positions."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nn.pointwise import Linear
from shared.resshift.windows import Shifted, last_row_mask


@lru_cache(maxsize=16)
def relative_position_index(w: int, device: torch.device) -> Tensor:
    """(w w, w w) int64: the row of the bias table for each query and key, by their distance."""
    with torch.inference_mode(False):  # the first caller may be a sampler, the next one a training
        y, x = (part.flatten() for part in torch.meshgrid(torch.arange(w), torch.arange(w), indexing="ij"))
        down, right = y[:, None] - y + w - 1, x[:, None] - x + w - 1  # query minus key, 0 .. 2w - 2
        return (down * (2 * w - 1) + right).to(device)


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of each window."""

    _frozen_bias: Tensor | None = None

    def __init__(self, dim: int, head_dim: int, window: int, dropout: float) -> None:
        super().__init__()
        self.window = window
        self.heads = dim // head_dim
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, self.heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def freeze(self) -> None:
        """Keep the bias of all pairs, for a network that no longer learns."""
        self._frozen_bias = self.bias().contiguous()

    def bias(self) -> Tensor:
        """(heads, w w, w w): what is added to the logits for where a query and a key lie."""
        if self._frozen_bias is not None:
            return self._frozen_bias
        index = relative_position_index(self.window, self.relative_position_bias_table.device)
        return self.relative_position_bias_table.T[:, index.flatten()].view(self.heads, *index.shape)

    def forward(self, x: Tensor, shift: int = 0, windows: Shifted | None = None) -> Tensor:
        """Attend.

        x        (B, n, w w, D), or for shifted windows (B n w w, D) in the order of `windows.gather`
        returns  as x
        """
        tokens, head_dim = self.window**2, x.shape[-1] // self.heads
        q, k, v = self.qkv(x).view(-1, tokens, 3, self.heads, head_dim).permute(2, 0, 3, 1, 4)  # (B n, heads, w w, d)
        bias = self.bias().to(q.dtype)
        if windows is None:
            mixed = _attend(q, k, v, bias)
        else:
            masked = bias + last_row_mask(self.window, shift, bias.device).to(q.dtype)
            ends = slice(windows.free), slice(windows.free, None)
            parts = [_attend(q[end], k[end], v[end], at) for end, at in zip(ends, (bias, masked), strict=True)]
            mixed = torch.cat(parts)
        return self.proj_drop(self.proj(mixed.view(x.shape)))


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """(windows, heads, w w, d) each, bias (heads, w w, w w) -> (windows, w w, heads d)"""
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
    return mixed.transpose(1, 2).flatten(2)
