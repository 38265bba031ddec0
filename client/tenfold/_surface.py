"""From one plan, the method of `Client` and the method of `AsyncClient`: same name, same arguments, same docstring."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

from tenfold._context import Context
from tenfold._drivers import AsyncDriver, Driver
from tenfold._effects import Plan, Stream
from tenfold.types import AsyncFile, File, StoredFile

P = ParamSpec("P")
T = TypeVar("T")


class Calls:
    """A group of methods of a `Client`."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver


class AsyncCalls:
    """A group of methods of an `AsyncClient`."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver


def blocking(plan: Callable[Concatenate[Context[File], P], Plan[T]]) -> Callable[Concatenate[Calls, P], T]:
    """A method that returns what the plan returns."""

    def method(self: Calls, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._driver.run(plan(self._driver, *args, **kwargs))

    return _like(plan, method, "{}", File)


def iterating(
    stream: Callable[Concatenate[Context[File], P], Stream[T]],
) -> Callable[Concatenate[Calls, P], Iterator[T]]:
    """A method that returns an iterator over what the plan hands out."""

    def method(self: Calls, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._driver.iterate(stream(self._driver, *args, **kwargs))

    return _like(stream, method, "Iterator[{}]", File)


def awaited(
    plan: Callable[Concatenate[Context[AsyncFile], P], Plan[T]],
) -> Callable[Concatenate[AsyncCalls, P], Coroutine[Any, Any, T]]:
    """A coroutine method that returns what the plan returns."""

    async def method(self: AsyncCalls, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._driver.run(plan(self._driver, *args, **kwargs))

    return _like(plan, method, "{}", AsyncFile)


def async_iterating(
    stream: Callable[Concatenate[Context[AsyncFile], P], Stream[T]],
) -> Callable[Concatenate[AsyncCalls, P], AsyncIterator[T]]:
    """A method that returns an asynchronous iterator over what the plan hands out."""

    def method(self: AsyncCalls, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self._driver.iterate(stream(self._driver, *args, **kwargs))

    return _like(stream, method, "AsyncIterator[{}]", AsyncFile)


M = TypeVar("M", bound=Callable[..., Any])


def _like(plan: Callable[..., Any], method: M, returns: str, file_type: type[StoredFile]) -> M:
    """Let `method` be named, documented and shown as what it runs, with its own `self` and its own kind of result."""
    functools.update_wrapper(method, plan)
    del method.__wrapped__  # type: ignore[attr-defined]
    method.__name__ = plan.__name__.rstrip("_")
    _context, *parameters = inspect.signature(plan).parameters.values()
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    item = str(plan.__annotations__["return"]).partition("[")[2].removesuffix("]")
    item = re.sub(r"\bF\b", file_type.__name__, item)
    method.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [self, *parameters], return_annotation=returns.format(item)
    )
    return method
