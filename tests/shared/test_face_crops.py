from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.face_crops import (
    ARCFACE_TEMPLATE_112,
    Matrix,
    Pixels,
    aligned_template,
    blur_region,
    inverse,
    mask_support,
    paste,
    redacted,
    resample,
    similarity,
    transform,
    turning,
    warp_crop,
)

PHOTO_LANDMARKS = np.array([[204, 101], [247, 104], [226, 128], [202, 140], [245, 142]])


def noise(height: int, width: int, *, seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


SIMILARITIES = st.builds(
    lambda angle, scale, x, y: np.array(
        [[scale * np.cos(angle), -scale * np.sin(angle), x], [scale * np.sin(angle), scale * np.cos(angle), y]]
    ),
    st.floats(-np.pi, np.pi),
    st.floats(0.05, 20),
    st.floats(-100, 100),
    st.floats(-100, 100),
)


class TestSimilarity:
    @given(matrix=SIMILARITIES)
    def test_a_similarity_is_recovered_from_its_points(self, matrix: Matrix) -> None:
        points = ARCFACE_TEMPLATE_112
        np.testing.assert_allclose(similarity(points, transform(matrix, points)), matrix, atol=1e-8)

    @given(matrix=SIMILARITIES, seed=st.integers(0, 2**32 - 1))
    def test_no_nearby_similarity_fits_noisy_points_better(self, matrix: Matrix, seed: int) -> None:
        rng = np.random.default_rng(seed)
        points = ARCFACE_TEMPLATE_112
        target = transform(matrix, points) + rng.normal(size=(5, 2))
        best = similarity(points, target)
        least = np.square(transform(best, points) - target).sum()
        turn = rng.normal(scale=1e-3, size=2)
        linear = best[:, :2] @ np.array([[1 + turn[0], -turn[1]], [turn[1], 1 + turn[0]]])
        other = np.column_stack([linear, best[:, 2] + rng.normal(scale=1e-3, size=2)])
        assert np.square(transform(other, points) - target).sum() >= least

    def test_points_that_coincide_cannot_be_aligned(self) -> None:
        with pytest.raises(ValueError, match="aligned"):
            similarity(np.ones((5, 2)), ARCFACE_TEMPLATE_112)

    def test_points_that_are_no_numbers_cannot_be_aligned(self) -> None:
        with pytest.raises(ValueError, match="aligned"):
            similarity(np.full((5, 2), np.nan), ARCFACE_TEMPLATE_112)

    @given(matrix=SIMILARITIES)
    def test_the_inverse_leads_back(self, matrix: Matrix) -> None:
        points = ARCFACE_TEMPLATE_112
        np.testing.assert_allclose(transform(inverse(matrix), transform(matrix, points)), points, atol=1e-8)


def test_the_template_scales_with_the_crop_and_moves_up() -> None:
    np.testing.assert_allclose(aligned_template(112, up=0), ARCFACE_TEMPLATE_112)
    np.testing.assert_allclose(aligned_template(56, up=0.1), ARCFACE_TEMPLATE_112 / 2 - (0, 5.6))
    np.testing.assert_allclose(
        aligned_template(100, scale=1.2, up=0).mean(axis=0) - 50, aligned_template(120, up=0).mean(axis=0) - 60
    )


class TestResampling:
    def test_the_identity_changes_nothing(self) -> None:
        pixels = noise(64, 64, seed=0)
        assert np.array_equal(warp_crop(pixels, np.eye(2, 3), 64), pixels)

    def test_shrinking_takes_the_mean_over_each_area(self) -> None:
        pixels = noise(64, 64, seed=1)
        means = pixels.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))
        assert np.abs(warp_crop(pixels, np.eye(2, 3) / 8, 8) - means).max() <= 0.5

    def test_beyond_the_border_the_picture_is_mirrored(self) -> None:
        pixels = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
        crop = warp_crop(pixels, np.array([[1.0, 0, 4], [0, 1, 4]]), 12)
        assert np.array_equal(crop, np.pad(pixels, ((4, 4), (4, 4), (0, 0)), mode="symmetric"))

    @pytest.mark.parametrize("turns", [0, 1, 2, 3])
    def test_a_quarter_turn_by_matrix_is_a_quarter_turn(self, turns: int) -> None:
        pixels = noise(5, 7, seed=2)
        matrix, (h, w) = turning(5, 7, 90 * turns)
        assert np.array_equal(resample(pixels, inverse(matrix), h, w, border="zero"), np.rot90(pixels, turns))


def soft_disc(size: int) -> np.ndarray:
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    return np.asarray(np.clip((0.45 - np.hypot(x, y)) * 10, 0, 1))


class TestPaste:
    @given(
        angle=st.floats(-np.pi, np.pi),
        scale=st.floats(0.2, 5),
        x=st.floats(-20, 70),
        y=st.floats(-20, 70),
        seed=st.integers(0, 99),
    )
    @settings(max_examples=40, deadline=None)
    def test_only_the_support_of_the_mask_changes(
        self, angle: float, scale: float, x: float, y: float, seed: int
    ) -> None:
        pixels = noise(48, 56, seed=seed)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = np.column_stack([turn, 16 - turn @ (x, y)])
        mask = soft_disc(32)
        out = paste(pixels, 255 - warp_crop(pixels, matrix, 32), matrix, mask)
        support = mask_support((48, 56), matrix, mask)
        assert np.array_equal(out[~support], pixels[~support])
        middle = round(y), round(x)
        if 1 <= middle[0] < 47 and 1 <= middle[1] < 55 and scale < 2:
            assert support[middle]

    @pytest.mark.parametrize("size", [32, 128])
    def test_a_crop_put_back_unchanged_gives_the_picture(self, size: int) -> None:
        y, x = np.mgrid[:512, :512] / 20
        smooth = (127.5 + 120 * np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1)).astype(np.uint8)
        matrix = similarity(PHOTO_LANDMARKS, aligned_template(size))
        out = paste(smooth, warp_crop(smooth, matrix, size), matrix, soft_disc(size))
        support = mask_support((512, 512), matrix, soft_disc(size))
        radius = 0.45 * size / np.sqrt(np.linalg.det(matrix[:, :2]))
        assert support.sum() == pytest.approx(np.pi * radius**2, rel=0.1)
        assert np.abs(out[support].astype(int) - smooth[support]).max() <= (2 if size == 128 else 12)

    def test_a_full_mask_at_the_identity_puts_the_crop_itself(self) -> None:
        pixels, crop = noise(32, 32, seed=3), noise(32, 32, seed=4)
        assert np.array_equal(paste(pixels, crop, np.eye(2, 3), np.ones((32, 32))), crop)

    def test_a_mask_weighs_crop_against_picture(self) -> None:
        black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
        weights = np.linspace(0, 1, 64).reshape(8, 8)
        out = paste(black, white, np.eye(2, 3), weights)
        assert np.array_equal(out[..., 0], np.round(255 * weights))

    def test_a_crop_that_lies_outside_changes_nothing(self) -> None:
        pixels, matrix = noise(64, 64, seed=5), np.array([[1.0, 0, 1000], [0, 1, 1000]])
        crop = np.zeros((64, 64, 3), np.uint8)
        assert np.array_equal(paste(pixels, crop, matrix, np.ones((64, 64))), pixels)
        assert not mask_support((64, 64), matrix, np.ones((64, 64))).any()


class TestRedaction:
    @given(x=st.floats(-30, 60), y=st.floats(-30, 60), w=st.floats(0, 60), h=st.floats(0, 60))
    @settings(deadline=None)
    def test_nothing_outside_the_region_changes(self, x: float, y: float, w: float, h: float) -> None:
        pixels = noise(40, 50, seed=6)
        out = blur_region(pixels, (x, y, w, h))
        out[redacted((40, 50), (x, y, w, h))] = pixels[redacted((40, 50), (x, y, w, h))]
        assert np.array_equal(out, pixels)

    def test_what_is_left_depends_on_the_means_of_sixteen_cells_alone(self) -> None:
        rng = np.random.default_rng(7)
        pixels = noise(40, 40, seed=8)
        shuffled = pixels.copy()
        for row in range(0, 40, 10):
            for column in range(0, 40, 10):
                cell = shuffled[row : row + 10, column : column + 10].reshape(-1, 3)
                rng.shuffle(cell)
                shuffled[row : row + 10, column : column + 10] = cell.reshape(10, 10, 3)
        box = (0.0, 0.0, 40.0, 40.0)
        assert not np.array_equal(shuffled, pixels)
        assert np.array_equal(blur_region(shuffled, box, margin=0), blur_region(pixels, box, margin=0))
