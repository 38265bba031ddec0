"""`client.methods`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenfold._effects import Plan, Stream
from tenfold._exchange import exchange, pages, quoted, read
from tenfold._exchange import get as reading
from tenfold._surface import AsyncCalls, Calls, async_iterating, awaited, blocking, iterating
from tenfold.types import Method

if TYPE_CHECKING:
    from tenfold._context import Context


def list_(context: Context[Any]) -> Stream[Method]:
    """What is served: every method with its operations, their schemas, and the numbers of the moment."""
    return pages(context, "/v1/methods", "methods", "after", Method)


def get(context: Context[Any], method: str) -> Plan[Method]:
    """One method. Raises `NotFound`."""
    answer = yield from exchange(context, reading(f"/v1/methods/{quoted(method)}"))
    return read(context, answer, Method)


class Methods(Calls):
    """The methods that are served."""

    list = iterating(list_)
    get = blocking(get)


class AsyncMethods(AsyncCalls):
    """The methods that are served."""

    list = async_iterating(list_)
    get = awaited(get)
