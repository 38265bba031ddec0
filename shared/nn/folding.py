"""Batch norms as part of the convolutions before them: the same numbers in eval mode, sooner."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold(module: nn.Module, conv: str, norm: str) -> None:
    """Let the convolution of a module, in eval mode, do what it and its batch norm do, and the norm nothing."""
    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
    setattr(module, norm, nn.Identity())
