"""From scores to p-values that mean what they say (dlsr.md 3.4): conformal prediction on held-back pictures."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


class Calibration:
    """Scores of n pictures like those that a detector was fitted on, which took no part in fitting."""

    def __init__(self, scores: Scores) -> None:
        self.scores = np.sort(np.asarray(scores, dtype=np.float32))

    def __len__(self) -> int:
        return len(self.scores)

    def p_values(self, scores: Scores) -> NDArray[np.float64]:
        """(1 + how many calibration scores are at least as large) / (n + 1), for each of (B,).

        For a picture from the calibration's distribution p <= alpha has a probability of at most alpha.
        """
        at_least = len(self) - np.searchsorted(self.scores, np.asarray(scores, dtype=np.float32), side="left")
        return (1 + at_least) / (len(self) + 1)

    def threshold(self, alpha: float) -> float:
        """p <= alpha exactly where a score is above it.

        Infinity, which no score exceeds, where n is too small for alpha: 1 / (n + 1) > alpha.
        """
        as_large = math.floor(alpha * (len(self) + 1) + 1e-9) - 1  # how many calibration scores may be
        if as_large < 0:
            return math.inf
        return float(self.scores[len(self) - 1 - as_large]) if as_large < len(self) else -math.inf


def benjamini_hochberg(p_values: NDArray[np.float64], fdr: float) -> NDArray[np.bool_]:
    """Which of many items to call out of distribution, so that at most a share `fdr` of those is so wrongly."""
    order = np.argsort(p_values)
    below = np.flatnonzero(p_values[order] <= fdr * np.arange(1, len(order) + 1) / len(order) + 1e-12)
    found = np.zeros(len(order), dtype=np.bool_)
    if len(below):
        found[order[: below[-1] + 1]] = True
    return found


def drift(p_values: NDArray[np.float64], calibration: int) -> tuple[float, float]:
    """Kolmogorov and Smirnov's statistic of p-values (m,) against the uniform one, and how unlikely it is by chance.

    calibration  n, the pictures that the p-values were computed from. They are a sample too: by chance the two lie
                 apart as two samples do, so that the effective size is n m / (n + m).
    """
    from scipy.stats import kstwo  # a second of every start, and only `compare` needs it

    grid = np.arange(1, calibration + 2) / (calibration + 1)
    shares = np.searchsorted(np.sort(p_values), grid + 1e-12, side="right") / len(p_values)
    statistic = float(np.abs(shares - grid).max())
    size = max(1, round(calibration * len(p_values) / (calibration + len(p_values))))
    return statistic, float(kstwo.sf(statistic, size))
