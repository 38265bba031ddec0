"""`client.files`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold._context import F
from tenfold._downloads import digest_in, download
from tenfold._effects import Plan, Request, Stream
from tenfold._exchange import delete as deletion
from tenfold._exchange import exchange, quoted, read, repeatable
from tenfold._inputs import FileInput, upload_of
from tenfold._surface import AsyncCalls, Calls, async_iterating, awaited, blocking, iterating
from tenfold.types import StoredFile

if TYPE_CHECKING:
    from tenfold._context import Context


def upload(
    context: Context[F], file: FileInput, *, media_type: str | None = None, idempotency_key: str | None = None
) -> Plan[F]:
    """Store a file for a day. It can be given to any operation in place of a path, as often as needed.

    file        path, bytes, file opened in binary mode, picture or array. What lies on a disk is sent in pieces
    media_type  as `image/png`; by default what the path or the first bytes suggest
    """
    source = upload_of(file, media_type)
    headers = {**repeatable(idempotency_key), "Accept": "application/json", "Content-Type": source.media_type}
    answer = yield from exchange(context, Request("POST", "/v1/files", headers=headers, content=source))
    return read(context, answer, context.file_type)


def get(context: Context[F], file: str | StoredFile) -> Plan[F]:
    """The facts of a stored file: media type, size, digest. Raises `NotFound`."""
    file_id = _id(file)
    answer = yield from exchange(context, Request("HEAD", f"/v1/files/{quoted(file_id)}", headers=_IDENTITY))
    facts = {
        "file": file_id,
        "media_type": answer.headers.get("content-type", ""),
        "bytes": int(answer.headers.get("content-length", 0)),
        "sha256": digest_in(answer.headers.get("etag")),
    }
    return context.file_type.model_validate(facts, context=context)


def stream(context: Context[Any], file: str | StoredFile) -> Stream[bytes]:
    """The bytes of a stored file in pieces, with little memory. A cut connection is resumed where it broke off.

    Raises `NotFound`, and `ServerFault` after the last piece if the bytes do not match the file's digest.
    """
    if isinstance(file, StoredFile):
        return download(context, file.file, size=file.bytes, sha256=file.sha256)
    return download(context, file)


def delete(context: Context[Any], file: str | StoredFile) -> Plan[None]:
    """Remove a stored file before its time is over. Raises `NotFound`."""
    yield from exchange(context, deletion(f"/v1/files/{quoted(_id(file))}"))


def _id(file: str | StoredFile) -> str:
    return file.file if isinstance(file, StoredFile) else file


_IDENTITY = {"Accept": "*/*", "Accept-Encoding": "identity"}


class Files(Calls):
    """Files that the service keeps: large inputs, and all outputs."""

    upload = blocking(upload)
    get = blocking(get)
    stream = iterating(stream)
    delete = blocking(delete)

    def download(self, file: str | StoredFile, path: str | os.PathLike[str]) -> Path:
        """Write a stored file to `path`, which appears, or is replaced, only when all is there and checked."""
        return self._driver.save(stream(self._driver, file), path)


class AsyncFiles(AsyncCalls):
    """Files that the service keeps: large inputs, and all outputs."""

    upload = awaited(upload)
    get = awaited(get)
    stream = async_iterating(stream)
    delete = awaited(delete)

    async def download(self, file: str | StoredFile, path: str | os.PathLike[str]) -> Path:
        """Write a stored file to `path`, which appears, or is replaced, only when all is there and checked."""
        return await self._driver.save(stream(self._driver, file), path)
