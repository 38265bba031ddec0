"""The shipped models: their cards, their figures, their size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.dlsr.detector import KINDS, Detector
from services.dlsr.evaluate import tables
from shared.modelfolder import digest_of, files_of

WEIGHTS = Path(__file__).parents[3] / "services" / "dlsr" / "weights"
MOST_BYTES = 4_000_000


@pytest.mark.parametrize("name", ["small", "small-faces"])
def test_the_card_and_the_figures_are_of_these_weights(name: str) -> None:
    card = (WEIGHTS / name / "MODEL_CARD.md").read_text()
    figures = json.loads((WEIGHTS / name / "evaluate.json").read_text())
    assert figures["model_digest"] == digest_of(WEIGHTS / name)
    assert digest_of(WEIGHTS / name) in card
    blocks = tables(figures).split("\n\n")
    assert [block for block in blocks if block not in card] == []


def test_all_of_them_together_are_small() -> None:
    assert sum(path.stat().st_size for path in files_of(WEIGHTS)) <= MOST_BYTES


def test_the_detector_of_small_pictures_has_every_score_calibrated() -> None:
    detector = Detector.load(WEIGHTS / "small", "cpu")
    assert detector.kinds == KINDS
    assert set(detector.calibration) == set(KINDS)
