"""A stored file: whose it is, what is known of it, and how one is written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol, Self

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.filecrypt import SegmentEncryptor


@dataclass(frozen=True)
class Owner:
    """Whose file it is. With `principal` and `scope`: only that principal's, and only while it holds that scope."""

    tenant: str
    principal: str | None = None
    scope: str | None = None
    lease: str | None = None
    """The bytes are encrypted under this lease's file key."""
    made_by: str | None = None
    """The principal for whom the bytes count, whoever may see them; None: for nobody."""


@dataclass(frozen=True)
class StoredFile:
    """What is known of a file. Times are seconds since the epoch; `bytes` and `sha256` (hex) are of the plain bytes."""

    id: str
    owner: Owner
    media_type: str
    bytes: int
    sha256: str
    width: int | None
    height: int | None
    name: str | None
    created_at: float
    expires_at: float

    def visible_to(self, tenant: str, principal: str, scopes: Collection[str]) -> bool:
        """Whether this caller may know of the file at all. To everyone else it does not exist."""
        return (
            tenant == self.owner.tenant
            and self.owner.principal in (None, principal)
            and (self.owner.scope is None or self.owner.scope in scopes)
        )

    def public(self) -> dict[str, Any]:
        """The object that stands for the file in results. `width` and `height` only where they are known."""
        size = {} if self.width is None else {"width": self.width, "height": self.height}
        return {
            "file": self.id,
            "url": f"/v1/files/{self.id}",
            "media_type": self.media_type,
            "bytes": self.bytes,
            "sha256": self.sha256,
            **size,
        }


class Sink(Protocol):
    """Where one new file's bytes go."""

    def write(self, data: bytes) -> None: ...

    def commit(self, stored: StoredFile) -> None:
        """Make the file appear, whole. After a failure nothing of it is left."""

    def abort(self) -> None:
        """Remove what was written. Harmless when repeated."""


class FileWriter:
    """A file being written. It exists for others once `commit` has returned; leaving the block before removes it.

    Raises `ServiceUnavailable` where the store cannot take more.
    """

    def __init__(
        self, sink: Sink, draft: StoredFile, ttl_s: float, now: Callable[[], float], cipher: AESGCM | None
    ) -> None:
        self._sink = sink
        self._draft = draft
        self._ttl_s = ttl_s
        self._now = now
        self._digest = hashlib.sha256()
        self._count = 0
        self._open = True
        self._encryptor: SegmentEncryptor | None = None
        if cipher:
            try:
                self._encryptor = SegmentEncryptor(cipher, sink.write)
            except BaseException:
                sink.abort()
                raise

    @property
    def id(self) -> str:
        """The name that the file will have."""
        return self._draft.id

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append to the file. Returns how many bytes were taken: all of them."""
        if not self._open:
            raise ValueError(f"{self.id} is closed")
        data = bytes(data)
        try:
            if self._encryptor:
                self._encryptor.write(data)
            else:
                self._sink.write(data)
        except BaseException:
            self.abort()  # or a later commit would make a file with a hole
            raise
        self._digest.update(data)
        self._count += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing: a file appears as a whole. Here for those who write to any stream."""

    def commit(self, width: int | None = None, height: int | None = None) -> StoredFile:
        """Make the file appear. `width` and `height` are those of a picture, upright, in pixels."""
        if not self._open:
            raise ValueError(f"{self.id} is closed")
        now = self._now()
        stored = replace(
            self._draft,
            bytes=self._count,
            sha256=self._digest.hexdigest(),
            width=width,
            height=height,
            created_at=now,
            expires_at=moment(now + self._ttl_s),
        )
        try:
            if self._encryptor:
                self._encryptor.finish()
            self._sink.commit(stored)
        except BaseException:
            self.abort()
            raise
        self._open = False
        return stored

    def abort(self) -> None:
        """Remove what was written so far. Harmless after `commit` and when repeated."""
        if self._open:
            self._open = False
            self._sink.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def moment(time_s: float) -> float:
    """To the millisecond, so that a time comes back from a file system as it went in."""
    return round(time_s, 3)
