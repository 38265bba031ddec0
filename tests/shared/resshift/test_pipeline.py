"""A model as a folder: what is written comes back, and what is damaged is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.problems import WeightsDamaged
from shared.resshift.enlarging import enlarge
from shared.resshift.pipeline import INDEX, WEIGHTS
from shared.resshift.sampler import sample
from tests.shared.resshift.test_enlarging import drawn, ignore
from tests.shared.resshift.tiny import TinyPipeline, tiny

CPU = torch.device("cpu")


def restored(pipeline: TinyPipeline) -> np.ndarray[Any, np.dtype[np.uint8]]:
    generate = pipeline.generator(pipeline.schedule.respaced(3), sample)
    return enlarge([drawn(36, 20)], [1], generate, pipeline.tiles, CPU, ignore)[0].pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny().save(tmp_path, torch.float32)
    return tmp_path


def test_it_comes_back_with_its_weights_and_options(folder: Path) -> None:
    pipeline = tiny()
    loaded = TinyPipeline.load(folder, CPU)
    assert loaded.tiles == pipeline.tiles
    assert loaded.memory_bytes == pipeline.memory_bytes
    assert np.array_equal(restored(loaded), restored(loaded))
    assert np.abs(restored(loaded).astype(int) - restored(pipeline)).max() <= 1
    assert not any(parameter.requires_grad for network in loaded.networks for parameter in network.parameters())


def test_diffusers_reads_the_folder_too(folder: Path) -> None:
    loaded = TinyPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    assert np.abs(restored(loaded).astype(int) - restored(tiny())).max() <= 1


def test_half_the_bytes_give_the_picture_within_a_level_or_two(folder: Path, tmp_path: Path) -> None:
    tiny().save(tmp_path / "half", torch.float16)
    assert {t.dtype for t in load_file(tmp_path / "half" / "denoiser" / WEIGHTS).values()} == {torch.float16}
    loaded = TinyPipeline.load(tmp_path / "half", CPU)
    assert {p.dtype for network in loaded.networks for p in network.parameters()} == {torch.float32}
    assert np.abs(restored(loaded).astype(int) - restored(tiny())).mean() < 1


def test_numbers_that_half_precision_cannot_hold_are_not_written(tmp_path: Path) -> None:
    pipeline = tiny()
    pipeline.denoiser.get_parameter("conv.bias").data[0] = 1e6
    with pytest.raises(ValueError, match=r"denoiser: conv\.bias"):
        pipeline.save(tmp_path, torch.float16)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def drop_weight(folder: Path) -> None:
    tensors = load_file(folder / "denoiser" / WEIGHTS)
    del tensors["conv.bias"]
    save_file(tensors, folder / "denoiser" / WEIGHTS)


def add_weight(folder: Path) -> None:
    tensors = load_file(folder / "denoiser" / WEIGHTS)
    save_file(tensors | {"conv.extra": torch.zeros(1)}, folder / "denoiser" / WEIGHTS)


def reshape_weight(folder: Path) -> None:
    tensors = load_file(folder / "denoiser" / WEIGHTS)
    save_file(tensors | {"conv.bias": torch.zeros(4)}, folder / "denoiser" / WEIGHTS)


def spoil_weight(folder: Path) -> None:
    tensors = load_file(folder / "autoencoder" / WEIGHTS)
    tensors["quant_conv.bias"][1] = float("nan")
    save_file(tensors, folder / "autoencoder" / WEIGHTS)


def cut_weights(folder: Path) -> None:
    path = folder / "autoencoder" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def only_a_pickle(folder: Path) -> None:
    path = folder / "denoiser" / WEIGHTS
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


def another_configuration(folder: Path) -> None:
    edit(folder / "denoiser" / "config.json", lambda content: content.update(channels=4))


def a_configuration_of_another_class(folder: Path) -> None:
    edit(folder / "denoiser" / "config.json", lambda content: content.update(_class_name="VqAutoencoder"))


def an_unknown_option_of_a_part(folder: Path) -> None:
    edit(folder / "autoencoder" / "config.json", lambda content: content.update(beta=1))


def an_unknown_option(folder: Path) -> None:
    edit(folder / INDEX, lambda content: content.update(sharpness=3))


def foreign_code(folder: Path) -> None:
    edit(folder / INDEX, lambda content: content.update(denoiser=["os", "system"]))


def another_pipeline(folder: Path) -> None:
    edit(folder / INDEX, lambda content: content.update(_class_name="StableDiffusionPipeline"))


def no_index(folder: Path) -> None:
    (folder / INDEX).unlink()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (drop_weight, r"denoiser/.*conv\.bias is missing"),
        (add_weight, r"denoiser/.*conv\.extra is unknown"),
        (reshape_weight, r"denoiser/.*conv\.bias is \(4,\), not \(3,\)"),
        (spoil_weight, r"autoencoder: quant_conv\.bias has numbers that are not finite"),
        (cut_weights, "autoencoder/"),
        (only_a_pickle, "denoiser/.*No such file"),
        (another_configuration, "denoiser/"),
        (a_configuration_of_another_class, "denoiser: the configuration is that of a VqAutoencoder"),
        (an_unknown_option_of_a_part, "autoencoder: .*beta"),
        (an_unknown_option, "sharpness"),
        (foreign_code, "denoiser is .*system"),
        (another_pipeline, "not that of a TinyPipeline"),
        (no_index, INDEX),
    ],
)
def test_a_damaged_folder_is_refused_by_name(folder: Path, damage: Callable[[Path], None], named: str) -> None:
    damage(folder)
    with pytest.raises(WeightsDamaged, match=named):
        TinyPipeline.load(folder, CPU)


def test_no_package_bears_the_name_of_a_pipeline_of_diffusers() -> None:
    import diffusers.pipelines

    taken = {path.name for path in Path(diffusers.pipelines.__path__[0]).iterdir() if path.is_dir()}
    ours = {path.name for root in ("services", "shared") for path in Path(root).rglob("*") if path.is_dir()}
    assert not (taken & ours) - {"__pycache__"}


def test_requests_are_described_without_torch() -> None:
    code = "import sys, shared.resshift.requests; sys.exit(bool({'torch', 'numpy', 'diffusers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
