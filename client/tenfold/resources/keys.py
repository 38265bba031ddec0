"""`client.keys`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from tenfold._effects import Plan, Stream
from tenfold._exchange import exchange, pages, post, quoted, read
from tenfold._exchange import get as reading
from tenfold._surface import AsyncCalls, Calls, async_iterating, awaited, blocking, iterating
from tenfold.types import Key

if TYPE_CHECKING:
    from tenfold._context import Context

Purpose = Literal["anonymize", "recover", "forensic"]


def create(
    context: Context[Any],
    *,
    label: str | None = None,
    not_after: datetime | None = None,
    purposes: Sequence[Purpose] | None = None,
    default: bool | None = None,
    idempotency_key: str | None = None,
) -> Plan[Key]:
    """Make a secret key. What is answered is its name and state: the key itself never leaves custody.

    label      what people call it
    not_after  when it is disabled by itself, with a time zone; never by default
    purposes   what it may be used for, for good; by default anonymize and recover. forensic besides these two lets
               requests keep the original pixels, encrypted, for exact recovery
    default    whether it serves the tenant's requests that name no key
    """
    fields = {"label": label, "not_after": _with_zone(not_after), "purposes": purposes, "default": default}
    answer = yield from exchange(context, post("/v1/keys", fields, idempotency_key=idempotency_key))
    return read(context, answer, Key)


def list_(context: Context[Any]) -> Stream[Key]:
    """The tenant's secret keys, oldest first."""
    return pages(context, "/v1/keys", "keys", "after", Key)


def get(context: Context[Any], key: str) -> Plan[Key]:
    """The state of a secret key, `key_…`. Raises `NotFound`, also for one that was destroyed."""
    answer = yield from exchange(context, reading(f"/v1/keys/{quoted(key)}"))
    return read(context, answer, Key)


def rotate(context: Context[Any], key: str) -> Plan[Key]:
    """Give new pictures a new version of a key. Older versions go on recovering theirs."""
    return _changed(context, key, "rotate")


def disable(context: Context[Any], key: str) -> Plan[Key]:
    """Stop a key. Once this has returned, nothing is anonymized or recovered with it any more."""
    return _changed(context, key, "disable")


def enable(context: Context[Any], key: str, *, not_after: datetime | None = None) -> Plan[Key]:
    """Let a disabled key work again. One whose time is over needs a new `not_after`, with a time zone."""
    return _changed(context, key, "enable", {"not_after": _with_zone(not_after)})


def destroy(context: Context[Any], key: str, *, reason: str, grace_days: int | None = None) -> Plan[Key]:
    """Ask for a key's end, or confirm what another custodian asked for. No picture made with it can be recovered then.

    The key stops at once. It is gone when a second custodian has confirmed and the grace period is over; until then
    `cancel_destroy` calls it off.

    reason      why, in 1 to 200 characters; the audit trail keeps it
    grace_days  7 to 30; 14 by default
    """
    return _changed(context, key, "destroy", {"reason": reason, "grace_days": grace_days})


def cancel_destroy(context: Context[Any], key: str) -> Plan[Key]:
    """Call off a key's end. The key stays disabled until it is enabled."""
    return _changed(context, key, "cancel-destroy")


def _with_zone(moment: datetime | None) -> datetime | None:
    if moment is not None and moment.tzinfo is None:
        raise ValueError("not_after needs a time zone")
    return moment


def _changed(context: Context[Any], key: str, step: str, fields: dict[str, Any] | None = None) -> Plan[Key]:
    answer = yield from exchange(context, post(f"/v1/keys/{quoted(key)}/{step}", fields))
    return read(context, answer, Key)


class Keys(Calls):
    """The tenant's secret keys. Needs an API key with the scope `keys`."""

    create = blocking(create)
    list = iterating(list_)
    get = blocking(get)
    rotate = blocking(rotate)
    disable = blocking(disable)
    enable = blocking(enable)
    destroy = blocking(destroy)
    cancel_destroy = blocking(cancel_destroy)


class AsyncKeys(AsyncCalls):
    """The tenant's secret keys. Needs an API key with the scope `keys`."""

    create = awaited(create)
    list = async_iterating(list_)
    get = awaited(get)
    rotate = awaited(rotate)
    disable = awaited(disable)
    enable = awaited(enable)
    destroy = awaited(destroy)
    cancel_destroy = awaited(cancel_destroy)
