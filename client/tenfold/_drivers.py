"""The two loops that do what plans ask, over httpx. Everything they decide is decided in the plans."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from tenfold._context import Context, Options
from tenfold._effects import Close, Effect, Emit, Head, Open, Pause, Plan, Read, Stream
from tenfold._http import ThreadedStream, build, translated
from tenfold._saving import replacing
from tenfold.problems import Problem
from tenfold.types import AsyncFile, File

T = TypeVar("T")


class Driver(Context[File]):
    """Runs plans on the calling thread. Many threads may share one."""

    def __init__(self, options: Options, http: httpx.Client) -> None:
        super().__init__(options, File, time.monotonic, random.random)
        self.http = http

    def with_options(self, options: Options) -> Driver:
        """The same connections under other options."""
        return Driver(options, self.http)

    def run(self, plan: Plan[T]) -> T:
        """Run to the end. Returns what the plan returns."""
        steps = self._steps(plan)
        try:
            while True:
                next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def iterate(self, stream: Stream[T]) -> Iterator[T]:
        """Run as far as the next item, each time one is asked for."""
        yield from self._steps(stream)

    def save(self, stream: Stream[bytes], path: str | os.PathLike[str]) -> Path:
        """Write the pieces to a file that appears when all are there."""
        with replacing(Path(path)) as file:
            for chunk in self.iterate(stream):
                file.write(chunk)
        return Path(path)

    def _steps(self, plan: Generator[Effect | Emit[Any], Any, Any]) -> Generator[Any, None, Any]:
        with _Line(self) as line:
            try:
                effect = next(plan)
                while True:
                    if isinstance(effect, Emit):
                        yield effect.item
                        effect = next(plan)
                        continue
                    try:
                        outcome = line.do(effect)
                    except Problem as problem:
                        effect = plan.throw(problem)
                    else:
                        effect = plan.send(outcome)
            except StopIteration as stop:
                return stop.value
            finally:
                plan.close()


class _Line:
    """At most one open answer."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def do(self, effect: Effect) -> Head | bytes | None:
        options, http = self._driver.options, self._driver.http
        with translated(options.base_url):
            match effect:
                case Open(request):
                    self._close()
                    with ExitStack() as files:
                        self._response = http.send(build(http, request, options, files), stream=True)
                    self._chunks = self._response.iter_bytes()
                    return Head(self._response.status_code, self._response.headers)
                case Read():
                    return next(self._chunks, None)
                case Close():
                    self._close()
                case Pause(seconds):
                    self._close()
                    time.sleep(seconds)
        return None

    def _close(self) -> None:
        response, self._response, self._chunks = self._response, None, iter(())
        if response is not None:
            response.close()


class AsyncDriver(Context[AsyncFile]):
    """Runs plans on the calling event loop. Many tasks may share one."""

    def __init__(self, options: Options, http: httpx.AsyncClient) -> None:
        super().__init__(options, AsyncFile, time.monotonic, random.random)
        self.http = http

    def with_options(self, options: Options) -> AsyncDriver:
        """The same connections under other options."""
        return AsyncDriver(options, self.http)

    async def run(self, plan: Plan[T]) -> T:
        """Run to the end. Returns what the plan returns."""
        async with _AsyncLine(self) as line:
            try:
                effect = next(plan)
                while True:
                    try:
                        outcome = await line.do(effect)
                    except Problem as problem:
                        effect = plan.throw(problem)
                    else:
                        effect = plan.send(outcome)
            except StopIteration as stop:
                result: T = stop.value
                return result
            finally:
                plan.close()

    async def iterate(self, stream: Stream[T]) -> AsyncIterator[T]:
        """Run as far as the next item, each time one is asked for."""
        async with _AsyncLine(self) as line:
            try:
                effect = next(stream)
                while True:
                    if isinstance(effect, Emit):
                        yield effect.item
                        effect = next(stream)
                        continue
                    try:
                        outcome = await line.do(effect)
                    except Problem as problem:
                        effect = stream.throw(problem)
                    else:
                        effect = stream.send(outcome)
            except StopIteration:
                return
            finally:
                stream.close()

    async def save(self, stream: Stream[bytes], path: str | os.PathLike[str]) -> Path:
        """Write the pieces to a file that appears when all are there."""
        with replacing(Path(path)) as file:
            async for chunk in self.iterate(stream):
                await asyncio.to_thread(file.write, chunk)
        return Path(path)


class _AsyncLine:
    """At most one open answer."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def do(self, effect: Effect) -> Head | bytes | None:
        with translated(self._driver.options.base_url):
            match effect:
                case Open(request):
                    await self._close()
                    with ExitStack() as files:
                        if request.uploads:  # opening may read a disk or encode a picture
                            outgoing = await asyncio.to_thread(self._build, effect, files)
                            outgoing.stream = ThreadedStream(outgoing.stream)
                        else:
                            outgoing = self._build(effect, files)
                        self._response = await self._driver.http.send(outgoing, stream=True)
                    self._chunks = self._response.aiter_bytes()
                    return Head(self._response.status_code, self._response.headers)
                case Read():
                    return None if self._chunks is None else await anext(self._chunks, None)
                case Close():
                    await self._close()
                case Pause(seconds):
                    await self._close()
                    await asyncio.sleep(seconds)
        return None

    def _build(self, effect: Open, files: ExitStack) -> httpx.Request:
        return build(self._driver.http, effect.request, self._driver.options, files)

    async def _close(self) -> None:
        response, self._response, self._chunks = self._response, None, None
        if response is not None:
            await response.aclose()
