"""A service that opens what it is sent and says what it found: pictures, and archives with their manifests."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from pydantic import Field

from shared.problems import Problem
from shared.service import File, Image, JobContext, Request, Response, Service

if TYPE_CHECKING:
    from tests.diagnostic.pipeline import DiagnosticPipeline

service = Service("probe", title="Probe", pipeline="tests.diagnostic.pipeline:DiagnosticPipeline", default_model=None)


class PictureRequest(Request):
    image: Image


class Seen(Response):
    width: int
    height: int
    gray: bool
    has_alpha: bool
    texts: int


class ArchiveRequest(Request):
    archive: File
    file_limit: int = Field(100, ge=1, le=20_000)
    bytes_limit: int = Field(2**20, ge=1, le=2**32)


class Entered(Response):
    entries: int
    wrong_entries: int
    files: int
    damaged_files: int


@service.operation(batch=1)
def look(pipeline: DiagnosticPipeline, requests: list[PictureRequest], job: JobContext) -> list[Seen]:
    """Decode a picture."""
    (request,) = requests
    picture, texts = request.image.picture, request.image.texts
    height, width = picture.pixels.shape[:2]
    return [Seen(width=width, height=height, gray=picture.gray, has_alpha=picture.alpha is not None, texts=len(texts))]


@service.operation(batch=1)
def unpack(pipeline: DiagnosticPipeline, requests: list[ArchiveRequest], job: JobContext) -> list[Entered | Problem]:
    """Read an archive, its manifest and every file in it."""
    from shared.archives import open_archive
    from shared.manifests import entries_of

    (request,) = requests
    stream = io.BytesIO(request.archive.content)
    with open_archive(stream, file_limit=request.file_limit, bytes_limit=request.bytes_limit) as archive:
        entries = entries_of(archive)
        damaged = 0
        for path in archive.paths:
            try:
                archive.read(path)
            except Problem:
                damaged += 1
        wrong = sum(entry.error is not None for entry in entries)
        found = Entered(entries=len(entries), wrong_entries=wrong, files=len(archive.paths), damaged_files=damaged)
    return [found]
