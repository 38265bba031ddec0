"""A second method beside the diagnostic one, for what concerns two methods in one worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.service import JobContext, Service
from tests.diagnostic.service import NoopRequest, NoopResponse

if TYPE_CHECKING:
    from tests.diagnostic.pipeline import DiagnosticPipeline

service = Service(
    "neighbour", title="A neighbour", pipeline="tests.diagnostic.pipeline:DiagnosticPipeline", default_model=None
)


@service.operation(batch=8)
def noop(pipeline: DiagnosticPipeline, requests: list[NoopRequest], job: JobContext) -> list[NoopResponse]:
    """Give the text back."""
    return [NoopResponse(text=r.text, seed=r.seed or 0, batch=len(requests)) for r in requests]
