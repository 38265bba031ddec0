"""Octets that must not be shown, stored or copied by accident, and that are overwritten when they are done with."""

from __future__ import annotations

import hmac
import time
from types import TracebackType
from typing import NoReturn, Self, SupportsIndex


class SecretBytes:
    """Owns one bytearray and wipes it: on `wipe()`, after a `with` block, when its time is over, when collected.

    It shows itself as `<secret 32 B>`, cannot be pickled, copied or written as JSON, and compares in constant time.

    What this does not promise: the interpreter, TLS buffers and the allocator may keep copies that Python code cannot
    reach. Wiping shortens the time a secret lies about; it does not replace a process of its own.
    """

    __slots__ = ("_buffer", "_valid_until")

    def __init__(self, octets: bytes | bytearray, *, valid_s: float | None = None) -> None:
        """Take `octets` over (a bytearray is not copied: it is wiped with this object).

        valid_s  seconds after which the octets can no longer be read; None: as long as the object lives
        """
        self._buffer = octets if isinstance(octets, bytearray) else bytearray(octets)
        self._valid_until = None if valid_s is None else time.monotonic() + valid_s

    @property
    def octets(self) -> bytearray:
        """The buffer itself, not a copy. Raises `ValueError` once it was wiped or its time is over."""
        if self._valid_until is not None and time.monotonic() >= self._valid_until:
            self.wipe()
        if not self._buffer:
            raise ValueError("the secret was wiped")
        return self._buffer

    @property
    def is_wiped(self) -> bool:
        return not self._buffer

    def wipe(self) -> None:
        """Overwrite the octets with zeros and let go of them. Harmless when repeated."""
        wipe(self._buffer)
        self._buffer = bytearray()

    def __len__(self) -> int:
        return len(self._buffer)

    def __repr__(self) -> str:
        return f"<secret {len(self._buffer)} B>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretBytes):
            return NotImplemented
        return hmac.compare_digest(self._buffer, other._buffer)

    __hash__ = None  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a secret is neither copied nor pickled")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wipe()

    def __del__(self) -> None:
        if hasattr(self, "_buffer"):
            self.wipe()


def wipe(buffer: bytearray) -> None:
    """Overwrite a buffer with zeros, in place."""
    buffer[:] = bytes(len(buffer))
