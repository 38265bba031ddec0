"""Where pictures, records and archives lie between two calls: bytes under a random name, for a limited time.

Nothing is held whole in memory, and a file is there entirely or not at all. A store is a place for bytes (`Sink` to
write, a seekable stream to read) and for a small description; counting, hashing and encryption happen here, once, so
that an object store can stand where the folder stands. `shared.localfiles` and `shared.objectfiles` are the two places,
and `shared.filestores` chooses.
"""

from __future__ import annotations

import hashlib
import io
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from shared.filecrypt import FileDamaged as FileDamaged
from shared.filecrypt import SegmentReader, file_cipher
from shared.ids import ordered_id, pattern
from shared.problems import ServiceUnavailable, StorageFull, StoredFileNotFound, UnsupportedMediaType, is_full
from shared.storedfile import FileWriter as FileWriter
from shared.storedfile import Owner as Owner
from shared.storedfile import Sink, moment
from shared.storedfile import StoredFile as StoredFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

NAME_LIMIT = 255
BUFFER_BYTES = 64 * 1024
WHOLE_READ_BYTES = 2**20  # what a read of everything asks for at once
RETRY_S = 5.0  # a store that does not answer is asked again
_ID = re.compile(pattern("file"))
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,63}")


@dataclass(frozen=True)
class FileCensus:
    """How many files a store holds, and bytes with descriptions and unfinished files."""

    count: int
    bytes: int


class FileStore(ABC):
    """A place for files. Whoever calls `open`, `stat` or `extend` with a name that is not there, is no name at all, or
    whose time is over gets `StoredFileNotFound`. A store that does not answer raises `ServiceUnavailable`, one that has
    no room left its subclass `StorageFull`."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now

    def create(
        self,
        owner: Owner,
        media_type: str,
        ttl_s: float,
        *,
        key: bytes | bytearray | None = None,
        name: str | None = None,
    ) -> FileWriter:
        """Begin a file that lives `ttl_s` from its commit.

        key   the 32 bytes of `owner.lease`'s file key; given exactly where `owner.lease` is
        name  what the caller calls the file, kept for downloads; not kept of an encrypted file, because descriptions
              are not encrypted
        """
        if (owner.lease is None) != (key is None):
            raise ValueError("a key and an owner with a lease go together")
        if ttl_s <= 0:
            raise ValueError(f"a file must live for some time, not {ttl_s} s")
        if not _MEDIA_TYPE.fullmatch(media_type):
            raise UnsupportedMediaType(f"{media_type[:80]!r} is not a media type.")
        if name is not None:
            name = "".join(c for c in re.split(r"[/\\]", name)[-1] if c.isprintable())[-NAME_LIMIT:]
        kept = name if name and owner.lease is None else None
        draft = StoredFile(ordered_id("file"), owner, media_type, 0, "", None, None, kept, 0.0, 0.0)
        cipher = None if key is None else file_cipher(key, draft.id)
        return FileWriter(self._sink(draft.id), draft, ttl_s, self._now, cipher)

    def open(self, file_id: str, *, key: bytes | bytearray | None = None) -> BinaryIO:
        """The plain bytes, seekable, in bounded memory. Raises `FileDamaged`, here or while reading.

        Who reads a file from its first byte to its last, in whatever pieces, has read what was written: a plain file is
        compared with its SHA-256 before the last piece is given out, an encrypted one authenticates each segment.
        """
        stored = self.stat(file_id)
        if (stored.owner.lease is None) != (key is None):
            raise ValueError(f"{stored.id} is {'not ' if stored.owner.lease is None else ''}encrypted")
        reader = self._raw(file_id)
        try:
            if key is None:
                size = reader.seek(0, io.SEEK_END)
                reader.seek(0)
                reader = io.BufferedReader(_CheckedReader(reader, stored), BUFFER_BYTES)
            else:
                segments = SegmentReader(reader, file_cipher(key, stored.id))
                size, reader = segments.size, io.BufferedReader(segments, BUFFER_BYTES)
            if size != stored.bytes:
                raise FileDamaged
        except BaseException:
            reader.close()
            raise
        return reader

    @abstractmethod
    def stat(self, file_id: str) -> StoredFile:
        """What is known of the file."""

    @abstractmethod
    def delete(self, file_id: str) -> None:
        """Remove the file. Harmless where there is none."""

    @abstractmethod
    def extend(self, file_id: str, ttl_s: float) -> None:
        """Let the file live at least `ttl_s` from now. Never shortens its time."""

    @abstractmethod
    def sweep(self, now: float | None = None) -> int:
        """Remove files whose time is over, and half-written ones without a writer. Returns how many were removed.

        Any number of processes may sweep at the same time.
        """

    def census(self) -> FileCensus | None:
        """What the store holds; None where counting would mean to list a remote store. Call it seldom."""
        return None

    @abstractmethod
    def check(self) -> None:
        """Raise `ServiceUnavailable` unless the store answers now. Takes seconds at most."""

    @abstractmethod
    def _sink(self, file_id: str) -> Sink:
        """A place for the bytes of a new file."""

    @abstractmethod
    def _raw(self, file_id: str) -> BinaryIO:
        """The bytes as they lie in the store, seekable."""


class _CheckedReader(io.RawIOBase):
    """The bytes of a plain file, compared with its SHA-256 where they are read to the end. Closes `source` as well."""

    def __init__(self, source: BinaryIO, stored: StoredFile) -> None:
        super().__init__()
        self._source = source
        self._stored = stored
        self._digest = hashlib.sha256()
        self._digested = 0
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = self._source.seek(offset, whence)
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._source.read(len(view))
        view[: len(data)] = data
        start, self._position = self._position, self._position + len(data)
        if start <= self._digested < self._position:
            self._digest.update(memoryview(data)[self._digested - start :])
            self._digested = self._position
            if self._digested == self._stored.bytes and self._digest.hexdigest() != self._stored.sha256:
                raise FileDamaged
        return len(data)

    def readall(self) -> bytes:
        return b"".join(iter(partial(self.read, WHOLE_READ_BYTES), b""))

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


def checked_id(file_id: str) -> str:
    """`file_id`, which can be part of a path. Raises `StoredFileNotFound` for anything that is no file's name."""
    if not _ID.fullmatch(file_id):
        raise StoredFileNotFound
    return file_id


def store_problem(done: str, error: OSError) -> ServiceUnavailable:
    """What a caller is told when the store cannot be `done` (read, written …)."""
    said = f"The file store cannot be {done}: {error.strerror}."
    return StorageFull(said) if is_full(error) else ServiceUnavailable(said, retry_after_s=RETRY_S)


class InMemoryFiles(FileStore):
    """For tests: behaves as `LocalFiles` does, keeps nothing."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        super().__init__(now)
        self._lock = threading.Lock()
        self._held: dict[str, tuple[StoredFile, bytes]] = {}

    def stat(self, file_id: str) -> StoredFile:
        return self._get(file_id)[0]

    def delete(self, file_id: str) -> None:
        with self._lock:
            self._held.pop(file_id, None)

    def extend(self, file_id: str, ttl_s: float) -> None:
        stored, data = self._get(file_id)
        self._put(replace(stored, expires_at=max(stored.expires_at, moment(self._now() + ttl_s))), data)

    def sweep(self, now: float | None = None) -> int:
        now = self._now() if now is None else now
        with self._lock:
            over = [name for name, (stored, _) in self._held.items() if stored.expires_at <= now]
            for name in over:
                del self._held[name]
        return len(over)

    def check(self) -> None:
        """Nothing: memory answers."""

    def census(self) -> FileCensus:
        with self._lock:
            return FileCensus(len(self._held), sum(len(data) for _, data in self._held.values()))

    def _sink(self, file_id: str) -> Sink:
        return _MemorySink(self._put)

    def _raw(self, file_id: str) -> BinaryIO:
        return io.BytesIO(self._get(file_id)[1])

    def _put(self, stored: StoredFile, data: bytes) -> None:
        with self._lock:
            self._held[stored.id] = stored, data

    def _get(self, file_id: str) -> tuple[StoredFile, bytes]:
        with self._lock:
            stored, data = self._held.get(file_id, (None, b""))
        if stored is None or stored.expires_at <= self._now():
            raise StoredFileNotFound
        return stored, data


class _MemorySink:
    def __init__(self, put: Callable[[StoredFile, bytes], None]) -> None:
        self._put = put
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        self._data += data

    def commit(self, stored: StoredFile) -> None:
        self._put(stored, bytes(self._data))

    def abort(self) -> None:
        self._data.clear()
