"""Fitting: what comes out, that it can be killed, and what it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.dlsr.detector import BASELINES, Detector, total
from services.dlsr.encoding import Features
from services.dlsr.fitting import Fitted, fit, split
from services.dlsr.learning import PAPER, SMALL
from services.dlsr.service import NotLearned, TooFewPictures
from shared.training import Metrics
from tests.services.dlsr.tiny import PRESET, encoder, structured


def silent(step: int, of: int, metrics: Metrics) -> None:
    return None


def fitted(folder: Path, features: Features | None = None) -> Fitted:
    return fit(features or structured(400, 1), encoder(), PRESET, "small", 7, folder, silent)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fitted(tmp_path_factory.mktemp("whole"))


def same_numbers(one: Detector, other: Detector) -> bool:
    probe = structured(20, 3)
    return all(
        torch.equal(one.parts(probe, (kind,))[kind], other.parts(probe, (kind,))[kind])
        and np.array_equal(one.calibration[kind].scores, other.calibration[kind].scores)
        for kind in one.kinds
    )


class TestResuming:
    @pytest.mark.parametrize("dies_at", [10, 40])
    def test_a_fit_killed_anywhere_ends_with_the_same_detector(
        self, whole: Fitted, tmp_path: Path, dies_at: int
    ) -> None:
        def dies(step: int, of: int, metrics: Metrics) -> None:
            if step == dies_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(structured(400, 1), encoder(), PRESET, "small", 7, tmp_path, dies)
        again = fitted(tmp_path)
        assert again.figures == whole.figures
        assert same_numbers(again.detector, whole.detector)

    def test_the_state_can_go_on_in_another_folder(self, whole: Fitted, tmp_path: Path) -> None:
        class Killed(Exception):
            pass

        def kept() -> None:
            shutil.copytree(tmp_path / "first", tmp_path / "second")
            raise Killed

        with pytest.raises(Killed):
            fit(structured(400, 1), encoder(), PRESET, "small", 7, tmp_path / "first", silent, kept)
        steps: list[int] = []
        again = fit(
            structured(400, 1),
            encoder(),
            PRESET,
            "small",
            7,
            tmp_path / "second",
            lambda step, of, metrics: steps.append(step),
        )
        _, first_at = PRESET.steps(len(split(structured(400, 1).keys, 7).fit))
        assert min(steps) > first_at
        assert same_numbers(again.detector, whole.detector)


class TestWhatIsFitted:
    def test_the_order_of_the_pictures_does_not_matter(self, whole: Fitted, tmp_path: Path) -> None:
        features = structured(400, 1)
        shuffled = features.at(np.random.default_rng(0).permutation(400))
        assert same_numbers(fitted(tmp_path, shuffled).detector, whole.detector)

    def test_other_pictures_are_told_from_those_fitted(self, whole: Fitted) -> None:
        stranger, own = structured(100, 5, world=1), structured(100, 6)
        for kind in set(whole.detector.kinds) - {"lr"}:
            scores = [total(whole.detector.parts(x, (kind,))[kind]) for x in (own, stranger)]
            assert (scores[1][:, None] > scores[0][None]).mean() > 0.9, kind

    def test_false_alarms_are_as_many_as_asked(self, whole: Fitted) -> None:
        own = structured(1_000, 8)
        for kind in whole.detector.kinds:
            assert (whole.detector.p_values(own, kind) <= 0.1).mean() == pytest.approx(0.1, abs=0.06), kind

    def test_figures_say_what_was_done(self, whole: Fitted) -> None:
        counts = whole.figures["pictures"]
        assert counts["fit"] + counts["validation"] + counts["calibration"] == counts["different"] == 400
        assert counts["calibration"] == 100
        assert whole.figures["self_check"]["repeats"]
        assert whole.figures["self_check"]["permuted_caught"] > 0.9
        assert [warning for warning in whole.warnings if "400 different pictures are few" in warning]
        losses = list(whole.figures["validation_loss"].values())
        assert losses[-1] < losses[0]

    def test_strange_pictures_among_the_fitted_are_named(self, tmp_path: Path) -> None:
        own, strangers = structured(400, 1), structured(3, 5, world=2)
        mixed = Features(torch.cat([own.vectors, strangers.vectors]), own.keys + strangers.keys)
        found = fitted(tmp_path, mixed)
        among_fitted = set(split(mixed.keys, 7).fit) & {400, 401, 402}
        assert among_fitted
        assert among_fitted <= set(found.suspicious)

    def test_lfdn_learns_from_mirror_images_of_the_fitted_pictures_and_of_no_others(self, tmp_path: Path) -> None:
        own, preset = structured(300, 1), replace(PRESET, most_steps=20, mirrored=True)
        others = structured(300, 2).vectors
        fitted_ones = split(own.keys, 7).fit
        mirrored = torch.full_like(others, torch.nan)
        mirrored[fitted_ones] = others[fitted_ones]
        runs = [(replace(preset, mirrored=False), None), (preset, Features(mirrored, own.keys))]
        without, with_ = (
            fit(own, encoder(), one, "small", 7, tmp_path / str(one.mirrored), silent, mirrored=given).figures
            for one, given in runs
        )
        assert np.isfinite(list(with_["validation_loss"].values())).all()
        assert with_["validation_loss"] != without["validation_loss"]
        assert with_["pictures"] == without["pictures"]

    def test_a_preset_and_what_is_given_to_it_have_to_agree(self, tmp_path: Path) -> None:
        own = structured(300, 1)
        for preset, mirrored in ((PRESET, own), (replace(PRESET, mirrored=True), None)):
            with pytest.raises(ValueError, match="mirror"):
                fit(own, encoder(), preset, "small", 7, tmp_path, silent, mirrored=mirrored)


class TestSplit:
    def test_equal_pictures_are_used_once(self) -> None:
        keys = structured(300, 1).keys
        parts = split(keys + keys, 3)
        assert len(parts.fit) + len(parts.validation) + len(parts.calibration) == 300
        assert sorted(parts.fit + parts.validation + parts.calibration) == list(range(300))

    def test_small_sets_keep_a_hundred_for_calibration(self) -> None:
        parts = split(structured(200, 1).keys, 3)
        assert (len(parts.fit), len(parts.validation), len(parts.calibration)) == (80, 20, 100)

    def test_too_few_are_refused_with_both_numbers(self) -> None:
        with pytest.raises(TooFewPictures, match="199 different pictures") as refused:
            split(structured(199, 1).keys * 2, 3)
        assert refused.value.extras == {"least": 200, "found": 199}


class TestPresets:
    def test_the_papers_preset_runs_its_epochs_and_keeps_the_first(self) -> None:
        assert PAPER.steps(50_000) == (150 * 195, 195)

    def test_small_ends_sooner_with_fewer_pictures(self) -> None:
        assert SMALL.steps(3_000)[0] > SMALL.steps(400)[0]
        assert all(first < steps for steps, first in map(SMALL.steps, (80, 300, 2_000, 16_000)))

    def test_what_never_learns_is_an_error(self, tmp_path: Path) -> None:
        still = replace(PRESET, lr=1e-9, lr_end=1e-9)
        with pytest.raises(NotLearned, match="before the first step"):
            fit(structured(300, 1), encoder(), still, "small", 7, tmp_path, silent)


def test_a_detector_of_the_disk_gives_the_numbers_of_the_one_that_was_saved(whole: Fitted, tmp_path: Path) -> None:
    whole.detector.save(tmp_path)
    loaded = Detector.load(tmp_path, "cpu")
    assert loaded.config == whole.detector.config
    assert same_numbers(loaded, whole.detector)
    assert set(BASELINES) < set(loaded.kinds)
