from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.nn import onednn
from shared.nn.onednn import PackedConvolution
from shared.nn.pointwise import Linear, Pointwise


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", [Linear, Pointwise])
@pytest.mark.parametrize("rows", [1, 70])
def test_a_layer_and_what_follows_it(kind: type[Linear] | type[Pointwise], frozen: bool, rows: int) -> None:
    layer = kind(12, 20).requires_grad_(False)
    plain = F.linear(x := draw(2, rows, 12), layer.weight.flatten(1), layer.bias)
    if frozen:
        layer.freeze()
    torch.testing.assert_close(layer(x), plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.gelu(x), F.gelu(plain), atol=1e-5, rtol=1e-5)
    other = draw(2, rows, 20)
    torch.testing.assert_close(layer.add(x, other), other + plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [3, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_packed_convolution_is_the_plain_one(side: int, stride: int) -> None:
    x, weight, bias = draw(2, 5, side, side + 1), draw(7, 5, 3, 3), draw(7)
    if not onednn.usable(weight):
        pytest.skip("torch has no oneDNN here")
    packed = PackedConvolution(weight, bias, stride)
    for order in (torch.contiguous_format, torch.channels_last):
        made = packed(x.contiguous(memory_format=order))
        torch.testing.assert_close(made, F.conv2d(x, weight, bias, stride, padding=1), atol=1e-5, rtol=1e-5)


def test_half_precision_is_not_packed() -> None:
    assert not onednn.usable(torch.zeros(2, 2, dtype=torch.bfloat16))
    layer = Linear(4, 4).requires_grad_(False).bfloat16()
    layer.freeze()
    assert layer(torch.zeros(3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
