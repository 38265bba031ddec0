"""The training command, stage by stage, on two pictures of noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.tad_sr.pipeline import TadSrPipeline
from services.tad_sr.train import STAGES, main
from shared.training import CHECKPOINT, restored_average
from tests.shared.resshift.tinytraining import packed


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures to learn from."""
    return packed(tmp_path_factory.mktemp("data"), {"a.jpg": (481, 321), "b.jpg": (321, 481)})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """What all stages leave after two steps each."""
    out = tmp_path_factory.mktemp("out")
    for stage in STAGES:
        assert main(["--data", str(data), "--out", str(out), "--stage", stage, "--steps", "2", "--device", "cpu"]) == 0
    return out


def test_every_stage_leaves_a_checkpoint_and_the_last_a_model(trained: Path) -> None:
    assert all((trained / stage / CHECKPOINT).exists() for stage in STAGES if stage != "export")
    assert TadSrPipeline.load(trained / "tad-sr-small", torch.device("cpu")).config["multiple"] == 16


def test_a_model_takes_less_than_four_megabytes(trained: Path) -> None:
    assert sum(path.stat().st_size for path in (trained / "tad-sr-small").rglob("*") if path.is_file()) <= 4_000_000


def test_student_and_teacher_share_the_autoencoder(trained: Path) -> None:
    student, teacher = (
        TadSrPipeline.load(trained / name, torch.device("cpu")) for name in ("tad-sr-small", "tad-sr-teacher")
    )
    for ours, theirs in zip(student.autoencoder.parameters(), teacher.autoencoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    pairs = zip(student.denoiser.parameters(), teacher.denoiser.parameters(), strict=True)
    assert any(not torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_training_learns_on_from_a_model(trained: Path, data: Path, tmp_path: Path) -> None:
    known = TadSrPipeline.load(trained / "tad-sr-small", torch.device("cpu"))
    for stage in ("decoder", "teacher"):
        given = ["--data", str(data), "--out", str(tmp_path), "--init", str(trained / "tad-sr-small")]
        assert main([*given, "--stage", stage, "--steps", "1", "--device", "cpu"]) == 0
    networks = restored_average(tmp_path / "teacher")
    for name, value in known.networks[1].get_submodule("encoder").state_dict().items():
        assert torch.equal(networks[f"autoencoder.encoder.{name}"], value)  # what a stage does not teach stays
    for name, value in known.denoiser.state_dict().items():
        assert torch.allclose(networks[f"denoiser.{name}"], value.float(), atol=1e-3)  # a step of 1.6e-5 away
