"""iFADIT over HTTP: another person's face in place of each, and the way back for those who may go it."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from shared.keyderivation import Octets
from shared.problems import InvalidRequest, Problem, SidecarInvalid
from shared.service import Document, File, Image, JobContext, ModelRef, Request, Response, Service

if TYPE_CHECKING:
    from services.ifadit.pipeline import IfaditPipeline
    from shared.images import Picture

MAX_PIXELS = 25_000_000
MAX_BYTES = 20 * 2**20
MAX_SIDECAR_BYTES = 40 * 2**20  # with a photograph still within what the gateway takes
SIDECAR_MAGIC = b"IFX1"
MAX_FACES = 64
MIN_EYE_DISTANCE_PX = 12

service = Service(
    "ifadit",
    title="Reversible face anonymization under a secret key",
    pipeline="services.ifadit.pipeline:IfaditPipeline",
)

OutputFormat = Literal["png", "webp", "jpeg"]
Mode = Literal["parametric", "forensic"]


class NoFace(Problem):
    """No face was found, so nothing was anonymized and no picture is given back. `boxes` may name faces by hand."""

    code, status, title = "no_face", 422, "No face was found."


class TooManyFaces(Problem):
    """The picture shows more faces than one request may have. `limit` says how many."""

    code, status, title = "too_many_faces", 422, "There are too many faces."


class PhotographTooLarge(Problem):
    """The photograph has more pixels or bytes than this method takes."""

    code, status, title = "photograph_too_large", 413, "The photograph is too large."


class SidecarTooLarge(Problem):
    """The originals of the faces take more room than a sidecar may have. `limit_bytes` says how much."""

    code, status, title = "sidecar_too_large", 413, "The sidecar would be too large."


class Sidecar(File):
    """The original pixels of a picture's faces, encrypted: of no use without record, officer and secret key."""

    media_types: ClassVar[tuple[str, ...]] = ("application/vnd.tenfold.ifx", "application/octet-stream")

    @classmethod
    def inspect(cls, stream: BinaryIO, declared: str) -> tuple[str, int | None, int | None]:
        if stream.read(len(SIDECAR_MAGIC)) != SIDECAR_MAGIC:
            raise SidecarInvalid("The file is no sidecar.")
        return cls.media_types[0], None, None

    @classmethod
    def of(cls, octets: Octets) -> Self:
        """A sidecar to give back."""
        return cls._unstored(cls.media_types[0], octets)


class Box(BaseModel):
    """A rectangle in pixels of the upright picture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    x: float = Field(allow_inf_nan=False)
    y: float = Field(allow_inf_nan=False)
    width: float = Field(gt=0, allow_inf_nan=False)
    height: float = Field(gt=0, allow_inf_nan=False)


class FaceReport(BaseModel):
    """What was done with one face."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    box: Box
    action: Literal["anonymized", "recovered", "redacted_irreversibly"]
    """A face whose eyes lie less than 12 px apart, or that cannot be aligned, is blurred for good."""
    score: float | None = None
    """How sure the face finder was, 0 to 1; null where the caller named the box."""


class _Photograph(Request):
    image: Image = Field(description="Photograph, upright after EXIF; at most 25 megapixels and 20 MB.")

    def check(self) -> None:
        width, height = self.image.size
        if width * height > MAX_PIXELS:
            raise PhotographTooLarge(f"The photograph is {width} x {height} px.", limit_pixels=MAX_PIXELS)
        if self.image.bytes > MAX_BYTES:
            raise PhotographTooLarge(f"The photograph has {self.image.bytes} bytes.", limit_bytes=MAX_BYTES)


class _Rewritten(_Photograph):
    output_format: OutputFormat = Field("png", description="`png` and `webp` are lossless; `jpeg` loses some recovery.")


class AnonymizeRequest(_Rewritten):
    linkage: Literal["per_image", "per_key"] = Field(
        "per_image",
        description="`per_key`: the same person gets the same new face under the same key. `per_image`: never.",
    )
    faces: list[Box] | None = Field(
        None, max_length=MAX_FACES, description="Faces to replace; all that are found if null."
    )
    mode: Mode = Field(
        "parametric",
        description="`forensic`: the original pixels of the faces come back, encrypted, as `sidecar`, and with it they "
        "can be recovered exactly. The secret key must have the purpose `forensic`.",
    )
    model: ModelRef = "ifadit/small"


class Anonymized(Response):
    image: Image
    """Pseudonymised as long as the key exists: whoever holds it can go back."""
    record: Document
    """Signed; what recovery needs besides the key. A PNG also carries it inside."""
    sidecar: Sidecar | None
    """The encrypted originals, with `mode=forensic`; null if no face can be recovered. Kept by nobody but you."""
    faces: list[FaceReport]
    linkage: Literal["per_image", "per_key"]
    model: str
    key_id: str
    key_version: int
    expected_recovery: dict[str, float]
    """Mean identity cosine of recovered and original faces of people in no training, by output format."""


class RecoverRequest(_Rewritten):
    record: Document | None = Field(None, description="The picture's record; read from inside a PNG if absent.")
    sidecar: Sidecar | None = Field(
        None, description="Of a picture that was anonymized with `mode=forensic`: recover its pixels exactly."
    )
    purpose: str = Field(min_length=1, max_length=200, description="Why; kept in the audit trail.")
    allow_modified: bool = Field(
        False, description="Recover although the picture is not the one that was recorded; not with a sidecar."
    )

    def check(self) -> None:
        super().check()
        if self.sidecar is None:
            return
        if self.sidecar.bytes > MAX_SIDECAR_BYTES:
            raise SidecarTooLarge(f"The sidecar has {self.sidecar.bytes} bytes.", limit_bytes=MAX_SIDECAR_BYTES)
        if self.output_format == "jpeg":
            raise InvalidRequest(
                "A JPEG does not keep pixels as they are.",
                errors=[{"place": "output_format", "message": "png or webp, with a sidecar", "kind": "exclusive"}],
            )


class Recovered(Response):
    image: Image
    faces: list[FaceReport]
    fidelity: Mode
    """`parametric`: a look-alike drawn from the identity. `forensic`: under the masks, the original pixels exactly."""
    expected_fidelity: float | None
    """Of a parametric recovery: mean identity cosine with the originals, of people in no training. For a picture that
    was changed since, a bound from above. Null where the pixels are exact, or nobody measured these weights."""
    record_match: bool
    """Whether the picture is, pixel for pixel, the one that was recorded."""
    model: str
    key_id: str
    key_version: int


class VerifyRequest(_Photograph):
    record: Document | None = Field(None, description="A record: does it belong to this picture?")
    other: Image | None = Field(None, description="Another picture: do both show the same person? Needs `recover`.")
    model: ModelRef = "ifadit/small"

    def check(self) -> None:
        super().check()
        if self.record is not None and self.other is not None:
            raise InvalidRequest(
                "Send a record or another picture, not both.",
                errors=[{"place": "other", "message": "not together with record", "kind": "exclusive"}],
            )


class Verified(Response):
    record_valid: bool | None
    """The record is signed by this installation for the caller's tenant; null without a record."""
    record_match: bool | None
    """The picture is, pixel for pixel, the one that was recorded; null without a record."""
    cosine: float | None
    """Cosine of the identities of the largest faces, -1 to 1; null without another picture."""


def _views(pipeline: IfaditPipeline, request: AnonymizeRequest | RecoverRequest | VerifyRequest) -> list[Picture]:
    return pipeline.views(request)


@service.operation(batch=8, batch_on_cpu=4, wait=60, lease="anonymize", sensitive="inputs", views=_views)
def anonymize(
    pipeline: IfaditPipeline, requests: list[AnonymizeRequest], job: JobContext
) -> list[Anonymized | Problem]:
    """Give every face in a photograph another identity, under a secret key.

    Pose, expression, light and everything outside the face stay. The answer holds the picture and a signed record;
    `recover` goes back with both and the key. A photograph without a face is refused, never returned untouched.
    """
    return pipeline.anonymize(requests, job)


@service.operation(
    batch=8, batch_on_cpu=4, wait=60, scope="recover", lease="recover", sensitive="everything", views=_views
)
def recover(pipeline: IfaditPipeline, requests: list[RecoverRequest], job: JobContext) -> list[Recovered | Problem]:
    """Recover an approximation of the original faces from an anonymized picture and its record.

    Needs the scope `recover` and a purpose, which the audit trail keeps. The result is parametric: a look-alike with
    about the right identity, not evidence. With the sidecar of a forensic anonymization it is the original, pixel for
    pixel, and `fidelity` says so.
    """
    return pipeline.recover(requests, job)


def _verify_scope(request: VerifyRequest) -> str:
    return "verify" if request.other is None else "recover"


@service.operation(wait=60, scope=_verify_scope, lease="verify", sensitive="inputs", views=_views)
def verify(pipeline: IfaditPipeline, requests: list[VerifyRequest], job: JobContext) -> list[Verified | Problem]:
    """Check that a record belongs to a picture, or compare the people in two pictures.

    The comparison answers with a cosine and never with the identities themselves.
    """
    return pipeline.verify(requests, job)
