"""`client.models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenfold._effects import Plan, Stream
from tenfold._exchange import delete as deletion
from tenfold._exchange import exchange, pages, quoted, read
from tenfold._exchange import get as reading
from tenfold._surface import AsyncCalls, Calls, async_iterating, awaited, blocking, iterating
from tenfold.types import Model

if TYPE_CHECKING:
    from tenfold._context import Context


def list_(context: Context[Any], method: str | None = None) -> Stream[Model]:
    """The models there are: shipped, imported, and those that the tenant trained. `method` narrows it to one's own."""
    return pages(context, "/v1/models", "models", "after", Model, {"method": method})


def get(context: Context[Any], model: str) -> Plan[Model]:
    """One model, `method/name` or `method/name@version`: its versions, figures, card and licence.

    Raises `NotFound`, and `Conflict` for a model that was not imported: `problem.extras["command"]` imports it.
    """
    answer = yield from exchange(context, reading(_path(model)))
    return read(context, answer, Model)


def delete(context: Context[Any], model: str) -> Plan[None]:
    """Remove a model that the tenant trained: `method/name@version`, or `method/name` for all its versions.

    Raises `NotFound`, and `Conflict` for a model that is shipped or imported.
    """
    yield from exchange(context, deletion(_path(model)))


def _path(model: str) -> str:
    method, slash, name = model.partition("/")
    if not slash:
        raise ValueError(f"a model is named method/name or method/name@version, not {model!r}")
    return f"/v1/models/{quoted(method)}/{quoted(name)}"


class Models(Calls):
    """Weights that methods can be run with."""

    list = iterating(list_)
    get = blocking(get)
    delete = blocking(delete)


class AsyncModels(AsyncCalls):
    """Weights that methods can be run with."""

    list = async_iterating(list_)
    get = awaited(get)
    delete = awaited(delete)
