from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.nn import onednn, winograd

SIZES = {"batch": st.integers(1, 2), "n_in": st.integers(1, 5), "n_out": st.integers(1, 5)}


@pytest.fixture(params=[True, False], ids=["packed", "plain"], autouse=True)
def packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the library's operators and without them, as on a machine that has none."""
    if not request.param:
        monkeypatch.setattr(onednn, "_NAMES", ("no_such_operator",))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 99), **SIZES)
def test_a_convolution_is_the_plain_one(batch: int, n_in: int, n_out: int, rows: int, columns: int, seed: int) -> None:
    x, bias = draw(batch, n_in, 2 * rows, 2 * columns, seed=seed), draw(n_out, seed=seed + 1)
    weight = draw(n_out, n_in, 3, 3, seed=seed + 2)
    made = winograd.convolution(x, winograd.kernel(weight), bias)
    torch.testing.assert_close(made, F.conv2d(x, weight, bias, padding=1), atol=1e-4, rtol=1e-5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 99), **SIZES)
def test_behind_doubled_pixels_it_is_the_plain_one(
    batch: int, n_in: int, n_out: int, rows: int, columns: int, seed: int
) -> None:
    x, bias = draw(batch, n_in, rows, columns, seed=seed), draw(n_out, seed=seed + 1)
    weight = draw(n_out, n_in, 3, 3, seed=seed + 2)
    made = winograd.doubling_convolution(x, winograd.doubling_kernel(weight), bias)
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
    torch.testing.assert_close(made, F.conv2d(doubled, weight, bias, padding=1), atol=1e-4, rtol=1e-5)
