"""Pairs: what is cut out belongs together, and nothing is spoilt twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from shared.resshift import trainingdata
from shared.resshift.trainingdata import Pairs, Shelf, load_pairs, photographs
from tests.shared.resshift.tinytraining import packed


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A packed set of two training pictures, one standing, and one to test on."""
    return packed(tmp_path, {"a.jpg": (481, 321), "b.jpg": (321, 481), "c.png": (70, 50)})


def test_photographs_come_by_split_in_rgb(data: Path) -> None:
    (only,) = photographs(data, "test")
    assert (only.name, only.has_truth, only.pixels.shape) == ("c.png", True, (3, 50, 70))
    assert 0 <= only.pixels.min() < only.pixels.max() <= 1


def test_pairs_are_made_once(data: Path, tmp_path: Path) -> None:
    first = load_pairs(data, tmp_path / "cache", seed=3)
    (data / trainingdata.SET).unlink()
    again = load_pairs(data, tmp_path / "cache", seed=3)
    assert [shelf.hr.shape for shelf in first.shelves] == [(2, 3, 320, 480), (2, 3, 224, 336)]
    assert all(torch.equal(a.lq, b.lq) for a, b in zip(first.shelves, again.shelves, strict=True))


def test_a_crop_of_the_poor_picture_shows_the_same_place_and_turn() -> None:
    rng = torch.Generator().manual_seed(5)
    small = torch.randint(0, 255, (3, 1, 3, 40, 60), generator=rng, dtype=torch.uint8)
    large = F.interpolate(small[:, 0].float(), scale_factor=4, mode="nearest").to(torch.uint8)
    hr, lq = Pairs((Shelf(large, small),)).draw(32, 64, rng)
    assert hr.shape == (32, 3, 64, 64)
    torch.testing.assert_close(F.avg_pool2d(hr, 4), lq)
    assert lq.min() >= -1
    assert lq.max() <= 1
