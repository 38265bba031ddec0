"""From maps to vectors: the weighted mean is the reference's resize and average."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dlsr.layers import by_layer, layer_cosines, layer_sums, normalised, pooled, pooling_weights

BOUNDARIES = (3, 7, 12)


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 120), stride=st.sampled_from([2, 4, 8, 16, 32]), seed=st.integers(0, 99))
def test_the_weighted_mean_is_the_mean_of_the_resized_map(size: int, stride: int, seed: int) -> None:
    if size * stride // 16 < 1:
        return
    map_ = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    resized = F.interpolate(map_, scale_factor=stride / 16, mode="bilinear", align_corners=True)
    torch.testing.assert_close(pooled([map_], [stride]), resized.mean((2, 3)), atol=1e-9, rtol=1e-9)


@given(size=st.integers(1, 200), stride=st.sampled_from([2, 4, 8, 16, 32]))
def test_weights_are_a_mean(size: int, stride: int) -> None:
    weights = pooling_weights(size, stride, 16)
    assert float(weights.sum()) == pytest.approx(1)
    assert bool((weights >= 0).all())


def test_every_layer_of_every_vector_has_mean_zero_and_deviation_one() -> None:
    z = normalised(5 + 3 * torch.randn(4, 12), BOUNDARIES)
    for layer in by_layer(z, BOUNDARIES):
        torch.testing.assert_close(layer.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(layer.std(1), torch.ones(4), atol=1e-3, rtol=0)


def test_a_layer_without_variance_is_zero_and_not_infinite() -> None:
    assert bool((normalised(torch.full((1, 12), 7.0), BOUNDARIES) == 0).all())


def test_sums_and_cosines_keep_to_their_layer() -> None:
    z, other = torch.randn(5, 12), torch.randn(5, 12)
    torch.testing.assert_close(layer_sums(z, BOUNDARIES).sum(1), z.sum(1))
    changed = other.clone()
    changed[:, 3:7] = z[:, 3:7]
    cosines = layer_cosines(z, changed, BOUNDARIES)
    torch.testing.assert_close(cosines[:, 1], torch.ones(5))
    torch.testing.assert_close(cosines[:, [0, 2]], layer_cosines(z, other, BOUNDARIES)[:, [0, 2]])
