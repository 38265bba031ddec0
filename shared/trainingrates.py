"""Learning rates over a training whose end is a budget of steps or of seconds."""

from __future__ import annotations

import math

from torch.optim import Optimizer

WARM_UP_STEPS = 50


def warmed_cosine(optimizer: Optimizer, rate: float, step: int, done: float) -> None:
    """Rise over the first steps, then fall as half a cosine to nothing at the end of the budget.

    step  steps done before this one
    done  share of the budget that is spent, 0 .. 1
    """
    now = rate * min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * done))
    for group in optimizer.param_groups:
        group["lr"] = now
