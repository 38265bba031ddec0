"""The training loop, on a learner of one linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from shared.training import (
    CHECKPOINT,
    Average,
    Budget,
    CheckpointUnusable,
    Metrics,
    Rhythm,
    restored_average,
    step_rng,
    train,
)


class LineLearner:
    """Fits y = 2 x with Adam; may be told to die."""

    def __init__(self, dies_at: int | None = None, width: int = 1) -> None:
        self.networks = nn.Linear(width, 1)
        nn.init.zeros_(self.networks.weight)
        nn.init.zeros_(self.networks.bias)
        self.optimizers = {"line": torch.optim.Adam(self.networks.parameters(), 0.05)}
        self.dies_at = dies_at
        self.seen: list[float] = []

    def step(self, step: int, done: float, rng: Generator) -> Mapping[str, Tensor]:
        if step == self.dies_at:
            raise KeyboardInterrupt
        self.seen.append(done)
        x = torch.randn(8, 1, generator=rng)
        loss = (self.networks(x) - 2 * x).square().mean()
        self.optimizers["line"].zero_grad()
        loss.backward()
        self.optimizers["line"].step()
        return {"loss": loss.detach()}


def silent(step: int, of: int, metrics: Metrics) -> None:
    return None


EVERY_STEP = Rhythm(report_steps=1, checkpoint_s=0.0)


class TestResuming:
    def test_a_run_that_was_cut_off_ends_with_the_numbers_of_one_that_was_not(self, tmp_path: Path) -> None:
        whole = train(LineLearner(), tmp_path / "whole", Budget(30), 7, 0.9, silent)
        with pytest.raises(KeyboardInterrupt):
            train(LineLearner(dies_at=13), tmp_path / "cut", Budget(30), 7, 0.9, silent, EVERY_STEP)
        resumed = LineLearner()
        rest = train(resumed, tmp_path / "cut", Budget(30), 7, 0.9, silent)
        assert len(resumed.seen) == 17
        assert rest.step == 30
        for name, value in whole.average.items():
            assert torch.equal(value, rest.average[name])
            assert torch.equal(value, restored_average(tmp_path / "cut")[name])

    def test_a_finished_run_does_nothing_more(self, tmp_path: Path) -> None:
        train(LineLearner(), tmp_path, Budget(5), 7, 0.9, silent)
        again = LineLearner()
        train(again, tmp_path, Budget(5), 7, 0.9, silent)
        assert again.seen == []

    def test_a_half_written_checkpoint_is_never_the_one_that_is_read(self, tmp_path: Path) -> None:
        train(LineLearner(), tmp_path, Budget(5), 7, 0.9, silent)
        (tmp_path / CHECKPOINT).with_suffix(".part").write_bytes(b"half")
        assert train(LineLearner(), tmp_path, Budget(6), 7, 0.9, silent).step == 6

    @pytest.mark.parametrize("damage", ["bytes", "seed", "networks"])
    def test_a_checkpoint_of_something_else_is_refused(self, tmp_path: Path, damage: str) -> None:
        train(LineLearner(), tmp_path, Budget(2), 7, 0.9, silent)
        if damage == "bytes":
            path = tmp_path / CHECKPOINT
            path.write_bytes(path.read_bytes()[:100])
        learner = LineLearner(width=2 if damage == "networks" else 1)
        with pytest.raises(CheckpointUnusable):
            train(learner, tmp_path, Budget(4), 8 if damage == "seed" else 7, 0.9, silent)


class TestBudget:
    def test_seconds_end_a_run_and_count_over_resumes(self, tmp_path: Path) -> None:
        now = iter(range(1000))
        first = train(LineLearner(), tmp_path, Budget(10**6, 50), 7, 0.9, silent, clock=lambda: float(next(now)))
        assert 10 < first.step < 50
        second = train(LineLearner(), tmp_path, Budget(10**6, 50), 7, 0.9, silent, clock=lambda: float(next(now)))
        assert second.step <= first.step + 1

    def test_the_share_that_is_spent_rises_from_0_and_stays_below_1(self, tmp_path: Path) -> None:
        learner = LineLearner()
        train(learner, tmp_path, Budget(10), 7, 0.9, silent)
        assert learner.seen == [step / 10 for step in range(10)]

    def test_what_a_report_raises_ends_the_run_and_leaves_the_checkpoint(self, tmp_path: Path) -> None:
        def cancel(step: int, of: int, metrics: Metrics) -> None:
            if step == 4:
                raise RuntimeError("cancelled")

        with pytest.raises(RuntimeError, match="cancelled"):
            train(LineLearner(), tmp_path, Budget(10), 7, 0.9, cancel, EVERY_STEP)
        rest = LineLearner()
        train(rest, tmp_path, Budget(10), 7, 0.9, silent)
        assert len(rest.seen) == 7


def test_the_average_of_a_constant_is_the_constant_and_it_forgets_the_start() -> None:
    layer = nn.Linear(1, 1)
    average = Average(layer, 0.99)
    nn.init.constant_(layer.weight, 3.0)
    for _ in range(2000):
        average.update(layer)
    torch.testing.assert_close(average.values["weight"], torch.full((1, 1), 3.0))


def test_every_step_has_draws_of_its_own() -> None:
    draws = {float(torch.rand((), generator=step_rng(seed, step))) for seed in range(3) for step in range(50)}
    assert len(draws) == 150
