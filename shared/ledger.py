"""How many bytes each principal has stored: every file that it made, from the moment it is there to its end.

The ledger is an index of the store by principal and expiry, kept in broker Redis beside it. Nothing has to run for a
file that expires to stop counting, and an entry cannot outlive its file by more than the store's own sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import BinaryIO, Self

import redis
import structlog
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from shared import limits
from shared.files import FileCensus, FileStore, StoredFile
from shared.limits import Limits
from shared.problems import ServiceUnavailable, StoredFileNotFound
from shared.storedfile import Sink

_SCRIPT = limits.LUA + files("shared").joinpath("ledger.lua").read_text()

log = structlog.get_logger()


class Ledger:
    """Entries about stored files. Safe for use by many threads."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_connect_timeout=2,
            socket_timeout=5,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 3),
        )
        self._script = self._redis.register_script(_SCRIPT)

    def add(self, stored: StoredFile, ttl_s: float, limit_bytes: int) -> None:
        """Count a file for who made it. Raises `QuotaExceeded` where that would be more than `limit_bytes` (0: any)."""
        wait_ms = self._change("add", stored, ttl_s, limit_bytes)
        if wait_ms:
            raise limits.too_much(limits.BYTES, Limits(stored_bytes=limit_bytes), wait_ms / 1000)

    def extend(self, stored: StoredFile, ttl_s: float) -> None:
        """Let a file count for at least `ttl_s` from now."""
        self._change("extend", stored, ttl_s)

    def drop(self, stored: StoredFile) -> None:
        """Count a file no longer. Harmless when repeated."""
        self._change("drop", stored)

    def close(self) -> None:
        self._redis.close()

    def _change(self, change: str, stored: StoredFile, ttl_s: float = 0, limit_bytes: int = 0) -> int:
        if stored.owner.made_by is None:
            return 0
        arguments: list[str | int] = [change, stored.id, stored.bytes, max(1, round(ttl_s * 1000)), limit_bytes]
        try:
            return int(self._script(keys=[limits.prefix(stored.owner.made_by)], args=arguments))
        except RedisError as error:
            if limit_bytes:
                raise ServiceUnavailable("The store of limits does not answer.", retry_after_s=2) from error
            # What is not counted harms nobody but the operator, and at most until the file expires.
            log.warning("ledger.unreachable", change=change, file=stored.id, error=str(error))
            return 0


class CountedFiles(FileStore):
    """A file store whose files are counted for who made them."""

    def __init__(self, files: FileStore, ledger: Ledger, limit_bytes: int = 0, room_bytes: int | None = None) -> None:
        super().__init__(files._now)
        self._files = files
        self._ledger = ledger
        self._limit_bytes = limit_bytes
        self._room_bytes = room_bytes

    def within(self, limit_bytes: int, room_bytes: int | None = None) -> Self:
        """The same store for a principal that may store `limit_bytes` in all (0: any number).

        A file that would be beyond it raises `QuotaExceeded` and is not there.

        room_bytes  what is known to be free: a file that grows beyond is given up before it is complete
        """
        return type(self)(self._files, self._ledger, limit_bytes, room_bytes if limit_bytes else None)

    def close(self) -> None:
        """Let go of the ledger."""
        self._ledger.close()

    def stat(self, file_id: str) -> StoredFile:
        return self._files.stat(file_id)

    def delete(self, file_id: str) -> None:
        try:
            stored = self._files.stat(file_id)
        except StoredFileNotFound:
            self._files.delete(file_id)  # what is left of one whose time is over
            return
        self._files.delete(file_id)
        self._ledger.drop(stored)

    def extend(self, file_id: str, ttl_s: float) -> None:
        self._files.extend(file_id, ttl_s)
        self._ledger.extend(self._files.stat(file_id), ttl_s)

    def sweep(self, now: float | None = None) -> int:
        return self._files.sweep(now)

    def census(self) -> FileCensus | None:
        return self._files.census()

    def check(self) -> None:
        self._files.check()

    def _sink(self, file_id: str) -> Sink:
        return _CountedSink(self._files._sink(file_id), self._count, self._limit_bytes, self._room_bytes)

    def _count(self, stored: StoredFile) -> None:
        try:
            self._ledger.add(stored, stored.expires_at - self._now(), self._limit_bytes)
        except BaseException:
            self._files.delete(stored.id)
            raise

    def _raw(self, file_id: str) -> BinaryIO:
        return self._files._raw(file_id)


class _CountedSink:
    def __init__(
        self, sink: Sink, count: Callable[[StoredFile], None], limit_bytes: int, room_bytes: int | None
    ) -> None:
        self._sink = sink
        self._count = count
        self._limit_bytes = limit_bytes
        self._room_bytes = room_bytes
        self._written_bytes = 0

    def write(self, data: bytes) -> None:
        self._written_bytes += len(data)
        if self._room_bytes is not None and self._written_bytes > self._room_bytes:
            raise limits.too_much(limits.BYTES, Limits(stored_bytes=self._limit_bytes), None)
        self._sink.write(data)

    def commit(self, stored: StoredFile) -> None:
        self._sink.commit(stored)
        self._count(stored)

    def abort(self) -> None:
        self._sink.abort()
