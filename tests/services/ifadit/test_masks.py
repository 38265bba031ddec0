from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ifadit.masks import (
    HULLS_68,
    EdgeConfig,
    EllipseConfig,
    compose,
    convex_hull,
    ellipse_mask,
    gaussian_taps,
    landmark_mask,
    soften,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "ifadit"


def test_softening_is_a_maximum_and_a_reflected_gaussian() -> None:
    hard = (np.random.default_rng(1).random((20, 22)) > 0.9).astype(np.float64)
    padded = np.pad(hard, 1, constant_values=0)
    wide = np.array([[padded[i : i + 3, j : j + 3].max() for j in range(22)] for i in range(20)])
    at = np.arange(7) - 3
    taps = np.exp(-(at**2) / (2 * 1.4**2))
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    mirrored = np.pad(wide, 3, mode="reflect")
    expected = np.array([[(mirrored[i : i + 7, j : j + 7] * kernel).sum() for j in range(22)] for i in range(20)])
    ours = soften(torch.from_numpy(hard)[None, None], EdgeConfig(dilate=3, gaussian=7, sigma=1.4))
    np.testing.assert_allclose(ours[0, 0].numpy(), expected, atol=1e-12)


def test_taps_sum_to_one_and_are_symmetric() -> None:
    taps = gaussian_taps(15, 2.6)
    assert taps.sum().item() == pytest.approx(1)
    assert torch.equal(taps, taps.flip(0))


def test_composition_takes_the_foreground_where_the_mask_is_one() -> None:
    fg, bg = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    mask[..., 2] = 0.25
    drawn = compose(fg, bg, mask)
    assert torch.equal(drawn[..., :2], fg[..., :2])
    assert torch.equal(drawn[..., 3], bg[..., 3])
    torch.testing.assert_close(drawn[..., 2], 0.25 * fg[..., 2] + 0.75 * bg[..., 2])


def test_the_ellipse_has_its_area_and_place() -> None:
    mask = ellipse_mask(256, EllipseConfig(center=(0.5, 0.575), half_axes=(0.38, 0.3)))[0, 0]
    assert mask.mean().item() == pytest.approx(np.pi * 0.38 * 0.3, rel=0.01)
    rows, columns = mask.nonzero(as_tuple=True)
    assert (rows.double().mean() + 0.5).item() == pytest.approx(0.575 * 256, abs=0.5)
    assert (columns.double().mean() + 0.5).item() == pytest.approx(0.5 * 256, abs=0.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=20))
def test_a_hull_turns_one_way_and_holds_every_point(points: list[tuple[int, int]]) -> None:
    hull = convex_hull(np.array(points, dtype=np.float64))
    assert {(float(x), float(y)) for x, y in hull} <= {(float(x), float(y)) for x, y in points}
    if len(hull) < 3:
        return
    for a, b in zip(hull, np.roll(hull, -1, axis=0), strict=True):
        for x, y in points:
            assert (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) >= 0


def test_the_face_region_holds_its_landmarks_but_not_the_corners() -> None:
    for case in json.loads((GOLDEN / "align.json").read_text())["cases"]:
        landmarks = np.array(case["landmarks"], dtype=np.float64)
        width, height = (landmarks.max(0) + 20).astype(int)
        mask = landmark_mask(landmarks, height, width)[0, 0]
        used = sorted({i for part in HULLS_68 for i in part})
        for x, y in landmarks[used].astype(int):
            if 0 <= x < width and 0 <= y < height:
                assert mask[y, x] == 1
        assert mask[0, -1] == 0
        assert 0.1 < mask.mean() < 0.9


def test_other_numbers_of_landmarks_are_refused() -> None:
    with pytest.raises(ValueError, match="68"):
        landmark_mask(np.zeros((5, 2)), 10, 10)
