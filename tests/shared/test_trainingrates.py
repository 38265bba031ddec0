"""A rate rises, then falls to nothing by the end of the budget."""

from __future__ import annotations

import pytest
import torch

from shared.trainingrates import WARM_UP_STEPS, warmed_cosine


def rate(step: int, done: float) -> float:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    warmed_cosine(optimizer, 0.1, step, done)
    return float(optimizer.param_groups[0]["lr"])


def test_it_rises_over_the_first_steps() -> None:
    assert rate(0, 0) == pytest.approx(0.1 / WARM_UP_STEPS)
    assert rate(WARM_UP_STEPS - 1, 0) == pytest.approx(0.1)


def test_it_is_halved_halfway_and_ends_at_nothing() -> None:
    assert rate(1000, 0.5) == pytest.approx(0.05)
    assert rate(1000, 1) == pytest.approx(0)
