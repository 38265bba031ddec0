"""The shipped model: its size, its card, and that it is better than enlarging alone."""

from __future__ import annotations

from pathlib import Path

from services.dit_sr import pipeline
from services.dit_sr.pipeline import DitSrPipeline
from shared.resshift.evaluation import walked
from shared.resshift.sampler import sample
from tests.shared.resshift.smallmodels import MOST_BYTES, card_holds_figures, gain_over_bicubic, weights_bytes

SMALL = Path(pipeline.__file__).parent / "weights" / "small"


def test_a_spoilt_photograph_comes_nearer_to_the_sharp_one_than_bicubic_brings_it() -> None:
    assert gain_over_bicubic(walked(DitSrPipeline, SMALL, 1, sample)) > 0.1


def test_the_weights_take_four_megabytes_at_most() -> None:
    assert weights_bytes(SMALL) <= MOST_BYTES


def test_the_card_holds_the_figures_of_these_weights() -> None:
    assert card_holds_figures(SMALL)
