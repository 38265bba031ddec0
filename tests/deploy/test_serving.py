"""Serving HTTP beside other servers, and ending in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from deploy.serving import Signals, server, tcp_socket, url_socket


def app(slow_s: float = 0.0, closed: list[str] | None = None) -> Starlette:
    async def answer(_: Request) -> PlainTextResponse:
        await asyncio.sleep(slow_s)
        return PlainTextResponse("answered")

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        if closed is not None:
            closed.append("closed")

    return Starlette(routes=[Route("/", answer)], lifespan=lifespan)


class TestSockets:
    def test_a_taken_port_is_named(self) -> None:
        with tcp_socket("127.0.0.1", 0) as first:
            port = first.getsockname()[1]
            with pytest.raises(ValueError, match=rf"127\.0\.0\.1:{port} cannot be served: Address already in use"):
                tcp_socket("127.0.0.1", port).__enter__()

    def test_a_unix_socket_is_for_its_owner_and_replaces_what_a_crash_left(self, tmp_path: Path) -> None:
        path = tmp_path / "door.sock"
        for _ in range(2):
            with url_socket(f"unix://{path}") as listener:
                assert listener.family == socket.AF_UNIX
                assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_an_address_over_http_is_bound_too(self) -> None:
        with url_socket("http://127.0.0.1:0") as listener:
            assert listener.getsockname()[0] == "127.0.0.1"

    def test_an_answer_in_two_pieces_does_not_wait_for_the_callers_acknowledgement(self) -> None:
        async def main(listener: socket.socket) -> int:
            accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

            def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                connection = writer.get_extra_info("socket")
                accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                writer.close()

            async with await asyncio.start_server(look, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                writer.close()
                return await accepted

        with tcp_socket("127.0.0.1", 0) as listener:
            assert asyncio.run(main(listener)) == 1


class TestEnd:
    def test_calls_in_flight_are_answered_and_new_ones_refused(self) -> None:
        async def main() -> None:
            with tcp_socket("127.0.0.1", 0) as listener:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
                public = server(app(slow_s=0.6), drain_s=5)
                async with Signals.heard() as signals, httpx.AsyncClient() as client:
                    serving = asyncio.ensure_future(public.serve([listener]))
                    call = asyncio.create_task(client.get(url))
                    await asyncio.sleep(0.3)
                    os.kill(os.getpid(), signal.SIGTERM)
                    await signals.next_or_end_of(serving)
                    public.refuse_new_calls()
                    assert (await call).text == "answered"
                    await serving
                    with pytest.raises(httpx.ConnectError):
                        await client.get(url)

        asyncio.run(main())

    def test_a_second_signal_ends_what_is_in_flight(self) -> None:
        closed: list[str] = []

        async def main() -> float:
            with tcp_socket("127.0.0.1", 0) as listener:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
                public = server(app(slow_s=30, closed=closed), drain_s=30)
                async with Signals.heard() as signals, httpx.AsyncClient() as client:
                    serving = asyncio.ensure_future(public.serve([listener]))
                    call = asyncio.create_task(client.get(url))
                    await asyncio.sleep(0.3)
                    since = time.monotonic()
                    for step in (public.refuse_new_calls, public.end):
                        os.kill(os.getpid(), signal.SIGINT)
                        await signals.next_or_end_of(serving)
                        step()
                    await serving
                    call.cancel()
                    return time.monotonic() - since

        assert asyncio.run(main()) < 3
        assert closed == ["closed"]

    def test_a_server_that_fails_is_noticed_without_a_signal(self) -> None:
        async def fail() -> None:
            raise RuntimeError("no more file descriptors")

        async def main() -> None:
            async with Signals.heard() as signals:
                await signals.next_or_end_of(fail())

        with pytest.raises(RuntimeError, match="no more file descriptors"):
            asyncio.run(main())

    def test_waiting_for_a_signal_has_an_end(self) -> None:
        async def main() -> None:
            async with Signals.heard() as signals:
                serving = asyncio.create_task(asyncio.sleep(30))
                await signals.next_or_end_of(serving, within_s=0.05)
                assert not serving.done()
                serving.cancel()

        asyncio.run(main())
