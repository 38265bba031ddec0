"""DiT-SR's denoiser as its equations are written: AdaFM by Fourier transforms, maps with channels first, windows cut
and joined around every attention, masks made anew in every block, nothing kept from one step to the next.

It takes the parameters of the product's network and gives the same numbers.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.dit_sr.denoiser import UNetModelSwin
from services.dit_sr.layer import SwinTransformerBlockAdaFM, TransformerLayer
from shared.nn.pointwise import Pointwise
from shared.resshift.attention import relative_position_index
from shared.resshift.tokens import NORM_GROUPS, GroupNorm
from shared.resshift.unet import timestep_embedding


def forward(network: UNetModelSwin, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
    """What the network gives for (B, c, h, w), (B,), (B, 3, h', w')."""
    emb = network.time_embed(timestep_embedding(t, network.config["model_channels"]))
    h = torch.cat([x, network.feature_extractor(lq)], dim=1)
    skips = []
    for block in network.input_blocks:
        h = _parts(block, h, emb)
        skips.append(h)
    h = _parts(network.middle_block, h, emb)
    for block in network.output_blocks:
        h = _parts(block, torch.cat([h, skips.pop()], dim=1), emb)
    y: Tensor = network.out(h)
    return y


def _parts(block: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
    for part in block.children():
        h = _layer(part, h, emb) if isinstance(part, TransformerLayer) else part(h)
    return h


def _layer(layer: TransformerLayer, x: Tensor, emb: Tensor) -> Tensor:
    x = _pointwise(layer.patch_embed.proj, x)
    for block in layer.blocks:
        x = _block(cast(SwinTransformerBlockAdaFM, block), x, emb)
    return _pointwise(layer.patch_unembed.proj, x)


def _block(block: SwinTransformerBlockAdaFM, x: Tensor, emb: Tensor) -> Tensor:
    scale_msa, scale_mlp = block.scales(emb)
    x = x + _attention(block, adafm(_norm(block.norm1, x), scale_msa))
    hidden = F.gelu(_pointwise(block.mlp.fc1, adafm(_norm(block.norm2, x), scale_mlp)))
    return x + _pointwise(block.mlp.fc2, hidden)


def adafm(x: Tensor, scale: Tensor) -> Tensor:
    """(B, C, H, W), (B, p, p // 2 + 1) -> (B, C, H, W)"""
    b, c, h, w = x.shape
    p = scale.shape[1]
    patches = x.reshape(b, c, h // p, p, w // p, p).transpose(3, 4)
    spectrum = torch.fft.rfft2(patches) * scale[:, None, None, None]
    filtered: Tensor = torch.fft.irfft2(spectrum, s=(p, p))
    return filtered.transpose(3, 4).reshape(b, c, h, w)


def _attention(block: SwinTransformerBlockAdaFM, x: Tensor) -> Tensor:
    b, c, height, width = x.shape
    w, shift, attn = block.window, block.shift, block.attn
    if shift:
        x = x.roll((-shift, -shift), dims=(2, 3))
    windows = x.view(b, c, height // w, w, width // w, w).permute(0, 2, 4, 3, 5, 1).reshape(-1, w * w, c)
    q, k, v = attn.qkv(windows).view(-1, w * w, 3, attn.heads, c // attn.heads).permute(2, 0, 3, 1, 4)
    logits = (q * (c // attn.heads) ** -0.5) @ k.transpose(-2, -1)
    index = relative_position_index(w, x.device)
    logits = logits + attn.relative_position_bias_table[index.flatten()].view(w * w, w * w, -1).permute(2, 0, 1)
    mask = _mask(height, width, w, shift)
    logits = (logits.view(b, -1, *logits.shape[1:]) + mask[:, None]).view(logits.shape)
    mixed = (logits.softmax(-1) @ v).transpose(1, 2).reshape(-1, w * w, c)
    windows = attn.proj(mixed).view(b, height // w, width // w, w, w, c)
    x = windows.permute(0, 5, 1, 3, 2, 4).reshape(b, c, height, width)
    return x.roll((shift, shift), dims=(2, 3)) if shift else x


def _mask(height: int, width: int, w: int, shift: int) -> Tensor:
    """(n, w w, w w): rows are marked at -w and -shift, and the marks of a window are read transposed."""
    marks = torch.zeros(height, width)
    if shift:
        marks[-w:-shift] = 1
        marks[-shift:] = 2
    windows = marks.view(height // w, w, width // w, w).permute(0, 2, 3, 1).reshape(-1, w * w)
    apart = windows[:, None] != windows[:, :, None]
    return torch.zeros(apart.shape).masked_fill(apart, -100.0)


def _norm(norm: GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, NORM_GROUPS, norm.weight, norm.bias, eps=1e-5)


def _pointwise(layer: Pointwise, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias)
