"""DiT-SR over HTTP: enlarge photographs four times, or restore portraits, in a few steps of diffusion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from shared.problems import Problem
from shared.resshift import requests as family
from shared.resshift.requests import Restored, Upscaled
from shared.service import JobContext, ModelRef, Service

if TYPE_CHECKING:
    from services.dit_sr.pipeline import DitSrPipeline

MAX_STEPS = 15

service = Service(
    "dit-sr",
    title="Four-fold super-resolution by a diffusion transformer",
    pipeline="services.dit_sr.pipeline:DitSrPipeline",
)

_STEPS = "Denoising steps for each tile, at most as many as the model was trained for; its own number by default."


class UpscaleRequest(family.UpscaleRequest):
    steps: int | None = Field(None, ge=1, le=MAX_STEPS, description=_STEPS)
    model: ModelRef = "dit-sr/small"


class RestoreRequest(family.RestoreRequest):
    steps: int | None = Field(None, ge=1, le=MAX_STEPS, description=_STEPS)
    model: ModelRef = "dit-sr/small"


@service.operation(batch=8, batch_on_cpu=1, batch_by=("steps", "company"), wait=60)
def upscale(pipeline: DitSrPipeline, requests: list[UpscaleRequest], job: JobContext) -> list[Upscaled | Problem]:
    """Enlarge a photograph four times, or each of an archive, and remove blur, noise and JPEG artifacts on the way.

    The result has exactly four times the width and height. Gray stays gray; transparency is enlarged beside the
    colours. What cannot be seen in the picture is made up, differently for each seed: it is no evidence of anything.
    """
    return pipeline.upscale(requests, job)


@service.operation(batch=8, batch_on_cpu=1, batch_by=("steps", "image.size"), wait=60)
def restore(pipeline: DitSrPipeline, requests: list[RestoreRequest], job: JobContext) -> list[Restored | Problem]:
    """Restore a portrait at the size it has.

    A model for faces works at that size. One that enlarges gets the picture reduced to a quarter of each side first,
    which suits pictures whose detail is lost already. Details of a face are made up, and may be another person's.
    """
    return pipeline.restore(requests, job)
