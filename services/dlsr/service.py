"""DLSR over HTTP: is this picture like those? A detector that anyone can fit, and what it says of new pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.models import check_new_name
from shared.problems import ImageTooLarge, InvalidRequest, Problem, WeightsDamaged
from shared.service import Archive, Image, JobContext, ModelRef, Request, Response, Service

if TYPE_CHECKING:
    from services.dlsr.pipeline import DlsrPipeline

MAX_PICTURES = 256
MAX_PIXELS = 40_000_000  # of all pictures of a request: as many as one may have
UNREADABLE_SHARE = 0.05
NAME = r"^[a-z0-9-]{1,63}$"

Kind = Literal["mse", "mfsim", "mfsim_all", "lr", "distance_to_mean", "mahalanobis", "knn", "pca"]

service = Service(
    "dlsr",
    title="Out-of-distribution detection: is this picture like those?",
    pipeline="services.dlsr.pipeline:DlsrPipeline",
)


class TooFewPictures(Problem):
    """A detector needs more different pictures than these. `least` says how many, `found` how many there are."""

    code, status, title = "too_few_pictures", 422, "There are too few pictures."


class PicturesUnreadable(Problem):
    """More than a twentieth of the pictures cannot be read. `unreadable` names the first of them and why."""

    code, status, title = "pictures_unreadable", 422, "Too many pictures cannot be read."


class NotLearned(Problem):
    """The network's loss did not fall: these pictures have nothing in common that the features show."""

    code, status, title = "not_learned", 422, "The detector has not learned."


class ScoreUnavailable(Problem):
    """The detector cannot give this score: it lacks the network or the statistics that it takes. `kinds` are there."""

    code, status, title = "score_unavailable", 422, "The detector does not have this score."


class NotCalibrated(Problem):
    """The detector has no calibration for this score, so there is no p-value. Calibrate it first."""

    code, status, title = "not_calibrated", 409, "The detector is not calibrated."


class FeaturesUnfit(Problem):
    """The vectors do not have the width that the detector's encoder gives. `width` says which it is."""

    code, status, title = "features_unfit", 422, "These vectors are not of this detector's encoder."


class EncoderMismatch(WeightsDamaged):
    """The encoder that is installed is not the one that the detector was fitted with: its scores would mean nothing."""

    code, title = "encoder_mismatch", "The detector was fitted with another encoder."


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Verdict(_Facts):
    """What one score says of one picture."""

    score: float
    """The larger, the stranger."""
    p_value: float | None
    """Of pictures of the detector's own kind, so large a share scores as high or higher. Null: not calibrated."""
    is_ood: bool | None
    """p_value <= alpha."""
    threshold: float | None
    """A score above it is out of distribution. Null: no score is, as the calibration is too small for this alpha."""
    contributions: list[float]
    """Of each layer of the encoder, from fine to coarse; their sum is the score."""


class Scored(Response):
    """What a detector says of one picture."""

    kind: Kind
    """The score that decides: the first that was asked for."""
    p_value: float | None
    """By that score."""
    is_ood: bool | None
    """By that score."""
    scores: dict[Kind, Verdict]
    """Every score that was asked for."""


class Unreadable(_Facts):
    """A picture that was left out."""

    id: str
    """As the manifest or the path in the archive names it."""
    code: str
    """What is wrong with it."""


class _Pictures(Request):
    images: list[Image] | None = Field(
        None, min_length=1, max_length=MAX_PICTURES, description="Up to 256 pictures, 40 megapixels in all."
    )
    archive: Archive | None = Field(None, description="Or a zip or tar of any number.")

    def check(self) -> None:
        if (self.images is None) == (self.archive is None):
            raise InvalidRequest(
                "Send images or an archive.",
                errors=[{"place": "images", "message": "either images or archive", "kind": "exclusive"}],
            )
        pixels = sum(width * height for width, height in (image.size for image in self.images or ()))
        if pixels > MAX_PIXELS:
            raise ImageTooLarge(f"The pictures have {pixels} pixels in all; send an archive.", limit_px=MAX_PIXELS)


class ScoreRequest(_Pictures):
    model: ModelRef = Field("dlsr/small", description="The detector.")
    kinds: list[Kind] | None = Field(
        None,
        min_length=1,
        description="Scores to give; the first one decides. The detector's own by default. `mse`, `mfsim`, `mfsim_all` "
        "and `lr` are DLSR's, the others are plain distances on the same features.",
    )
    alpha: float | None = Field(
        None, gt=0, lt=1, description="The share of false alarms to allow; the detector's own by default."
    )
    draws: int | None = Field(
        None, ge=1, le=64, description="Reconstructions that a score is averaged over; the detector's own by default."
    )

    @property
    def company(self) -> tuple[Any, ...]:
        """What must be equal for requests to be scored together."""
        return tuple(self.kinds or ()), self.alpha, self.draws, self.archive and self.archive.file


class Scores(Response):
    results: list[Scored] | None
    """One a picture, in order; null for an archive."""
    archive: Archive | None
    """For an archive: `results.jsonl`, one line a picture."""
    alpha: float
    """The share of false alarms that was allowed."""
    model: str


class CompareRequest(_Pictures):
    model: ModelRef = Field("dlsr/small", description="The detector.")
    kind: Kind | None = Field(None, description="The score to compare by; the detector's own by default.")
    alpha: float = Field(0.05, gt=0, lt=1, description="`is_drift` where the p-value is at most this.")
    fdr: float = Field(
        0.1, gt=0, lt=1, description="Of the pictures in `strange`, so large a share may be usual (Benjamini-Hochberg)."
    )


class Compared(Response):
    statistic: float
    """Largest distance of the pictures' p-values from what they are without drift (Kolmogorov-Smirnov), 0..1."""
    p_value: float
    """How often chance alone brings them so far apart."""
    is_drift: bool
    """p_value <= alpha."""
    pictures: int
    """How many were compared."""
    mean_p_value: float
    """0.5 without drift; smaller: the pictures are stranger than the calibration's."""
    strange: list[str]
    """The pictures that are out of distribution, as the archive names them, or by their place from 0."""
    unreadable: list[Unreadable]
    """The pictures that were left out, at most 100 of them."""
    kind: Kind
    model: str


class FitRequest(Request):
    archive: Archive = Field(
        description="200 pictures or more, zip or tar, without labels: what the detector is to know as usual."
    )
    name: str = Field(
        pattern=NAME, description="Of the detector: `dlsr/<name>`. A name that exists gets a new version."
    )
    kind: Kind = Field("mse", description="The score that decides where a request names none.")
    alpha: float = Field(0.05, gt=0, lt=1, description="The share of false alarms where a request names none.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Same pictures and seed, same detector.")

    def check(self) -> None:
        check_new_name(self.name)


class Counts(_Facts):
    """What became of the pictures."""

    given: int
    different: int
    """Those that are there twice count once."""
    fit: int
    validation: int
    calibration: int
    """Never trained on: p-values come from these."""


class Fitted(Response):
    model: str
    """The detector, with its version."""
    seed: int
    pictures: Counts
    steps: int
    validation_loss: dict[str, float]
    """By step; the best network is kept."""
    permuted_caught: float
    """Share of scrambled vectors that the detector finds strange, of its own calibration: a check, not a figure."""
    suspicious: list[str]
    """The one percent of the fitted pictures that are strangest: do they belong there?"""
    unreadable: list[Unreadable]
    """The pictures that were left out, at most 100 of them."""
    warnings: list[str]


class CalibrateRequest(Request):
    archive: Archive = Field(
        description="100 pictures or more of the kind that is usual now, none of which the detector was fitted on."
    )
    model: ModelRef = Field(description="The detector to calibrate.")
    name: str | None = Field(
        None, pattern=NAME, description="Of the result; its own by default. A shipped detector needs a new one."
    )

    @property
    def result_name(self) -> str:
        return self.name or self.model.partition("/")[2].partition("@")[0]

    def check(self) -> None:
        check_new_name(self.result_name)


class Calibrated(Response):
    model: str
    """The calibrated detector, with its version."""
    calibration: int
    """Different pictures that it was calibrated with. The smallest p-value is 1 / (this + 1)."""
    unreadable: list[Unreadable]
    """The pictures that were left out, at most 100 of them."""


@service.operation(batch=8, batch_by=("company",), wait=60, deadline_s=6 * 3600, attempts=3)
def score(pipeline: DlsrPipeline, requests: list[ScoreRequest], job: JobContext) -> list[Scores | Problem]:
    """Say of each picture how unusual it is among those that a detector was fitted on.

    Of pictures of the detector's own kind a share `alpha` is called out of distribution, whichever score decides: the
    p-values are conformal. A picture gets the same scores alone, in a list and in an archive.

    The plain distances are there because they are good. For `dlsr/small` (CIFAR-10) `mahalanobis` tells far sets apart
    better than DLSR's `mse` (mean AUROC .943 and .938), is level with it on CIFAR-100 and costs less; `mse` is ahead of
    the other distances. Of a detector fitted on a few hundred pictures, take `mahalanobis`.
    """
    return pipeline.score(requests, job)


@service.operation(wait=60, deadline_s=6 * 3600, attempts=3)
def compare(pipeline: DlsrPipeline, requests: list[CompareRequest], job: JobContext) -> list[Compared | Problem]:
    """Say whether a batch of pictures, as a whole, is still like those that a detector was calibrated with.

    Without drift the p-values of the pictures are uniform, but for chance; the Kolmogorov-Smirnov statistic is their
    largest distance from that. A drift too small to be seen in one picture shows in many.
    """
    return pipeline.compare(requests, job)


@service.training()
def fit(pipeline: type[DlsrPipeline], request: FitRequest, job: JobContext) -> Fitted:
    """Fit a detector to pictures without labels.

    A fifth of the pictures is held back to calibrate p-values, a few more tell when to stop. Pictures that cannot be
    read are left out; if they are more than a twentieth, the job fails. The job reports steps and losses as it goes. A
    trainer that dies is followed by one that goes on and ends with the same detector.
    """
    return pipeline.fit(request, job)


@service.training()
def calibrate(pipeline: type[DlsrPipeline], request: CalibrateRequest, job: JobContext) -> Calibrated:
    """Give a detector new p-values, from pictures of the kind that is usual now. Its networks stay as they are.

    For a camera that was replaced, or a detector of others: the result is the next version, or a detector of its own.
    """
    return pipeline.calibrate(request, job)
