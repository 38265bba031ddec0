"""NIQE ranks what it should rank, on the photographs that scikit-image ships."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import gamma
from skimage import data

from shared.naturalness import SHAPES, NaturalStatistics, asymmetric_gaussian


def picture(name: str) -> torch.Tensor:
    pixels = np.asarray(getattr(data, name)())
    return torch.from_numpy(pixels[..., :3].copy()).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def natural() -> NaturalStatistics:
    return NaturalStatistics.fitted([picture("coffee"), picture("chelsea"), picture("rocket")])


@pytest.mark.parametrize("spoil", ["noise", "blur"])
def test_a_spoilt_photograph_is_less_natural(natural: NaturalStatistics, spoil: str) -> None:
    sharp = picture("astronaut")
    if spoil == "noise":
        poor = (sharp + 0.15 * torch.randn(sharp.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    else:
        small = F.interpolate(sharp[None], scale_factor=0.25, mode="area")
        poor = F.interpolate(small, size=sharp.shape[1:], mode="bicubic").clamp(0, 1)[0]
    assert natural.niqe(sharp) < natural.niqe(poor)


def test_a_picture_smaller_than_two_patches_has_no_figure(natural: NaturalStatistics) -> None:
    assert math.isnan(natural.niqe(torch.rand(3, 100, 100)))


@pytest.mark.parametrize("shape", [1.0, 2.0])
def test_the_fit_finds_the_shape_of_a_sample(shape: float) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.laplace(size=200_000) if shape == 1 else rng.normal(size=200_000)
    found, left, right = asymmetric_gaussian(torch.from_numpy(drawn)[None])
    assert float(found) == pytest.approx(shape, rel=0.03)
    assert float(left) == pytest.approx(float(right), rel=0.03)
    assert float(left) == pytest.approx(drawn.std() * math.sqrt(gamma(1 / shape) / gamma(3 / shape)), rel=0.03)


def test_the_table_of_shapes_rises() -> None:
    ratio = gamma(2 / SHAPES.numpy()) ** 2 / (gamma(1 / SHAPES.numpy()) * gamma(3 / SHAPES.numpy()))
    assert (np.diff(ratio) > 0).all()
