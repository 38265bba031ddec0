"""`POST /v1/files`: the one file of a request, into the store as it comes."""

from __future__ import annotations

import email.message
from collections.abc import AsyncIterator
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request

from shared.files import FileStore, FileWriter, Owner, StoredFile
from shared.problems import InvalidRequest, UnsupportedMediaType
from shared.types import Image

CHUNK_BYTES = 2**20  # what one turn in a thread writes; and what a picture may have before it is spooled to disk
_FORM = "application/x-www-form-urlencoded"  # what curl says of a body when it is not told


async def take(request: Request, files: FileStore, owner: Owner, ttl_s: float) -> StoredFile:
    """Store what `request` carries: a body of any media type but a form's, or a multipart body with one file.

    A picture's head is read, so that its size is known and a damaged one is refused here. Memory holds a few chunks.
    """
    media_type = _media_type(request.headers.get("content-type", ""))
    if media_type == "multipart/form-data":
        return await _from_form(request, files, owner, ttl_s)
    name = _name(request.headers.get("content-disposition", ""))
    if media_type.startswith("image/"):
        with SpooledTemporaryFile(max_size=CHUNK_BYTES) as spooled:
            async for chunk in _chunks(request):
                await run_in_threadpool(spooled.write, chunk)
            await run_in_threadpool(spooled.seek, 0)
            return await run_in_threadpool(_copy, cast(BinaryIO, spooled), files, owner, media_type, ttl_s, name)
    writer: FileWriter = await run_in_threadpool(files.create, owner, media_type, ttl_s, name=name)
    try:
        async for chunk in _chunks(request):
            await run_in_threadpool(writer.write, chunk)
        return await run_in_threadpool(writer.commit)
    finally:
        await run_in_threadpool(writer.abort)  # harmless after the commit


async def _from_form(request: Request, files: FileStore, owner: Owner, ttl_s: float) -> StoredFile:
    async with request.form(max_files=1, max_fields=0) as form:
        parts = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if not parts:
            wrong = {"place": "body", "message": "send one part with a file name", "kind": "file_expected"}
            raise InvalidRequest("The form holds no file.", errors=[wrong])
        (part,) = parts
        media_type = _media_type(part.content_type or "application/octet-stream")
        return await run_in_threadpool(_copy, part.file, files, owner, media_type, ttl_s, part.filename or None)


def _copy(
    source: BinaryIO, files: FileStore, owner: Owner, media_type: str, ttl_s: float, name: str | None
) -> StoredFile:
    width = height = None
    if media_type.startswith("image/"):
        media_type, width, height = Image.inspect(source, media_type)
        source.seek(0)
    with files.create(owner, media_type, ttl_s, name=name) as writer:
        while chunk := source.read(CHUNK_BYTES):
            writer.write(chunk)
        return writer.commit(width, height)


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces worth a turn in a thread."""
    gathered = bytearray()
    async for piece in request.stream():
        gathered += piece
        if len(gathered) >= CHUNK_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _media_type(content_type: str) -> str:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in ("", _FORM):
        raise UnsupportedMediaType(
            "Say what the file is (curl: -H 'Content-Type: image/png'), or send it as a part of a form (-F file=@…)."
        )
    return media_type


def _name(content_disposition: str) -> str | None:
    """The file name of a `Content-Disposition` header, if there is one."""
    message = email.message.Message()
    message["content-disposition"] = content_disposition
    return message.get_filename()
