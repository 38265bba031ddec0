"""Files, as their tenant sees them: `/v1/files`."""

from __future__ import annotations

import mimetypes
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from gateway import uploads
from gateway.auth import Caller, Documented, authenticate
from gateway.idempotency import check_key
from gateway.parts import Here, Parts
from gateway.ranges import byte_range, matches
from shared.files import Owner, StoredFile
from shared.problems import IdempotencyConflict, LeaseExpired, LeaseRefused, StoredFileNotFound

UPLOAD_TTL_S = 24 * 3600.0  # a job lets its inputs live on
CHUNK_BYTES = 256 * 1024
_SHOWN = frozenset({"image/png", "image/jpeg", "image/webp", "image/bmp", "image/tiff", "application/json"})

FileId = Annotated[str, Path(examples=["file_01k9z6w3m8q4t5v7x2y0r1s3d4"])]

router = APIRouter(prefix="/v1/files", tags=["files"])


class FileFacts(BaseModel):
    """A stored file, as requests and results name it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    file: str
    url: str
    media_type: str
    bytes: int
    sha256: str
    """Hexadecimal, of the bytes as they were sent."""
    width: int | None = None
    """Pixels, upright; pictures only."""
    height: int | None = None


async def visible_file(file_id: FileId, caller: Caller, here: Here) -> StoredFile:
    """The file's facts, if the caller may know of it. Raises `StoredFileNotFound`, another's or nobody's."""
    try:
        stored = await run_in_threadpool(here.runtime.files.stat, file_id)
        is_visible = stored.visible_to(caller.tenant, caller.id, caller.scopes)
    except StoredFileNotFound:
        is_visible = False
    if not is_visible:
        raise StoredFileNotFound(f"There is no file {file_id}.")
    return stored


Visible = Annotated[StoredFile, Depends(visible_file)]

_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.post("", status_code=201, response_model_exclude_none=True, openapi_extra=_UPLOAD_BODY)
async def upload_file(
    request: Request,
    response: Response,
    here: Here,
    _: Documented,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> FileFacts:
    """Store a file for a day, for use in the tenant's requests as `{"file": id}`.

    The body is the file itself, with its media type as `Content-Type`, or a multipart form with one file part. Of a
    picture the head is read at once. The same `Idempotency-Key` with the same bytes gives the same file.
    """
    caller = await authenticate(request)
    if idempotency_key is not None:
        check_key(idempotency_key)
    standing = await here.throttle.admit_upload(request, caller)
    limit_bytes = standing.limits.stored_bytes
    files = here.runtime.files.within(limit_bytes, limit_bytes - standing.bytes)
    stored = await uploads.take(request, files, Owner(caller.tenant, made_by=caller.id), UPLOAD_TTL_S)
    if idempotency_key is not None:
        stored = await _first(here, caller.id, idempotency_key, stored)
    response.headers["Location"] = f"/v1/files/{stored.id}"
    return FileFacts.model_validate(stored.public())


async def _first(here: Parts, principal: str, key: str, stored: StoredFile) -> StoredFile:
    """The file that this idempotency key stands for: the first one sent under it, as long as it is there."""
    first_id = await here.first_answers.first(principal, key, stored.id, UPLOAD_TTL_S)
    if first_id == stored.id:
        return stored
    try:
        first = await run_in_threadpool(here.runtime.files.stat, first_id)
    except StoredFileNotFound:
        await here.first_answers.replace(principal, key, stored.id, UPLOAD_TTL_S)
        return stored
    await run_in_threadpool(here.runtime.files.delete, stored.id)
    if (first.sha256, first.media_type) != (stored.sha256, stored.media_type):
        raise IdempotencyConflict(f"This idempotency key belongs to {first.id}, whose bytes are others.")
    return first


_PARTS_AND_FRESHNESS: dict[int | str, dict[str, Any]] = {
    206: {"description": "The range that was asked for."},
    304: {"description": "The file is still the one that the caller has."},
}


@router.get("/{file_id}", response_class=StreamingResponse, responses=_PARTS_AND_FRESHNESS)
@router.head("/{file_id}", include_in_schema=False)
async def download_file(
    request: Request,
    stored: Visible,
    here: Here,
    range_: Annotated[str | None, Header(alias="Range", examples=["bytes=0-1023"])] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The bytes of a file, or one range of them. The entity tag is the SHA-256 of the whole."""
    etag = f'"{stored.sha256}"'
    headers = _headers(stored, etag)
    if matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    wanted = byte_range(range_, stored.bytes) if if_range in (None, etag) else None
    start, stop = wanted or (0, stored.bytes)
    headers["Content-Length"] = str(stop - start)
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{stored.bytes}"
    status = 206 if wanted else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=stored.media_type)
    stream = await _opened(here, stored)
    try:
        await run_in_threadpool(stream.seek, start)
        first = await run_in_threadpool(stream.read, min(CHUNK_BYTES, stop - start))  # what is damaged is refused here
    except BaseException:
        stream.close()
        raise
    body = _chunks(stream, first, stop - start)
    return StreamingResponse(body, status, headers, stored.media_type)


@router.delete("/{file_id}", status_code=204)
async def delete_file(stored: Visible, here: Here) -> None:
    """Remove a file before its time is over."""
    await run_in_threadpool(here.runtime.files.delete, stored.id)


def _headers(stored: StoredFile, etag: str) -> dict[str, str]:
    name = stored.name or stored.id + (mimetypes.guess_extension(stored.media_type) or "")
    disposition = "inline" if stored.media_type in _SHOWN else "attachment"
    return {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-store" if stored.owner.principal else "private, no-cache",
        "Content-Disposition": f"{disposition}; filename*=UTF-8''{quote(name, safe='')}",
        # A file is a caller's content on our own origin: it must not act as a page of ours.
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Expires": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(stored.expires_at)),
    }


async def _opened(here: Parts, stored: StoredFile) -> BinaryIO:
    if stored.owner.lease is None:
        return await run_in_threadpool(here.runtime.files.open, stored.id)
    try:
        key = await here.custody.file_key(stored.owner.lease)
    except (LeaseExpired, LeaseRefused) as error:
        raise StoredFileNotFound(f"The time of {stored.id} is over.") from error
    try:
        return await run_in_threadpool(lambda: here.runtime.files.open(stored.id, key=key))
    finally:
        key[:] = bytes(len(key))


async def _chunks(stream: BinaryIO, first: bytes, count: int) -> AsyncIterator[bytes]:
    try:
        chunk = first
        while chunk:
            yield chunk
            count -= len(chunk)
            chunk = await run_in_threadpool(stream.read, min(CHUNK_BYTES, count))
    finally:
        stream.close()
