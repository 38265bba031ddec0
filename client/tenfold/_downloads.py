"""Reading a stored file: in pieces, resumed where a connection was cut, checked at the end."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from tenfold._effects import Close, Emit, Open, Pause, Read, Request, Stream
from tenfold._exchange import quoted, read_problem
from tenfold._retries import pause_before_retry
from tenfold.problems import ConnectionFailed, Problem, ServerFault, TimedOut

if TYPE_CHECKING:
    from tenfold._context import Context


def download(
    context: Context[Any], file_id: str, *, size: int | None = None, sha256: str | None = None
) -> Stream[bytes]:
    """The bytes of a stored file.

    A connection that is cut is opened again where it broke off. The count of tries starts anew with every byte that
    arrives, so that a large file comes through a poor line. Bytes that do not match `size` and `sha256`, as given or
    else as the answer says, end in a `ServerFault`, after the last piece.
    """
    digest = hashlib.sha256()
    received = attempt = 0
    etag: str | None = None
    while True:
        try:
            head = yield Open(_request(file_id, received, etag))
            if head.status == 416 and received and received == size:
                break  # cut between the last byte and the end
            if head.status not in (200, 206):
                raise (yield from read_problem(head))
            if head.status == 206 and _first_byte(head.headers.get("content-range")) != received:
                raise ServerFault(f"The server answered with another part of {file_id} than was asked for.")
            skip = received if head.status == 200 else 0  # from the start again: what we have is not handed out twice
            etag, size = head.headers.get("etag", etag), _size(head, size)
            sha256 = sha256 or digest_in(etag)
            while (chunk := (yield Read())) is not None:
                if skip:
                    skip, chunk = max(0, skip - len(chunk)), chunk[skip:]
                if chunk:
                    digest.update(chunk)
                    received, attempt = received + len(chunk), 0
                    yield Emit(chunk)
            yield Close()
            if size is not None and received < size:
                raise ConnectionFailed(f"{file_id} broke off after {received} of {size} bytes.")
            break
        except Problem as problem:
            pause = pause_before_retry(problem, is_repeatable=True, attempt=attempt, context=context)
            if pause is None and isinstance(problem, TimedOut) and attempt < context.options.max_retries:
                pause = 0.0  # it stood still for a whole `timeout_s`: that was pause enough
            if pause is None:
                raise
            attempt += 1
            yield Close()
            yield Pause(pause)
    if size is not None and received != size:
        raise ServerFault(f"{file_id} has {received} bytes instead of {size}.", code="download_damaged")
    if sha256 is not None and digest.hexdigest() != sha256:
        raise ServerFault(f"{file_id} arrived with another SHA-256 than it has.", code="download_damaged")


def _request(file_id: str, received: int, etag: str | None) -> Request:
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}  # a range counts the bytes as they are stored
    if received:
        headers["Range"] = f"bytes={received}-"
        if etag and not etag.startswith("W/"):
            headers["If-Range"] = etag
    return Request("GET", f"/v1/files/{quoted(file_id)}", headers=headers)


def digest_in(etag: str | None) -> str | None:
    """The SHA-256 that a stored file's entity tag is, or None."""
    text = (etag or "").strip('"')
    return text if len(text) == 64 and not text.strip("0123456789abcdef") else None


def _size(head: Any, known: int | None) -> int | None:
    """How many bytes the whole file has, as the answer says, or else as was known."""
    if head.status == 206:
        _, _, total = head.headers.get("content-range", "").rpartition("/")
        return int(total) if total.isdecimal() else known
    length: str = head.headers.get("content-length", "")
    return known if known is not None or not length.isdecimal() else int(length)


def _first_byte(content_range: str | None) -> int | None:
    unit, _, rest = (content_range or "").partition(" ")
    first, _, _ = rest.partition("-")
    return int(first) if unit == "bytes" and first.isdecimal() else None
