"""Custody of tenants' secret keys: wrapped in a Redis of its own, lent to workers picture by picture, audited."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.custody.service import Custody

__all__ = ["Custody"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `gateway.principals` uses modules of this package, and `Custody` uses `gateway.principals`.
    if name == "Custody":
        from gateway.custody.service import Custody

        return Custody
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
