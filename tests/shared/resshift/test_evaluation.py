"""The evaluation: which pictures, that rows are measured apart, and what the table says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from shared.nn.mobilenetv2 import WEIGHTS_FILE
from shared.resshift import evaluation
from shared.resshift.evaluation import BASELINES, PLAIN, REAL, REAL_WORLD, command, samples, table
from shared.resshift.trainingdata import SET
from tests.shared.featureweights import feature_weights
from tests.shared.resshift.tinytraining import packed


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return packed(tmp_path, {"a.jpg": (481, 321), "b.png": (98, 199), "c.png": (99, 201)})


def test_every_test_picture_is_spoilt_in_both_ways_and_alike_each_time(data: Path) -> None:
    first, again = samples(data, full=True), samples(data, full=True)
    assert [sample.name for sample in first[REAL_WORLD]] == ["b.png", "c.png"]
    for sample, twin, plain in zip(first[REAL_WORLD], again[REAL_WORLD], first[PLAIN], strict=True):
        assert sample.hr is not None
        assert sample.hr.shape[0] == 4 * sample.lq.shape[0]
        assert sample.hr.shape[1] == 4 * sample.lq.shape[1]
        assert np.array_equal(sample.lq, twin.lq)
        assert not np.array_equal(sample.lq, plain.lq)


def test_the_subset_is_the_first_of_each_set(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "SUBSET", {"Set5": 1})
    assert [sample.name for sample in samples(data, full=False)[PLAIN]] == ["b.png"]


@pytest.mark.usefixtures("data")
class TestTheCommand:
    def test_figures_go_into_the_model_folder_and_the_table_to_stdout(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert (tmp_path / SET).exists()
        save_file(feature_weights(), tmp_path / WEIGHTS_FILE)
        weights = tmp_path / "model"
        weights.mkdir()
        given = ["--data", str(tmp_path), "--teachers", str(tmp_path), "--weights", str(weights), "--full"]

        def no_rows(args: argparse.Namespace) -> list[evaluation.Row]:
            return []

        assert command("evaluate", "Evaluate.", no_rows, given) == 0
        figures = json.loads((weights / "evaluate.json").read_text())
        assert list(figures["figures"][REAL_WORLD]) == [name for name, _, _ in BASELINES]
        assert figures["pictures"] == {REAL_WORLD: 2, PLAIN: 2, REAL: 0}
        row = figures["figures"][PLAIN]["bicubic"]
        assert 0 < row["psnr_y"] < 60
        assert row["peak_mb"] > 10
        assert table(figures).strip() in capsys.readouterr().out
