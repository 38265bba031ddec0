from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from services.dit_sr.pipeline import DitSrPipeline
from shared.images import Picture
from shared.problems import WeightsDamaged
from shared.resshift.enlarging import enlarge
from shared.resshift.pipeline import INDEX
from shared.resshift.sampler import sample
from tests.services.dit_sr.tiny import pipeline

CPU = torch.device("cpu")


def drawn(height: int, width: int, seed: int = 0) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ignore(step: int, of: int) -> None:
    return None


def enlarged(model: DitSrPipeline, pictures: list[Picture], seeds: list[int], steps: int = 2) -> list[Picture]:
    generate = model.generator(model.schedule.respaced(steps), sample)
    return enlarge(pictures, seeds, generate, model.tiles, CPU, ignore)


def test_the_walk_calls_the_denoiser_by_its_parts_and_gets_its_numbers() -> None:
    model = pipeline()
    rng = torch.Generator().manual_seed(0)
    x, lq = (torch.randn(2, 3, 16, 32, generator=rng) for _ in range(2))
    walk = model.for_tiles()
    for timestep in (14, 7, 14, 0):
        t = torch.full((2,), timestep)
        torch.testing.assert_close(walk(x, t, lq), model.denoiser(x, t, lq), atol=1e-5, rtol=0)


def test_another_walk_has_another_picture() -> None:
    model = pipeline()
    x, t = torch.zeros(1, 3, 16, 16), torch.tensor([3])
    answers: list[Tensor] = []
    for value in (-1.0, 1.0):
        lq = torch.full((1, 3, 16, 16), value)
        answers.append(model.for_tiles()(x, t, lq))
        torch.testing.assert_close(answers[-1], model.denoiser(x, t, lq), atol=1e-5, rtol=0)
    assert not answers[0].allclose(answers[1])


def test_a_model_comes_back_from_its_folder(tmp_path: Path) -> None:
    model = pipeline()
    model.save(tmp_path, torch.float32)
    loaded = DitSrPipeline.load(tmp_path, CPU)
    assert loaded.config["steps"] == 2
    before, after = (enlarged(each, [drawn(20, 40)], [3])[0].pixels for each in (model, loaded))
    assert before.shape == (80, 160, 3)
    assert (np.abs(before.astype(int) - after) <= 1).mean() > 0.999
    assert np.array_equal(after, enlarged(loaded, [drawn(20, 40)], [3])[0].pixels)


def test_diffusers_reads_the_folder_too(tmp_path: Path) -> None:
    pipeline().save(tmp_path, torch.float32)
    loaded = DitSrPipeline.from_pretrained(tmp_path, local_files_only=True, use_safetensors=True)
    before, after = (enlarged(each, [drawn(9, 9)], [3])[0].pixels for each in (pipeline(), loaded))
    assert np.array_equal(before, after)


def test_a_picture_in_a_batch_is_what_it_is_alone() -> None:
    model = pipeline()
    pictures, seeds = [drawn(17, 35, seed) for seed in range(3)], [5, 6, 7]
    together = enlarged(model, pictures, seeds)
    for picture, seed, result in zip(pictures, seeds, together, strict=True):
        (alone,) = enlarged(model, [picture], [seed])
        difference = np.abs(alone.pixels.astype(int) - result.pixels)
        assert (difference <= 1).mean() > 0.999


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('"multiple": 24', "multiple is 24, and the networks need a multiple of 16"),
        ('"steps": 16', "steps is 16, and the chain has 15"),
    ],
)
def test_a_folder_whose_options_do_not_suit_its_networks_is_refused(tmp_path: Path, change: str, said: str) -> None:
    pipeline().save(tmp_path, torch.float32)
    index = tmp_path / INDEX
    name, _, value = change.partition(": ")
    before = {'"multiple"': "16", '"steps"': "2"}[name]
    index.write_text(index.read_text().replace(f"{name}: {before}", f"{name}: {value}"))
    with pytest.raises(WeightsDamaged, match=said):
        DitSrPipeline.load(tmp_path, CPU)
