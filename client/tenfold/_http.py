"""The borders to httpx: our requests as its, its failures as ours."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, cast

import httpx

from tenfold import _constants as bounds
from tenfold._context import Options
from tenfold._effects import Request
from tenfold._inputs import Upload
from tenfold.problems import ConnectionFailed, ServerFault, TimedOut


def build(
    http: httpx.Client | httpx.AsyncClient, request: Request, options: Options, files: ExitStack
) -> httpx.Request:
    """The request as httpx sends it, with the API key. What was opened for it is closed by `files`."""
    headers = dict(request.headers)
    if options.api_key:
        headers["Authorization"] = f"Bearer {options.api_key}"
    silence_s = options.timeout_s if request.silence_s is None else request.silence_s
    arguments: dict[str, Any] = {}
    if request.parts:
        arguments["files"] = [
            (part.name, _part(part.name, part.value, part.media_type, files)) for part in request.parts
        ]
    elif request.content is not None:
        opened = files.enter_context(request.content.open())
        headers["Content-Length"] = str(_length(opened))
        arguments["content"] = _pieces(opened)
    elif request.body is not None:
        arguments["content"] = request.body
    return http.build_request(
        request.method,
        options.base_url + request.path,
        params=dict(request.query) or None,
        headers=headers,
        timeout=httpx.Timeout(silence_s, connect=min(bounds.CONNECT_TIMEOUT_S, silence_s)),
        **arguments,
    )


def _part(name: str, value: bytes | Upload, media_type: str | None, files: ExitStack) -> tuple[Any, ...]:
    if isinstance(value, bytes):
        return (None, value) if media_type is None else (None, value, media_type)
    return name + value.suffix, files.enter_context(value.open()), media_type or value.media_type


def _length(file: BinaryIO) -> int:
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    return length


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(bounds.CHUNK_BYTES):
        yield piece


class ThreadedStream(httpx.AsyncByteStream):
    """A body whose pieces are read from files in threads, so that a slow disk does not hold up the event loop."""

    def __init__(self, stream: object) -> None:
        self._stream = cast("Iterable[bytes]", stream)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = iter(self._stream)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece


@contextmanager
def translated(base_url: str) -> Iterator[None]:
    """Raise what httpx raises as a `Problem`. What it raises for our own mistakes passes."""
    try:
        yield
    except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
        raise TimedOut(f"{base_url} was silent for longer than is allowed.") from error
    except httpx.TransportError as error:  # no connection, a cut one, or no turn in the pool
        raise ConnectionFailed(f"{base_url}: {str(error) or type(error).__name__}") from error
    except httpx.RequestError as error:
        raise ServerFault(f"{base_url} answered what cannot be read: {error}") from error
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url {base_url!r} is not valid: {error}") from error
