"""Serving HTTP: sockets of our own, servers that leave the signals to us, and a word when to stop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp

_BACKLOG = 512


class Server(uvicorn.Server):
    """A uvicorn server beside others in one process: none of them may take the process's signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End as uvicorn does, and let the application close what it opened also when time is short."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    def refuse_new_calls(self) -> None:
        """Close the listening sockets; `serve` returns when the calls in flight are answered."""
        self.should_exit = True

    def end(self) -> None:
        """Let `serve` return soon, whatever is in flight."""
        self.should_exit = self.force_exit = True


def server(app: ASGIApp, drain_s: float) -> Server:
    """A server for `app` whose calls in flight get `drain_s` to end. Logs and signals are the caller's."""
    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=math.ceil(drain_s),
        )
    )


class Signals:
    """Every SIGTERM and SIGINT since the process began to serve."""

    def __init__(self) -> None:
        self._told = asyncio.Semaphore(0)

    @classmethod
    @contextlib.asynccontextmanager
    async def heard(cls) -> AsyncIterator[Signals]:
        """Take over the process's signals."""
        signals, loop = cls(), asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, signals._told.release)
        try:
            yield signals
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def next_or_end_of(self, serving: Awaitable[Any], within_s: float | None = None) -> None:
        """Return at the next signal, when `serving` has ended, or after `within_s`. Raises what `serving` raised."""
        told = asyncio.ensure_future(self._told.acquire())
        served = asyncio.ensure_future(serving)
        try:
            await asyncio.wait({told, served}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
        if served.done():
            served.result()


@contextlib.contextmanager
def tcp_socket(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket. Raises `ValueError` if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without the protocol's number asyncio leaves Nagle's algorithm on: an answer in two pieces then waits 40 ms.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ValueError(f"{host}:{port} cannot be served: {error.strerror}") from error
        listener.listen(_BACKLOG)
        yield listener


@contextlib.contextmanager
def url_socket(url: str) -> Iterator[socket.socket]:
    """A bound socket for `http://host:port` or `unix:///path`, the latter open to this user alone."""
    parts = urlsplit(url)
    if parts.scheme != "unix":
        with tcp_socket(parts.hostname or "", parts.port or 80) as listener:
            yield listener
        return
    path = Path(parts.path)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        except OSError as error:
            raise ValueError(f"{url} cannot be served: {error.strerror}") from error
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
        yield listener
