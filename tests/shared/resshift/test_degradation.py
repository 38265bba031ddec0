"""The degradation: bounds, seeds and sizes. What it computes is compared with the reference in test_parity."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.resshift import degradationkernels as kernels
from shared.resshift.degradation import TEST, TRAINING, Degradation, blur_kernel, degrade, odd_side, shrunk
from shared.resshift.degradationjpeg import jpeg


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photograph(height: int, width: int) -> torch.Tensor:
    """Something with edges and flat areas, (1, 3, H, W)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([x, (7 * y).frac(), ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1).float()])[None]


@pytest.mark.parametrize("degradation", [TRAINING, TEST])
@given(seed=st.integers(0, 2**31), height=st.integers(16, 24), width=st.integers(16, 24), count=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_a_spoilt_picture_is_a_quarter_as_large_and_eight_bits_deep(
    degradation: Degradation, seed: int, height: int, width: int, count: int
) -> None:
    hr = photograph(4 * height, 4 * width).expand(count, -1, -1, -1)
    lq = degrade(hr, degradation, seeded(seed))
    assert lq.shape == (count, 3, height, width)
    assert lq.min() >= 0
    assert lq.max() <= 1
    torch.testing.assert_close((lq * 255).round(), lq * 255, atol=1e-3, rtol=0)


def test_the_same_seed_spoils_alike_and_another_does_not() -> None:
    hr = photograph(64, 64)
    first, again, other = (degrade(hr, TRAINING, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_test_degradation_is_milder_than_the_training_one() -> None:
    hr = photograph(96, 96)
    errors = [
        sum(float((degrade(hr, constants, seeded(seed)) - shrunk(hr)).square().mean()) for seed in range(20))
        for constants in (TRAINING, TEST)
    ]
    assert errors[1] < errors[0]


@given(seed=st.integers(0, 2**31))
@settings(deadline=None)
def test_a_blur_kernel_keeps_brightness(seed: int) -> None:
    kernel = blur_kernel(TRAINING.first.blur, seeded(seed))
    assert kernel.shape == (21, 21)
    assert float(kernel.sum()) == pytest.approx(1)


def test_kernel_sides_are_odd_and_the_largest_is_never_drawn() -> None:
    drawn = {odd_side(21, seeded(seed)) for seed in range(300)}
    assert drawn == set(range(3, 21, 2))


@given(theta=st.floats(-math.pi, math.pi), sigma=st.floats(0.3, 3))
def test_turning_a_round_kernel_changes_nothing(theta: float, sigma: float) -> None:
    turned, straight = (kernels.gaussian(9, sigma, sigma, angle) for angle in (theta, 0.0))
    torch.testing.assert_close(turned, straight)


def test_an_impulse_filters_nothing() -> None:
    x = photograph(20, 30)
    assert torch.equal(kernels.filtered(x, kernels.impulse(15)[None]), x)


@example(height=3, width=5, quality=100.0)
@given(height=st.integers(1, 40), width=st.integers(1, 40), quality=st.floats(1, 100))
@settings(deadline=None)
def test_jpeg_keeps_any_size_and_a_grey_area_grey(height: int, width: int, quality: float) -> None:
    grey = torch.full((1, 3, -(-height // 16) * 16, -(-width // 16) * 16), 128 / 255)
    assert torch.allclose(jpeg(grey, torch.tensor([quality])), grey, atol=1e-6)
    assert jpeg(grey[:, :, :height, :width], torch.tensor([quality])).shape == (1, 3, height, width)


def test_every_picture_of_a_batch_has_its_own_jpeg_quality() -> None:
    pair = photograph(32, 32).expand(2, -1, -1, -1)
    quality = torch.tensor([20.0, 90.0])
    both = jpeg(pair, quality)
    for index in range(2):
        torch.testing.assert_close(both[index : index + 1], jpeg(pair[:1], quality[index : index + 1]))
    assert torch.equal(quality, torch.tensor([20.0, 90.0]))
    assert float((both[0] - pair[0]).abs().mean()) > float((both[1] - pair[1]).abs().mean())
