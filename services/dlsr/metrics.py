"""How well scores tell two sets of pictures apart. OOD is the positive class; larger scores are more OOD."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]


def auroc(ind: Scores, ood: Scores) -> float:
    """The probability that an OOD item scores above an IND one; ties count half."""
    ordered = np.sort(ind)
    below, not_above = (np.searchsorted(ordered, ood, side).sum() for side in ("left", "right"))
    return float((below + not_above) / (2 * len(ind) * len(ood)))


def fpr95(ind: Scores, ood: Scores) -> float:
    """The share of OOD that is accepted where 95 % of IND is."""
    return float((ood <= np.quantile(ind, 0.95, method="higher")).mean())


def aupr(ind: Scores, ood: Scores) -> float:
    """Average precision; it depends on how many there are of each."""
    scores = np.concatenate([ind, ood])
    order = np.argsort(-scores, kind="stable")
    hits = np.concatenate([np.zeros(len(ind)), np.ones(len(ood))])[order]
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    found = hits.cumsum()[last_of_ties]
    precision = found / (np.flatnonzero(last_of_ties) + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / len(ood))


def paired_interval(
    ind: tuple[Scores, Scores], ood: Sequence[tuple[Scores, Scores]], rounds: int, seed: int
) -> tuple[float, float, float]:
    """How much higher the mean AUROC of the first score is than the second's, with its 95 % bootstrap interval.

    ind, ood  scores of the same pictures by both; of each OOD set
    returns   the difference, and the 2.5 and 97.5 percentiles over resamples of the pictures, the same for both
    """
    rng = np.random.default_rng(seed)

    def difference(places: Sequence[NDArray[np.int64]]) -> float:
        of_ind, *of_ood = places
        return float(
            np.mean(
                [
                    auroc(ind[0][of_ind], a[at]) - auroc(ind[1][of_ind], b[at])
                    for (a, b), at in zip(ood, of_ood, strict=True)
                ]
            )
        )

    sizes = [len(ind[0]), *(len(a) for a, _ in ood)]
    whole = difference([np.arange(size) for size in sizes])
    drawn = [difference([rng.integers(size, size=size) for size in sizes]) for _ in range(rounds)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return whole, float(low), float(high)
