"""TAD-SR over HTTP: enlarge photographs four times, or restore portraits, in one step of diffusion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.problems import Problem
from shared.resshift import requests as family
from shared.resshift.requests import Restored, Upscaled
from shared.service import JobContext, ModelRef, Service

if TYPE_CHECKING:
    from services.tad_sr.pipeline import TadSrPipeline

service = Service(
    "tad-sr",
    title="One-step four-fold super-resolution",
    pipeline="services.tad_sr.pipeline:TadSrPipeline",
)


class UpscaleRequest(family.UpscaleRequest):
    model: ModelRef = "tad-sr/small"


class RestoreRequest(family.RestoreRequest):
    model: ModelRef = "tad-sr/small"


@service.operation(batch=8, batch_on_cpu=1, batch_by=("company",), wait=60)
def upscale(pipeline: TadSrPipeline, requests: list[UpscaleRequest], job: JobContext) -> list[Upscaled | Problem]:
    """Enlarge a photograph four times, or each of an archive, and remove blur, noise and JPEG artifacts on the way.

    The result has exactly four times the width and height. Gray stays gray; transparency is enlarged beside the
    colours. What cannot be seen in the picture is made up, differently for each seed: it is no evidence of anything.
    """
    return pipeline.upscale(requests, job)


@service.operation(batch=8, batch_on_cpu=1, batch_by=("image.size",), wait=60)
def restore(pipeline: TadSrPipeline, requests: list[RestoreRequest], job: JobContext) -> list[Restored | Problem]:
    """Restore a portrait at the size it has.

    A model for faces works at that size. One that enlarges gets the picture reduced to a quarter of each side first,
    which suits pictures whose detail is lost already. Details of a face are made up, and may be another person's.
    """
    return pipeline.restore(requests, job)
