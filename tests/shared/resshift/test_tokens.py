"""Normalisation of tokens, in as many groups as a network asks for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.resshift.tokens import GroupNorm, regroup


@pytest.mark.parametrize("groups", [4, 32])
def test_every_normalisation_of_a_network_takes_the_groups(groups: int) -> None:
    ours, theirs = GroupNorm(64), nn.GroupNorm(32, 64)
    regroup(nn.ModuleList([ours, theirs]), groups)
    tokens = torch.randn(2, 3, 16, 64, generator=torch.Generator().manual_seed(0))
    maps = tokens.flatten(1, 2).transpose(1, 2)  # (B, D, n w w)
    expected = F.group_norm(maps, groups).transpose(1, 2).reshape(tokens.shape)
    torch.testing.assert_close(ours(tokens), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(theirs(maps), F.group_norm(maps, groups), atol=1e-5, rtol=1e-4)
