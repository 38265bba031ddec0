"""The diagnostic service: does nothing, sleeps, blurs, fails, trains, each on demand."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from shared.leases import image_nonce
from shared.problems import Problem
from shared.service import Archive, Document, Image, JobContext, Request, Response, Service

if TYPE_CHECKING:
    from shared.images import Picture
    from tests.diagnostic.pipeline import DiagnosticPipeline

service = Service(
    "diagnostic", title="Diagnostics", pipeline="tests.diagnostic.pipeline:DiagnosticPipeline", default_model=None
)


class Refused(Problem):
    """The diagnostic was asked to refuse."""

    code, status, title = "diagnostic_refused", 422, "The diagnostic refuses."


class NoopRequest(Request):
    text: str = Field("", max_length=1000)
    seed: int | None = Field(None, ge=0, lt=2**63)


class NoopResponse(Response):
    text: str
    seed: int
    batch: int


class SleepRequest(Request):
    seconds: float = Field(0, ge=0, le=600)
    steps: int = Field(1, ge=1, le=10_000)
    units: int = Field(0, ge=0, le=10_000)
    """0: steps of one piece of work; else that many units of `seconds` each."""
    spin: bool = False
    """Keep the device thread busy instead of sleeping in short steps."""


class SleepResponse(Response):
    units_done: int
    units_of_this_attempt: int


class BlurRequest(Request):
    image: Image
    strength: Literal[1, 2] = 1
    note: Document | None = None


class BlurResponse(Response):
    image: Image
    batch: int
    note: Document | None


class BlurEachRequest(Request):
    archive: Archive
    seconds: float = Field(0, ge=0, le=10)
    """Each part takes so long."""


class BlurredEach(Response):
    archive: Archive
    parts_of_this_attempt: int


class FailRequest(Request):
    how: Literal["problem", "bug", "memory", "hang", "die"]


class ThinkRequest(Request):
    layers: int = Field(ge=1, le=64)
    seed: int = Field(0, ge=0, lt=2**63)


class ThinkResponse(Response):
    value: float
    batch: int


class ChargeRequest(Request):
    seconds: float = Field(ge=0, le=10)
    """Device time of one request alone."""


class ChargeResponse(Response):
    batch: int


class TrainRequest(Request):
    name: str = Field(pattern="^[a-z0-9-]{1,63}$")
    steps: int = Field(ge=1, le=10_000)
    seconds_a_step: float = Field(0.01, ge=0, le=10)


class Trained(Response):
    model: str
    resumed_at: int
    steps: int


@service.operation(batch=8)
def noop(pipeline: DiagnosticPipeline, requests: list[NoopRequest], job: JobContext) -> list[NoopResponse]:
    """Give the text back."""
    return [NoopResponse(text=r.text, seed=r.seed or 0, batch=len(requests)) for r in requests]


@service.operation(attempts=3, wait=30)
def sleep(pipeline: DiagnosticPipeline, requests: list[SleepRequest], job: JobContext) -> list[SleepResponse]:
    """Take time, in steps or in units."""
    (request,) = requests
    if not request.units:
        for step in range(request.steps):
            job.progress(step + 1, request.steps)
            time.sleep(request.seconds / request.steps)
        return [SleepResponse(units_done=0, units_of_this_attempt=0)]
    here = 0
    for index in job.units(request.units):
        time.sleep(request.seconds)
        job.unit(index, request.units, {"index": index})
        here += 1
    return [SleepResponse(units_done=len(job.outputs()), units_of_this_attempt=here)]


@service.operation(batch=8, batch_by=("strength", "image.size"))
def blur(pipeline: DiagnosticPipeline, requests: list[BlurRequest], job: JobContext) -> list[BlurResponse | Problem]:
    """Blur pictures with a small convolution."""
    pictures = pipeline.blur([r.image.picture for r in requests], requests[0].strength)
    notes = [Document.of(r.note.data) if r.note else None for r in requests]
    return [
        BlurResponse(image=Image.of(picture), batch=len(requests), note=note)
        for picture, note in zip(pictures, notes, strict=True)
    ]


@service.operation(attempts=3, wait=30)
def blur_each(pipeline: DiagnosticPipeline, requests: list[BlurEachRequest], job: JobContext) -> list[BlurredEach]:
    """Blur the pictures of an archive, two at a time; refuse those that are wider than 64 pixels."""
    (request,) = requests
    archive, parts = pipeline.blur_each(request.archive, request.seconds, job)
    return [BlurredEach(archive=archive, parts_of_this_attempt=parts)]


@service.operation(batch=8, batch_by=("layers",))
def think(pipeline: DiagnosticPipeline, requests: list[ThinkRequest], job: JobContext) -> list[ThinkResponse]:
    """Run a network of so many layers, for several requests at once."""
    values = pipeline.think([r.seed for r in requests], requests[0].layers)
    return [ThinkResponse(value=value, batch=len(requests)) for value in values]


@service.operation()
def think_alone(pipeline: DiagnosticPipeline, requests: list[ThinkRequest], job: JobContext) -> list[ThinkResponse]:
    """Run a network of so many layers, one request after the other."""
    return think(pipeline, requests, job)  # type: ignore[no-any-return]


@service.operation(batch=8, batch_by=("seconds",))
def charge(pipeline: DiagnosticPipeline, requests: list[ChargeRequest], job: JobContext) -> list[ChargeResponse]:
    """Occupy the device as an accelerator would be: eight requests for the price of two."""
    time.sleep(requests[0].seconds * (1 + (len(requests) - 1) / 7))
    return [ChargeResponse(batch=len(requests)) for _ in requests]


@service.operation()
def charge_alone(pipeline: DiagnosticPipeline, requests: list[ChargeRequest], job: JobContext) -> list[ChargeResponse]:
    """The same, one request after the other."""
    return charge(pipeline, requests, job)  # type: ignore[no-any-return]


@service.operation(batch=4, attempts=2)
def fail(pipeline: DiagnosticPipeline, requests: list[FailRequest], job: JobContext) -> list[NoopResponse | Problem]:
    """Fail in the way asked for."""
    for request in requests:
        pipeline.fail(request.how)
    return [Refused("As asked for.", how=request.how) for request in requests]


def _halves(pipeline: DiagnosticPipeline, request: BlurRequest) -> list[Picture]:
    return pipeline.halves(request.image.picture)


@service.operation(batch=8, lease="anonymize", sensitive="inputs", views=_halves)
def blur_halves(pipeline: DiagnosticPipeline, requests: list[BlurRequest], job: JobContext) -> list[BlurResponse]:
    """Blur pictures; a guard looks at the left half and at the right one."""
    return blur(pipeline, requests, job)  # type: ignore[no-any-return]


@service.operation(scope="recover", sensitive="everything")
def whisper(pipeline: DiagnosticPipeline, requests: list[BlurRequest], job: JobContext) -> list[BlurResponse]:
    """Blur a picture that only the caller may see."""
    return blur(pipeline, requests, job)  # type: ignore[no-any-return]


@service.operation(lease="anonymize", sensitive="inputs")
def veil(pipeline: DiagnosticPipeline, requests: list[BlurRequest], job: JobContext) -> list[BlurResponse]:
    """Blur a picture with an image key in hand."""
    for member in job.members:  # the diagnostic has no model, and custody wants one named
        named = replace(member, model="diagnostic/none@1", model_digest="sha256:" + "0" * 64)
        for key in named.redeem(nonces=[image_nonce(member.id, 0)], key_scheme="v2-gauss", dim=128):
            key.wipe()
    return blur(pipeline, requests, job)  # type: ignore[no-any-return]


@service.training()
def train(pipeline: type[DiagnosticPipeline], request: TrainRequest, job: JobContext) -> Trained:
    """Count to `steps`, with a checkpoint at every one."""
    return Trained(**pipeline.count(request.name, request.steps, request.seconds_a_step, job))
