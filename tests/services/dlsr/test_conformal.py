"""P-values, thresholds, many tests at once, drift."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kstest

from services.dlsr.conformal import Calibration, benjamini_hochberg, drift

SCORES = arrays(np.float32, st.integers(1, 30), elements=st.integers(-20, 20).map(float))  # with ties


class TestPValues:
    @given(calibration=SCORES, scores=SCORES)
    def test_they_count_what_is_at_least_as_large(self, calibration: np.ndarray, scores: np.ndarray) -> None:
        counted = [(1 + sum(s >= x for s in calibration)) / (len(calibration) + 1) for x in scores]
        np.testing.assert_allclose(Calibration(calibration).p_values(scores), counted)

    @given(calibration=SCORES, scores=SCORES, percent=st.integers(1, 100))
    def test_above_the_threshold_is_where_p_is_at_most_alpha(
        self, calibration: np.ndarray, scores: np.ndarray, percent: int
    ) -> None:
        known = Calibration(calibration)
        of_n = [(1 + sum(s >= x for s in calibration)) * 100 <= percent * (len(calibration) + 1) for x in scores]
        assert list(scores > known.threshold(percent / 100)) == of_n

    @given(calibration=SCORES, percent=st.integers(1, 99))
    def test_the_threshold_is_the_order_statistic_of_the_specification(
        self, calibration: np.ndarray, percent: int
    ) -> None:
        place = math.ceil((len(calibration) + 1) * (100 - percent) / 100 - 1e-9)
        expected = np.sort(calibration)[place - 1] if place <= len(calibration) else math.inf
        assert Calibration(calibration).threshold(percent / 100) == expected

    def test_too_few_to_be_sure_never_alarm(self) -> None:
        assert Calibration(np.arange(18, dtype=np.float32)).threshold(0.05) == math.inf
        assert Calibration(np.arange(19, dtype=np.float32)).threshold(0.05) == 18

    def test_pictures_like_the_calibration_get_uniform_p_values(self) -> None:
        rng = np.random.default_rng(1)
        p_values = np.concatenate(
            [
                Calibration(rng.normal(size=500).astype(np.float32)).p_values(rng.normal(size=2).astype(np.float32))
                for _ in range(500)
            ]
        )
        assert kstest(p_values, "uniform").pvalue > 0.01


class TestManyAtOnce:
    def test_the_shares_of_benjamini_and_hochbergs_own_example(self) -> None:
        # Benjamini and Hochberg 1995, section 3.2: of these 15, q = 0.05 rejects four.
        p_values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
        p_values += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
        order = np.random.default_rng(0).permutation(15)
        found = benjamini_hochberg(np.array(p_values)[order], 0.05)
        assert sorted(order[found]) == [0, 1, 2, 3]

    def test_nothing_and_everything(self) -> None:
        assert not benjamini_hochberg(np.array([0.2, 0.9]), 0.1).any()
        assert benjamini_hochberg(np.array([0.1, 0.1]), 0.1).all()


class TestDrift:
    @pytest.mark.parametrize(("calibration", "batch"), [(100, 30), (300, 300), (100, 1000)])
    def test_it_is_called_by_chance_about_as_often_as_it_says(self, calibration: int, batch: int) -> None:
        rng = np.random.default_rng(2)
        called = 0
        for _ in range(400):
            known = Calibration(rng.normal(size=calibration).astype(np.float32))
            called += drift(known.p_values(rng.normal(size=batch).astype(np.float32)), calibration)[1] <= 0.05
        assert called / 400 < 0.08

    def test_a_small_shift_of_many_is_seen(self) -> None:
        rng = np.random.default_rng(3)
        known = Calibration(rng.normal(size=800).astype(np.float32))
        statistic, p_value = drift(known.p_values(rng.normal(0.3, size=500).astype(np.float32)), 800)
        assert p_value < 0.01
        assert 0 < statistic < 1
