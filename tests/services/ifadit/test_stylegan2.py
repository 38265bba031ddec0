from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.ifadit.fir import Blur, Upsample, kernel_of
from services.ifadit.stylegan2 import Generator, GeneratorConfig, ModulatedConv2d, SeedConfig, SpatialSeed
from tests.services.ifadit.tiny import randomize


def upfirdn(x: Tensor, kernel: Tensor, up: int, pad: tuple[int, int]) -> Tensor:
    """Zeros between the pixels, padding, true convolution: the definition, one channel at a time."""
    b, c, h, w = x.shape
    spread = x.new_zeros(b, c, h * up, w * up)
    spread[:, :, ::up, ::up] = x
    spread = F.pad(spread, (*pad, *pad))
    flipped = kernel.flip(0, 1)[None, None]
    return torch.cat([F.conv2d(spread[:, i : i + 1], flipped) for i in range(c)], dim=1)


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 5, 3)])
def test_filters_agree_with_their_definition_also_for_lopsided_taps(taps: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    kernel = kernel_of(taps)
    assert kernel.sum().item() == pytest.approx(4)
    torch.testing.assert_close(Blur(taps, 3)(x), upfirdn(x, kernel, 1, (1, 1)))
    torch.testing.assert_close(Upsample(taps)(x), upfirdn(x, kernel, 2, (2, 1)))


@settings(max_examples=20, deadline=None)
@given(up=st.booleans(), demodulate=st.booleans(), seed=st.integers(0, 2**16))
def test_scaling_inputs_and_outputs_is_a_weight_of_its_own_for_every_sample(
    up: bool, demodulate: bool, seed: int
) -> None:
    conv = ModulatedConv2d(4, 5, 3, 6, demodulate=demodulate, up=(1, 3, 3, 1) if up else None).double()
    randomize(conv, seed)
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 5, 5, generator=rng, dtype=torch.float64)
    w = torch.randn(3, 6, generator=rng, dtype=torch.float64)
    one_by_one = []
    for sample, row in zip(x, w, strict=True):
        style = conv.modulation.weight @ row / 6**0.5 + conv.modulation.bias
        weight = conv.weight[0] / (4 * 9) ** 0.5 * style[None, :, None, None]
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            drawn = F.conv_transpose2d(sample[None], weight.transpose(0, 1), stride=2)
            one_by_one.append(upfirdn(drawn, kernel_of((1, 3, 3, 1)).double(), 1, (1, 1)))
        else:
            one_by_one.append(F.conv2d(sample[None], weight, padding=1))
    torch.testing.assert_close(conv(x, w), torch.cat(one_by_one), atol=1e-7, rtol=1e-6)


SEEDED = GeneratorConfig(
    channels=(8, 8, 4),
    style_dim=6,
    n_mlp=1,
    lr_mlp=0.01,
    blur=(1, 3, 3, 1),
    seeds=(SeedConfig((0, 3), 2, 8), SeedConfig((3, 6), 1, 16)),
)


def test_a_seed_puts_its_style_rows_at_places() -> None:
    generator = Generator(SEEDED).eval().requires_grad_(False)
    seen: dict[str, Tensor] = {}
    generator.convs[1].register_forward_pre_hook(lambda _, args: seen.__setitem__("entered", args[0]))
    generator.convs[0].register_forward_hook(lambda _module, _args, output: seen.__setitem__("left", output))
    wplus = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(1))
    generator(wplus)
    seed = cast(SpatialSeed, generator.seeds[0])
    grid = F.leaky_relu(wplus[:, :3].flatten(1) @ seed.linear.weight.T / 18**0.5 + seed.linear.bias, 0.2) * 2**0.5
    expected = torch.einsum("oc,bchw->bohw", seed.weight[:, :, 0, 0] / 2**0.5, grid.reshape(2, 2, 8, 8))
    torch.testing.assert_close(seen["entered"] - seen["left"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", [SeedConfig((0, 3), 2, 32), SeedConfig((0, 7), 2, 8), SeedConfig((2, 2), 2, 8)])
def test_a_seed_that_fits_nowhere_is_refused(seed: SeedConfig) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        GeneratorConfig((8, 8, 4), 6, 1, 0.01, (1, 3, 3, 1), (seed,))


def test_noise_maps_belong_to_the_state_and_are_used() -> None:
    generator = Generator(SEEDED).eval().requires_grad_(False)
    wplus = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(generator(wplus), generator(wplus))
    randomize(generator, 1)
    before = generator(wplus)
    generator.noises.get_buffer("noise_4").neg_()
    assert "noises.noise_4" in generator.state_dict()
    assert not torch.equal(before, generator(wplus))
