"""The VQ autoencoder written down as its paper has it: what `shared.resshift.autoencoder` is compared with.

Same parameters; feature maps in the usual order, swish as a product, nearest neighbours and then a convolution, the
whole matrix of attention, the whole matrix of distances.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.resshift.autoencoder import VqAutoencoder


def encode(network: VqAutoencoder, pixels: Tensor) -> Tensor:
    """Picture to latent, not quantised."""
    encoder: Any = network.encoder
    x = _conv(encoder.conv_in, pixels, padding=1)
    for level in encoder.down:
        x = _blocks(level, x)
        if hasattr(level, "downsample"):
            x = _conv(level.downsample.conv, F.pad(x, (0, 1, 0, 1)), stride=2)
    x = _swish(_norm(encoder.norm_out, _middle(encoder.mid, x)))
    return _conv(network.quant_conv, _conv(encoder.conv_out, x, padding=1))


def decode(network: VqAutoencoder, z: Tensor) -> Tensor:
    """Latent, quantised first, to picture."""
    decoder: Any = network.decoder
    b, c, h, w = z.shape
    codes = network.quantize.embedding.weight
    rows = z.permute(0, 2, 3, 1).reshape(-1, c)
    distance = rows.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * rows @ codes.T
    z = codes[distance.argmin(1)].reshape(b, h, w, c).permute(0, 3, 1, 2).contiguous()
    x = _middle(decoder.mid, _conv(decoder.conv_in, _conv(network.post_quant_conv, z), padding=1))
    for level in reversed(decoder.up):
        x = _blocks(level, x)
        if hasattr(level, "upsample"):
            x = _conv(level.upsample.conv, F.interpolate(x, scale_factor=2, mode="nearest"), padding=1)
    return _conv(decoder.conv_out, _swish(_norm(decoder.norm_out, x)), padding=1)


def _conv(layer: nn.Conv2d, x: Tensor, *, padding: int = 0, stride: int = 1) -> Tensor:
    return F.conv2d(x, layer.weight.contiguous(), layer.bias, stride=stride, padding=padding)


def _norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _blocks(level: Any, x: Tensor) -> Tensor:
    for index, block in enumerate(level.block):
        x = _resnet(block, x)
        if level.attn:
            x = _attention(level.attn[index], x)
    return x


def _middle(middle: Any, x: Tensor) -> Tensor:
    return _resnet(middle.block_2, _attention(middle.attn_1, _resnet(middle.block_1, x)))


def _resnet(block: Any, x: Tensor) -> Tensor:
    h = _conv(block.conv1, _swish(_norm(block.norm1, x)), padding=1)
    h = _conv(block.conv2, _swish(_norm(block.norm2, h)), padding=1)
    return (_conv(block.nin_shortcut, x) if hasattr(block, "nin_shortcut") else x) + h


def _attention(block: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    normed = _norm(block.norm, x)
    q, k, v = (_conv(layer, normed).reshape(b, c, h * w) for layer in (block.q, block.k, block.v))
    weights = torch.softmax(torch.bmm(q.transpose(1, 2), k) * c**-0.5, dim=2)  # (B, h w, h w)
    attended = torch.bmm(v, weights.transpose(1, 2)).reshape(b, c, h, w)
    return x + _conv(block.proj_out, attended)
