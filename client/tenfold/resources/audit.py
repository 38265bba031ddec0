"""`client.audit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenfold import _constants as bounds
from tenfold._effects import Emit, Stream
from tenfold._exchange import exchange, items_in, validated
from tenfold._exchange import get as reading
from tenfold._surface import AsyncCalls, Calls, async_iterating, iterating
from tenfold.types import AuditEntry

if TYPE_CHECKING:
    from tenfold._context import Context


def list_(context: Context[Any], *, after: int = -1) -> Stream[AuditEntry]:
    """What was done with the tenant's secret keys, by whom and why, oldest first.

    Reading is itself audited, once a page. The iterator ends where the trail ended when its last page was read.

    after  the `seq` of an entry: begin behind it
    """
    while True:
        answer = yield from exchange(context, reading("/v1/audit", {"after": after, "limit": bounds.PAGE_SIZE}))
        entries = [validated(context, answer, item, AuditEntry) for item in items_in(answer, "entries")]
        for entry in entries:
            yield Emit(entry)
        if len(entries) < bounds.PAGE_SIZE:  # a further page would hold nothing but that it was asked for
            return
        after = entries[-1].seq


class Audit(Calls):
    """The audit trail of the tenant's secret keys. Needs an API key with the scope `audit`."""

    list = iterating(list_)


class AsyncAudit(AsyncCalls):
    """The audit trail of the tenant's secret keys. Needs an API key with the scope `audit`."""

    list = async_iterating(list_)
