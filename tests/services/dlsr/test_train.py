"""The training and evaluation commands on sets of their format, made here."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.dlsr import evaluate, train
from services.dlsr.dataset import FAR, IND, NEAR, Part, features, pictures
from services.dlsr.detector import Detector
from services.dlsr.encoder import EncoderConfig
from services.dlsr.evaluate import far_part, tables, winner
from tests.services.dlsr.tiny import PRESET, encoder

CONFIG = EncoderConfig("efficientnet-lite0", input_px=32, first_px=16)


def blobs(count: int, seed: int, contrast: float) -> np.ndarray:
    """Soft colour fields with (contrast 0) or without sharp noise on them: (N, 16, 16, 3) uint8."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(60, 190, (count, 1, 1, 3)) + rng.normal(0, 20, (count, 16, 1, 3)).cumsum(1) / 4
    return np.clip(base + contrast * rng.normal(0, 60, (count, 16, 16, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    split = np.array(["train"] * 210 + ["test"] * 60)
    np.savez(folder / f"{IND}.npz", images=blobs(270, 1, 0.0), split=split)
    np.savez(folder / f"{NEAR}.npz", images=blobs(40, 2, 0.5), split=np.full(40, "test"))
    for number, name in enumerate(FAR):
        images = blobs(20, 3 + number, 1.0)
        if number % 2:
            np.savez(folder / f"{name}.npz", images=images[..., 0], split=np.full(20, "test"))
            continue
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            index = io.StringIO()
            rows = csv.writer(index)
            rows.writerow(["file", "split"])
            for place, pixels in enumerate(images):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                archive.writestr(f"{place}.png", file.getvalue())
                rows.writerow([f"{place}.png", "test"])
            archive.writestr("index.csv", index.getvalue())
    return folder


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    shipped = train.Shipped(CONFIG, PRESET, (Part(IND, ("train",)),), (), trimmed=False)
    said = train.make("small", shipped, data, out, "cpu", 7, lambda step, of, metrics: None)
    assert said["pictures"]["calibration"] == 100
    return out


def test_what_was_made_is_not_made_again(data: Path, made: Path) -> None:
    shipped = train.Shipped(CONFIG, PRESET, (Part(IND, ("train",)),), (), trimmed=False)
    steps: list[int] = []
    before = (made / "small" / "lfdn_end.safetensors").read_bytes()
    train.make("small", shipped, data, made, "cpu", 7, lambda step, of, metrics: steps.append(step))
    assert steps == []
    assert (made / "small" / "lfdn_end.safetensors").read_bytes() == before


def test_a_guard_is_calibrated_on_parts_of_its_own_and_fitted_on_all_others(data: Path, made: Path) -> None:
    preset = replace(PRESET, most_steps=30, stretch=15, mirrored=True)
    shipped = train.Shipped(CONFIG, preset, (Part(IND, ("train",)),), (Part(IND, ("test",)),), trimmed=True)
    said = train.make("guard", shipped, data, made, "cpu", 7, lambda step, of, metrics: None)
    counts = said["pictures"]
    assert counts["calibration"] == 60
    assert counts["fit"] + counts["validation"] == counts["different"] == 210, "none of its own are held back"
    assert {"lr", "knn"} & set(Detector.load(made / "guard", "cpu").kinds) == set()


def test_the_figures_of_a_detector_that_works(data: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "ROUNDS", 40)
    arguments = ["--data", str(data), "--cache", str(made / "features"), "--weights", str(made / "small")]
    assert evaluate.main(arguments) == 0
    figures = json.loads((made / "small" / "evaluate.json").read_text())
    assert figures["pictures"][IND if IND in figures["pictures"] else "ind"] == 60
    for kind in ("mse", "mahalanobis", "knn"):
        assert figures["matched"][kind]["mean far"]["auroc"] > 0.9, kind
    assert set(figures["mse_less"]) == {"distance_to_mean", "mahalanobis", "knn", "pca"}
    assert 0 < figures["false_alarms"]["mse"]["mean"] < 0.15
    assert tables(figures).startswith(winner(figures))


def test_the_best_score_is_named_first() -> None:
    rows = {
        "mse": {"mean far": {"auroc": 0.9}, NEAR: {"auroc": 0.8}},
        "knn": {"mean far": {"auroc": 0.95}, NEAR: {"auroc": 0.7}},
    }
    assert winner({"matched": rows}) == (
        "Mean AUROC over the far sets: `knn` (0.950; `mse` 0.900) wins. Near (CIFAR-100): `mse` (0.800) wins."
    )


def test_a_part_is_drawn_the_same_way_every_time(data: Path, tmp_path: Path) -> None:
    part = Part(NEAR, ("test",), 10)
    once, twice = ([picture.pixels.tobytes() for picture in pictures(data, part)] for _ in range(2))
    assert once == twice
    assert len(once) == 10
    turned = [picture.pixels[:, ::-1].tobytes() for picture in pictures(data, replace(part, mirrored=True))]
    assert turned == once
    assert len(features(data, far_part(FAR[0], 5), encoder(), tmp_path)) == 5
