"""The training command, stage by stage, on two pictures of noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.dit_sr.pipeline import DitSrPipeline
from services.dit_sr.train import STAGES, main
from shared.training import CHECKPOINT
from tests.shared.resshift.tinytraining import packed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all stages leave after two steps each."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out")
    packed(data, {"a.jpg": (481, 321), "b.jpg": (321, 481)})
    for stage in STAGES:
        assert main(["--data", str(data), "--out", str(out), "--stage", stage, "--steps", "2", "--device", "cpu"]) == 0
    return out


def test_every_stage_leaves_a_checkpoint_and_the_last_a_model(trained: Path) -> None:
    assert all((trained / stage / CHECKPOINT).exists() for stage in STAGES if stage != "export")
    assert DitSrPipeline.load(trained / "dit-sr-small", torch.device("cpu")).config["multiple"] == 16


def test_a_model_takes_less_than_four_megabytes(trained: Path) -> None:
    assert sum(path.stat().st_size for path in (trained / "dit-sr-small").rglob("*") if path.is_file()) <= 4_000_000
