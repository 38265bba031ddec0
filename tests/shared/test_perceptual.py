"""The perceptual distance of figures, with a network of random weights."""

from __future__ import annotations

import pytest
import torch

from shared.nn.mobilenetv2 import MobileNetV2Features
from shared.perceptual import LAYERS, PerceptualDistance
from tests.shared.featureweights import feature_weights


@pytest.fixture(scope="module")
def distance() -> PerceptualDistance:
    return PerceptualDistance(MobileNetV2Features(feature_weights(), LAYERS).eval())


def test_a_picture_is_at_no_distance_from_itself_and_every_picture_counts_alone(distance: PerceptualDistance) -> None:
    x = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    other = x.clone()
    other[1] = 1 - other[1]
    first, second = distance(x, other).tolist()
    assert first == pytest.approx(0, abs=1e-6)
    assert 0 < second <= 20


def test_more_noise_is_farther(distance: PerceptualDistance) -> None:
    rng = torch.Generator().manual_seed(2)
    x, noise = torch.rand(1, 3, 64, 64, generator=rng), torch.randn(1, 3, 64, 64, generator=rng)
    near, far = (float(distance((x + level * noise).clamp(0, 1), x)) for level in (0.02, 0.2))
    assert near < far
