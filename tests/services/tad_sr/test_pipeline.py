"""The pipeline without a server: evaluations, seeds, sizes, folders, cancel."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.tad_sr.pipeline import TadSrPipeline
from services.tad_sr.service import RestoreRequest, UpscaleRequest
from shared.images import Picture
from shared.jobcontext import JobContext, Stopped
from shared.resshift.requests import ModelUnsuitable
from shared.service import Image
from tests.services.tad_sr.tiny import tiny_faces, tiny_pipeline

CPU = torch.device("cpu")


class Attempt:
    """A running job that is told things and may be asked to stop at a step."""

    id = "job_1"
    attempt = 1

    def __init__(self, stop_at: int | None = None) -> None:
        self.told: list[tuple[int, int]] = []
        self.stages: list[str] = []
        self._stop_at = stop_at

    def stop_reason(self) -> str | None:
        return "cancel" if self._stop_at is not None and len(self.told) >= self._stop_at else None

    def progress(self, step: int, of: int, metrics: dict[str, Any]) -> None:
        self.told.append((step, of))

    def stage(self, text: str) -> None:
        self.stages.append(text)


class Turns:
    """Counts how often other work might go first."""

    def __init__(self) -> None:
        self.offered = 0

    def turn_over(self) -> None:
        self.offered += 1

    def outside(self, call: Any) -> Any:
        return call()


def context(*attempts: Attempt, turns: Turns | None = None) -> JobContext:
    running: Any = attempts or [Attempt()]
    return JobContext(running, turns or Turns(), model="tad-sr/tiny@1", device=CPU)


def drawn(height: int, width: int, seed: int = 0, *, alpha: bool = False) -> Picture:
    rng = np.random.default_rng(seed)
    return Picture(
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        rng.integers(0, 256, (height, width), dtype=np.uint8) if alpha else None,
    )


def request(picture: Picture, seed: int = 1, **fields: Any) -> Any:
    kind = fields.pop("kind", UpscaleRequest)
    return kind.model_construct(
        image=Image.of(picture), archive=None, seed=seed, output_format="png", model="tad-sr/tiny", **fields
    )


def answer(pipeline: TadSrPipeline, picture: Picture, seed: int = 1) -> Any:
    (upscaled,) = pipeline.upscale([request(picture, seed)], context())
    return upscaled


@pytest.fixture(scope="module")
def pipeline() -> TadSrPipeline:
    return tiny_pipeline()


@pytest.mark.parametrize(("steps", "times"), [(1, [14]), (15, list(range(14, -1, -1))), (5, [12, 9, 6, 3, 0])])
def test_a_student_is_evaluated_once_a_tile_and_a_teacher_once_a_step(steps: int, times: list[int]) -> None:
    pipeline = tiny_pipeline(steps=steps)
    asked: list[int] = []
    pipeline.denoiser.register_forward_pre_hook(lambda _, arguments: asked.extend(arguments[1].tolist()))
    made = answer(pipeline, drawn(20, 40))
    assert asked == times * 2
    assert (made.steps, made.tiles) == (steps, 2)


def test_more_steps_than_the_chain_has_are_refused() -> None:
    with pytest.raises(ValueError, match="16 steps of a chain of 15"):
        tiny_pipeline(steps=16)


@settings(max_examples=8)
@given(st.integers(1, 70), st.integers(1, 70))
def test_a_picture_of_any_size_comes_back_four_times_as_large(height: int, width: int) -> None:
    made = answer(PIPELINE, drawn(height, width))
    assert made.image.picture.pixels.shape == (4 * height, 4 * width, 3)
    assert made.image.size == (4 * width, 4 * height)


PIPELINE = tiny_pipeline()


def test_the_same_seed_gives_the_same_picture_alone_and_in_a_batch(pipeline: TadSrPipeline) -> None:
    pictures, seeds = [drawn(20, 40, 0), drawn(20, 40, 1), drawn(20, 40, 0)], [7, 7, 8]
    requests = [request(picture, seed) for picture, seed in zip(pictures, seeds, strict=True)]
    together = pipeline.upscale(requests, context(*(Attempt() for _ in requests)))
    for picture, seed, made in zip(pictures, seeds, together, strict=True):
        alone = answer(pipeline, picture, seed)
        assert np.array_equal(alone.image.picture.pixels, made.image.picture.pixels)  # type: ignore[union-attr]
        assert made.seed == seed  # type: ignore[union-attr]
    first, last = (made.image.picture.pixels for made in (together[0], together[2]))  # type: ignore[union-attr]
    assert not np.array_equal(first, last)


def test_progress_is_told_by_tile_and_step_and_others_may_go_first_between() -> None:
    attempt, turns = Attempt(), Turns()
    tiny_pipeline(steps=3).upscale([request(drawn(20, 40))], context(attempt, turns=turns))
    assert attempt.told == [(step, 6) for step in range(1, 7)]
    assert turns.offered == 6


def test_a_cancelled_job_ends_at_its_next_step_and_the_next_one_is_right(pipeline: TadSrPipeline) -> None:
    before = answer(pipeline, drawn(20, 100)).image.picture.pixels
    attempt = Attempt(stop_at=2)
    with pytest.raises(Stopped):
        pipeline.upscale([request(drawn(20, 100))], context(attempt))
    assert len(attempt.told) == 2
    assert np.array_equal(answer(pipeline, drawn(20, 100)).image.picture.pixels, before)


def test_restoring_keeps_size_and_alpha(pipeline: TadSrPipeline) -> None:
    picture = drawn(43, 130, alpha=True)
    (made,) = pipeline.restore([request(picture, kind=RestoreRequest)], context())
    assert made.image.picture.pixels.shape == picture.pixels.shape  # type: ignore[union-attr]
    assert made.image.picture.alpha is picture.alpha  # type: ignore[union-attr]
    assert made.tiles == 2  # type: ignore[union-attr]  # of 11 x 33 px


def test_a_model_for_faces_restores_and_does_not_enlarge() -> None:
    (problem,) = tiny_faces().upscale([request(drawn(20, 20))], context())
    assert isinstance(problem, ModelUnsuitable)
    assert problem.extras["operation"] == "restore"


def test_a_model_for_faces_works_at_the_size_of_the_picture() -> None:
    (made,) = tiny_faces().restore([request(drawn(70, 20), kind=RestoreRequest)], context())
    assert made.image.picture.pixels.shape == (70, 20, 3)  # type: ignore[union-attr]


def test_a_fresh_process_makes_the_same_bytes_from_the_folder(tmp_path: Path) -> None:
    tiny_pipeline().save(tmp_path, torch.float16)
    here = answer(TadSrPipeline.load(tmp_path, CPU), drawn(20, 40)).image.picture.pixels
    code = f"""
import hashlib, pathlib, socket, torch
def no_network(*_): raise OSError("no network")
socket.socket.connect = no_network
torch.set_num_threads({torch.get_num_threads()})
from services.tad_sr.pipeline import TadSrPipeline
from tests.services.tad_sr.test_pipeline import answer, drawn
pipeline = TadSrPipeline.load(pathlib.Path({str(tmp_path)!r}), torch.device("cpu"))
print(hashlib.sha256(answer(pipeline, drawn(20, 40)).image.picture.pixels.tobytes()).hexdigest())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()
