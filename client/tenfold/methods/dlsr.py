"""DLSR: is this picture like those? Detectors fitted on your own pictures, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Literal

from tenfold import _constants as bounds
from tenfold._context import Context, F
from tenfold._effects import Plan
from tenfold._inputs import FileInput
from tenfold._operations import call_for
from tenfold._surface import AsyncCalls, Calls, awaited, blocking
from tenfold.types import Facts, Result, StoredFile

Kind = Literal["mse", "mfsim", "mfsim_all", "lr", "distance_to_mean", "mahalanobis", "knn", "pca"]
TRAINING_WAIT_S = 24 * 3600.0


class Verdict(Facts):
    """What one score says of one picture."""

    score: float
    """The larger, the stranger."""
    p_value: float | None
    """Of pictures of the detector's own kind, so large a share scores as high or higher. None: not calibrated."""
    is_ood: bool | None
    """Whether p_value is at most alpha."""
    threshold: float | None
    """A score above it is out of distribution. None: no score is."""
    contributions: tuple[float, ...]
    """Of each layer of the encoder, from fine to coarse; their sum is the score."""


class Scored(Facts):
    """What a detector says of one picture."""

    kind: Kind
    """The score that decides: the first that was asked for."""
    p_value: float | None
    """By that score."""
    is_ood: bool | None
    """By that score."""
    scores: dict[Kind, Verdict]
    """Every score that was asked for."""


class Unreadable(Facts):
    """A picture that was left out."""

    id: str
    """As the manifest or the path in the archive names it."""
    code: str
    """What is wrong with it."""


class Scores(Result, Generic[F]):
    """What a detector says of pictures."""

    results: tuple[Scored, ...] | None
    """One a picture, in order; None for an archive."""
    archive: F | None
    """For an archive: a zip with `results.jsonl`, one line a picture."""
    alpha: float
    """The share of false alarms that was allowed."""
    model: str
    """The detector, `dlsr/name@version`."""


class Compared(Result):
    """Whether a batch of pictures is still like those that a detector knows."""

    statistic: float
    """Largest distance of the pictures' p-values from what they are without drift, 0..1."""
    p_value: float
    """How often chance alone brings them so far apart."""
    is_drift: bool
    """Whether p_value is at most alpha."""
    pictures: int
    """How many were compared."""
    mean_p_value: float
    """0.5 without drift; smaller: the pictures are stranger."""
    strange: tuple[str, ...]
    """The pictures that are out of distribution, as the archive names them, or by their place from 0."""
    unreadable: tuple[Unreadable, ...]
    """The pictures that were left out, at most 100 of them."""
    kind: Kind
    """The score they were compared by."""
    model: str
    """The detector, `dlsr/name@version`."""


class Counts(Facts):
    """What became of the pictures."""

    given: int
    """Those that could be read."""
    different: int
    """Those that are there twice count once."""
    fit: int
    """What the network learned from."""
    validation: int
    """What told when to stop."""
    calibration: int
    """What the p-values come from."""


class Fitted(Result):
    """A new detector."""

    model: str
    """Its name, `dlsr/name@version`: the `model` of `score`, and a `guard` of every other operation."""
    seed: int
    """Same pictures and seed, same detector."""
    pictures: Counts
    """What became of them."""
    steps: int
    """How many were made before validation ended the training."""
    validation_loss: dict[str, float]
    """By step; the best network is kept."""
    permuted_caught: float
    """Share of scrambled vectors that it finds strange: a check, not a figure."""
    suspicious: tuple[str, ...]
    """The one percent of the fitted pictures that are strangest: do they belong there?"""
    unreadable: tuple[Unreadable, ...]
    """The pictures that were left out, at most 100 of them."""
    warnings: tuple[str, ...]
    """What is worth knowing."""


class Calibrated(Result):
    """A detector with new p-values."""

    model: str
    """Its name, `dlsr/name@version`."""
    calibration: int
    """Different pictures that it was calibrated with."""
    unreadable: tuple[Unreadable, ...]
    """The pictures that were left out, at most 100 of them."""


def score(
    context: Context[F],
    images: Sequence[FileInput | StoredFile] | FileInput | StoredFile | None = None,
    archive: FileInput | StoredFile | None = None,
    *,
    model: str = "dlsr/small",
    kinds: Sequence[Kind] | None = None,
    alpha: float | None = None,
    draws: int | None = None,
    wait_s: float = bounds.WAIT_S,
    idempotency_key: str | None = None,
) -> Plan[Scores[F]]:
    """Say of each picture how unusual it is among those that a detector was fitted on. Needs the scope `use`.

    images           a picture, or several: up to 256, 40 megapixels in all
    archive          or a zip or tar of any number of pictures
    model            the detector, `dlsr/name` or `dlsr/name@version`
    kinds            scores to give; the first one decides. The detector's own by default. `mahalanobis` is good, too
    alpha            the share of false alarms to allow; the detector's own by default
    draws            reconstructions that a score is averaged over; the detector's own by default
    wait_s           seconds to wait in all; past them `TimedOut`, and the job goes on
    idempotency_key  the same key with the same request is the same job; a new one by default
    """
    return call_for(
        context,
        "dlsr",
        "score",
        Scores[F],
        {"model": model, "kinds": kinds, "alpha": alpha, "draws": draws},
        {"images": images, "archive": archive},
        key=None,
        wait_s=wait_s,
        idempotency_key=idempotency_key,
    )


def compare(
    context: Context[Any],
    images: Sequence[FileInput | StoredFile] | FileInput | StoredFile | None = None,
    archive: FileInput | StoredFile | None = None,
    *,
    model: str = "dlsr/small",
    kind: Kind | None = None,
    alpha: float = 0.05,
    fdr: float = 0.1,
    wait_s: float = bounds.WAIT_S,
    idempotency_key: str | None = None,
) -> Plan[Compared]:
    """Say whether pictures, as a whole, are still like those that a detector was calibrated with. Scope `use`.

    images           pictures: up to 256, 40 megapixels in all
    archive          or a zip or tar of any number of pictures
    model            the detector, `dlsr/name` or `dlsr/name@version`
    kind             the score to compare by; the detector's own by default
    alpha            is_drift where the p-value is at most this
    fdr              of the pictures called strange, so large a share may be usual
    wait_s           seconds to wait in all; past them `TimedOut`, and the job goes on
    idempotency_key  the same key with the same request is the same job; a new one by default
    """
    return call_for(
        context,
        "dlsr",
        "compare",
        Compared,
        {"model": model, "kind": kind, "alpha": alpha, "fdr": fdr},
        {"images": images, "archive": archive},
        key=None,
        wait_s=wait_s,
        idempotency_key=idempotency_key,
    )


def fit(
    context: Context[Any],
    archive: FileInput | StoredFile,
    *,
    name: str,
    kind: Kind = "mse",
    alpha: float = 0.05,
    seed: int | None = None,
    wait_s: float = TRAINING_WAIT_S,
    idempotency_key: str | None = None,
) -> Plan[Fitted]:
    """Fit a detector to pictures without labels: 200 or more. Takes minutes; `client.jobs.stream` follows it.

    archive          a zip or tar of the pictures that are usual
    name             of the detector, `dlsr/<name>`; one that exists gets a new version
    kind             the score that decides where a request names none
    alpha            the share of false alarms where a request names none
    seed             same pictures and seed, same detector; drawn by default
    wait_s           seconds to wait in all; past them `TimedOut`, and the job goes on
    idempotency_key  the same key with the same request is the same job; a new one by default
    """
    return call_for(
        context,
        "dlsr",
        "fit",
        Fitted,
        {"name": name, "kind": kind, "alpha": alpha, "seed": seed},
        {"archive": archive},
        key=None,
        wait_s=wait_s,
        idempotency_key=idempotency_key,
    )


def calibrate(
    context: Context[Any],
    archive: FileInput | StoredFile,
    *,
    model: str,
    name: str | None = None,
    wait_s: float = TRAINING_WAIT_S,
    idempotency_key: str | None = None,
) -> Plan[Calibrated]:
    """Give a detector new p-values, from 100 or more pictures of the kind that is usual now.

    archive          a zip or tar of pictures, none of which the detector was fitted on
    model            the detector, `dlsr/name` or `dlsr/name@version`
    name             of the result; its own by default. A shipped detector needs a new one
    wait_s           seconds to wait in all; past them `TimedOut`, and the job goes on
    idempotency_key  the same key with the same request is the same job; a new one by default
    """
    return call_for(
        context,
        "dlsr",
        "calibrate",
        Calibrated,
        {"model": model, "name": name},
        {"archive": archive},
        key=None,
        wait_s=wait_s,
        idempotency_key=idempotency_key,
    )


class Dlsr(Calls):
    """Detectors of pictures that are not like those they know."""

    score = blocking(score)
    compare = blocking(compare)
    fit = blocking(fit)
    calibrate = blocking(calibrate)


class AsyncDlsr(AsyncCalls):
    """Detectors of pictures that are not like those they know."""

    score = awaited(score)
    compare = awaited(compare)
    fit = awaited(fit)
    calibrate = awaited(calibrate)
