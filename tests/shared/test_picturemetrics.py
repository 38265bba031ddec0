"""PSNR and SSIM against closed forms and the independent implementation in scikit-image."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from shared.picturemetrics import luma, psnr_y, ssim_y


def noise(seed: int, height: int = 40, width: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_equal_pictures_are_perfect() -> None:
    x = noise(0)
    assert psnr_y(x, x).isinf().all()
    torch.testing.assert_close(ssim_y(x, x), torch.ones(2, dtype=torch.float64))


def test_white_and_black_have_the_luma_of_video() -> None:
    black, white = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    assert float(luma(black)) == pytest.approx(16)
    assert float(luma(white)) == pytest.approx(235, abs=1e-2)


@given(levels=st.integers(1, 100))
def test_a_grey_shift_has_the_psnr_of_its_square(levels: int) -> None:
    x = torch.full((1, 3, 20, 20), 100 / 255)
    shift = levels * (235 - 16) / 255  # in units of luma
    assert float(psnr_y(x + levels / 255, x)[0]) == pytest.approx(20 * math.log10(255 / shift), abs=1e-3)


def test_the_border_does_not_count() -> None:
    x = noise(1)
    framed = x.clone()
    framed[:, :, :4] = 0
    assert psnr_y(framed, x).isinf().all()


@given(seed=st.integers(0, 1000), strength=st.floats(0.01, 0.5))
@settings(max_examples=10, deadline=None)
def test_ssim_agrees_with_scikit_image(seed: int, strength: float) -> None:
    a, b = noise(seed), noise(seed + 1)
    b = a.lerp(b, strength)
    theirs = [
        structural_similarity(
            x.numpy()[0], y.numpy()[0], data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for x, y in zip(luma(a), luma(b), strict=True)
    ]
    torch.testing.assert_close(ssim_y(a, b, crop_px=0), torch.tensor(theirs, dtype=torch.float64), atol=1e-6, rtol=0)
