"""Parts of transformer blocks that work on windows of tokens, (B, n, w w, D), under the published names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nn.pointwise import Pointwise

NORM_GROUPS = 32


class GroupNorm(nn.Module):
    """Group normalisation of tokens, with statistics over the whole map, in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_groups = NORM_GROUPS
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, w w, D) -> (B, n, w w, D) float32"""
        b, n, tokens, d = x.shape
        channels_first = x.float().view(b, n * tokens, 1, d).permute(0, 3, 1, 2)  # channels-last in memory: no copy
        with torch.autocast(x.device.type, enabled=False):
            normed = F.group_norm(channels_first, self.num_groups, self.weight.float(), self.bias.float(), eps=1e-5)
        return normed.permute(0, 2, 3, 1).reshape(x.shape)


def regroup(network: nn.Module, groups: int) -> None:
    """Let all normalisations of a network take their channels in so many groups.

    A small network has one or two channels to each of the published 32: their strength, and with it how much there is
    to restore, would be lost.
    """
    for module in network.modules():
        if isinstance(module, GroupNorm | nn.GroupNorm):
            module.num_groups = groups


class Mlp(nn.Module):
    """The feed-forward part of a block."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = Pointwise(dim, hidden)
        self.fc2 = Pointwise(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """What it makes of x, added to `skip`: (..., dim) -> (..., dim)"""
        hidden = self.fc1.gelu(x)
        if self.training:
            return skip + self.drop(self.fc2(self.drop(hidden)))
        return self.fc2.add(hidden, skip)


class Projection(nn.Module):
    """Into and out of the width D; the published name has `proj` between."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.proj = Pointwise(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_in) -> (..., n_out)"""
        return self.proj(x)
