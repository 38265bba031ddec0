"""What a plan knows of its caller: the options, a clock, and a source of chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Self
from urllib.parse import urlsplit

from typing_extensions import TypeVar

from tenfold import _constants as bounds
from tenfold.types import File, StoredFile

F = TypeVar("F", bound=StoredFile, default=File)
"""`File` in results of a `Client`, `AsyncFile` in those of an `AsyncClient`."""


@dataclass(frozen=True)
class Options:
    """What a caller chooses once for a client."""

    base_url: str
    api_key: str | None = field(repr=False)
    timeout_s: float = bounds.TIMEOUT_S
    max_retries: int = bounds.MAX_RETRIES

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"base_url takes http://host:port or https://host, not {self.base_url!r}")
        if parts.username or parts.password:
            raise ValueError("base_url takes no credentials: pass api_key")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ValueError("api_key is empty, or holds a line break or another character that no key has")
        if not 0 < self.timeout_s < float("inf"):
            raise ValueError(f"timeout_s takes seconds above 0, not {self.timeout_s!r}")
        if not 0 <= self.max_retries <= bounds.MAX_RETRIES_LIMIT:
            raise ValueError(f"max_retries takes 0 to {bounds.MAX_RETRIES_LIMIT}, not {self.max_retries!r}")

    @classmethod
    def chosen(
        cls,
        base_url: str | None,
        api_key: str | None,
        *,
        timeout_s: float,
        max_retries: int,
        environment: Mapping[str, str],
    ) -> Self:
        """Those of a new client: what is given, or else `TENFOLD_URL` and `TENFOLD_API_KEY`, or else this machine."""
        url = base_url or environment.get("TENFOLD_URL") or bounds.BASE_URL
        key = api_key if api_key is not None else environment.get("TENFOLD_API_KEY", "").strip() or None
        return cls(url.rstrip("/"), key, timeout_s=timeout_s, max_retries=max_retries)

    def changed(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float | None = None,
        max_retries: int | None = None,
    ) -> Self:
        """The same, but for what is given."""
        given: dict[str, Any] = {"base_url": base_url and base_url.rstrip("/"), "api_key": api_key}
        numbers: dict[str, Any] = {"timeout_s": timeout_s, "max_retries": max_retries}
        return replace(self, **{name: value for name, value in (given | numbers).items() if value is not None})


class Context(Generic[F]):
    """What plans are given. The drivers derive from it; a test makes one with a clock and a chance of its own.

    now   seconds on a clock that only moves forward
    draw  a number from 0 to 1
    """

    def __init__(
        self, options: Options, file_type: type[F], now: Callable[[], float], draw: Callable[[], float]
    ) -> None:
        self.options = options
        self.file_type = file_type
        self.now = now
        self.draw = draw
