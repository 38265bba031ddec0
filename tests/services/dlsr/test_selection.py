"""How the shipped settings were chosen, and that they are the ones that were."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from services.dlsr import dataset, selection
from services.dlsr.dataset import IND, Part
from services.dlsr.encoder import EncoderConfig
from services.dlsr.evaluate import MRI, WHOLE_SETS
from services.dlsr.learning import SMALL
from services.dlsr.selection import FAR, NEAR, OTHER_KINDS, false_alarms, largest_alpha, select_faces, select_small
from services.dlsr.train import SHIPPED, Shipped
from tests.services.dlsr.test_train import blobs
from tests.services.dlsr.tiny import PRESET

WEIGHTS = Path(__file__).parents[3] / "services" / "dlsr" / "weights"
SHORT = replace(PRESET, most_steps=30, stretch=15)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Soft fields are usual; of the others every set is sharp."""
    folder = tmp_path_factory.mktemp("data")
    splits = np.array(["train"] * 204 + ["val"] * 60)
    np.savez(folder / f"{IND}.npz", images=blobs(264, 1, 0.0), split=splits)
    others = {part.name for part in (NEAR, *FAR, *OTHER_KINDS)}
    for number, name in enumerate(sorted(others)):
        images = blobs(12, 2 + number, 1.0)
        np.savez(folder / f"{name}.npz", images=images, split=np.array(["train", "val"] * 6))
    return folder


def shipped(calibration: tuple[Part, ...] = ()) -> Shipped:
    config = EncoderConfig("efficientnet-lite0", input_px=32, first_px=16)
    return Shipped(config, SHORT, (Part(IND, ("train",)),), calibration, trimmed=False)


def test_candidates_are_judged_by_what_their_fits_held_back(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "SEEDS", (1, 2))
    candidate = replace(SHORT, mirrored=True)
    found = select_small(shipped(), data, tmp_path, [candidate])
    (row,) = found["candidates"]
    assert found["chosen"] == row["preset"] == asdict(candidate)
    assert row["auroc"]["mean far"] > 0.9
    assert row["mean"] == pytest.approx((row["auroc"]["near"] + row["auroc"]["mean far"]) / 2, abs=1e-4)
    assert json.loads(json.dumps(found))["chosen"] == asdict(candidate)
    assert "| 48 / 32, 2, 30, mirrored |" in selection.table(found)


def test_a_guard_gets_a_size_and_an_alpha(data: Path, tmp_path: Path) -> None:
    found = select_faces(shipped((Part(IND, ("val",)),)), data, tmp_path, [(24, 16), (48, 32)])
    assert [row["preset"]["model_channels"] for row in found["candidates"]] == [24, 48]
    chosen = next(row for row in found["candidates"] if row["preset"] == found["chosen"])
    rates = chosen["false_alarms"][str(found["chosen"]["alpha"])]
    assert max(rates.values()) <= selection.MOST_FALSE
    assert selection.table(found).count("**chosen**") == 1


def test_of_level_candidates_the_smallest_is_taken_then_the_shortest() -> None:
    def row(mean: float, numbers: int, steps: int) -> dict[str, object]:
        return {"mean": mean, "numbers": numbers, "preset": {"most_steps": steps}}

    rows = [row(0.90, 1, 1), row(0.9297, 500, 600), row(0.93, 900, 300), row(0.9295, 500, 300)]
    assert selection.best(rows) == 3


def test_the_smallest_guard_that_refuses_enough_is_taken_or_the_one_that_refuses_most() -> None:
    rows = [{"refused": {"cat": share, "page": 1.0}} for share in (0.90, 0.96, 1.0)]
    assert selection.guard(rows) == 1
    assert selection.guard([{"refused": {"cat": share}} for share in (0.5, 0.7, 0.6)]) == 1


def test_alpha_is_the_largest_that_no_set_suffers_from() -> None:
    rates = {0.05: {"a": 0.01, "b": 0.06}, 0.02: {"a": 0.0, "b": 0.03}, 0.01: {"a": 0.0, "b": 0.01}}
    assert largest_alpha(rates) == 0.02
    assert largest_alpha({0.05: {"a": 0.2}, 0.01: {"a": 0.1}}) == 0.01


def test_false_alarms_are_counted_on_halves_that_were_not_calibrated_on() -> None:
    rng = np.random.default_rng(0)
    calm, wild = rng.normal(size=400).astype(np.float32), 2 * rng.normal(size=400).astype(np.float32)
    (rates,) = false_alarms({"calm": calm, "wild": wild}, [0.05]).values()
    assert rates["calm"] < 0.01 < 0.05 < rates["wild"]
    assert (rates["calm"] + rates["wild"]) / 2 == pytest.approx(0.05, abs=0.015)


def test_nothing_is_chosen_by_pictures_of_a_test() -> None:
    tested = {*dataset.FAR, IND}
    for part in FAR:
        assert part.name not in tested
    for part in (NEAR, *FAR, *OTHER_KINDS):
        assert "test" not in part.splits
    assert NEAR.name == dataset.NEAR, "of its training split"
    assert {part.name for part in OTHER_KINDS} & {*dataset.FACES} == set()
    assert MRI in {part.name for part in OTHER_KINDS}, "of its validation split"
    assert not {part.name for part in FAR} & set(WHOLE_SETS), "whose every split is tested"


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_is_what_was_chosen_and_the_card_says_how(name: str) -> None:
    found = json.loads((WEIGHTS / f"selection-{name}.json").read_text())
    preset = SHIPPED[name].preset
    place = (selection.best if name == "small" else selection.guard)(found["candidates"])
    assert found["chosen"] == found["candidates"][place]["preset"]
    assert replace(preset, bank=SMALL.bank) == type(preset)(**found["chosen"])
    assert selection.table(found) in (WEIGHTS / name / "MODEL_CARD.md").read_text()
    if name == "small":
        assert replace(preset, bank=SMALL.bank) == SMALL
