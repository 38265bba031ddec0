"""The autoencoder's shortcuts give what the plain operations give."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import plainautoencoder
from shared.nn.freezing import freeze
from shared.resshift.autoencoder import VectorQuantizer, VqAutoencoder
from shared.resshift.convolution import MIN_WIDTH, Convolution, PointwiseConvolution
from tests.shared.resshift.tiny import F4, tiny

SIZES = st.integers(1, 9)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20)
@given(SIZES, SIZES)
def test_a_pointwise_convolution_is_one(h: int, w: int) -> None:
    conv, x = PointwiseConvolution(3, 5).requires_grad_(False), normals(2, 3, h, w)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias))


def test_a_frozen_wide_convolution_of_any_size_gives_the_same() -> None:
    wide = Convolution(MIN_WIDTH, MIN_WIDTH).requires_grad_(False)
    for h, w in ((6, 4), (5, 4), (4, 3), (1, 1)):
        x = normals(2, MIN_WIDTH, h, w)
        plain = wide(x)
        frozen = Convolution(MIN_WIDTH, MIN_WIDTH)
        frozen.load_state_dict(wide.state_dict())
        freeze(frozen)
        torch.testing.assert_close(frozen(x), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("h", "w"), [(8, 8), (4, 12)])
def test_the_whole_is_the_plain_form(h: int, w: int) -> None:
    network = tiny(3).autoencoder
    assert isinstance(network, VqAutoencoder)
    pixels = normals(2, 3, 4 * h, 4 * w)
    z = network.encode(pixels)
    torch.testing.assert_close(z, plainautoencoder.encode(network, pixels), atol=1e-4, rtol=0)
    torch.testing.assert_close(network.decode(z), plainautoencoder.decode(network, z), atol=1e-4, rtol=0)
    freeze(network)
    torch.testing.assert_close(network.encode(pixels), z, atol=1e-4, rtol=0)
    assert network.factor == 4
    assert network.channels == 3


def test_a_level_attends_where_the_configuration_says_so() -> None:
    network = VqAutoencoder(**F4 | {"attn_resolutions": [16], "ch_mult": [1, 2, 2]}).requires_grad_(False)
    names = {name.rpartition(".attn.")[0] for name in network.state_dict() if ".attn." in name}
    assert names == {"encoder.down.1", "decoder.up.1"}
    pixels = normals(1, 3, 16, 16)
    z = network.encode(pixels)
    torch.testing.assert_close(z, plainautoencoder.encode(network, pixels), atol=1e-4, rtol=0)


@settings(max_examples=30)
@given(st.integers(1, 50), st.integers(1, 5), st.integers(1, 4), st.integers(1, 5))
def test_the_nearest_code_is_found(codes: int, h: int, w: int, channels: int) -> None:
    quantizer = VectorQuantizer(codes, channels).requires_grad_(False)
    z = normals(2, channels, h, w)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 1, channels)
    distances = (rows - quantizer.embedding.weight).square().sum(2)
    chosen = distances[torch.arange(len(rows)), quantizer.indices(z)]
    torch.testing.assert_close(chosen, distances.min(1).values, atol=1e-5, rtol=1e-4)
    assert quantizer(z).shape == z.shape


def test_the_first_of_equal_codes_is_taken() -> None:
    quantizer = VectorQuantizer(6, 3).requires_grad_(False)
    quantizer.embedding.weight[4] = quantizer.embedding.weight[1]
    z = quantizer.embedding.weight[4].reshape(1, 3, 1, 1)
    assert quantizer.indices(z).tolist() == [1]


def test_codes_are_compared_in_float32_whatever_the_latent_is_in() -> None:
    quantizer = VectorQuantizer(2, 1).requires_grad_(False)
    quantizer.embedding.weight[:] = torch.tensor([[1.0], [1.001]])
    with torch.autocast("cpu", torch.bfloat16):
        assert quantizer.indices(torch.full((1, 1, 1, 1), 1.0009)).tolist() == [1]


def test_attention_over_a_large_latent_keeps_no_matrix_of_all_pairs() -> None:
    code = """
import resource, torch
from shared.resshift.autoencoder import AttnBlock
block = AttnBlock(32).requires_grad_(False)
x = torch.randn(1, 32, 96, 96)
block(x[:, :, :32, :32])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
block(x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    of_all_pairs_kib = (96 * 96) ** 2 * 4 / 1024  # 332 thousand, for one matrix
    assert float(done.stdout) < of_all_pairs_kib / 10
