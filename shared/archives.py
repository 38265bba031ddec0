"""Archives of pictures and the like, read without ever unpacking one, and the archives that results come back in.

Accepted are zip and tar, plain or with gzip, of plain files: no links, no devices, no encryption, no path that is
absolute, leads upwards or comes twice, at most `FILE_LIMIT` files and `BYTES_LIMIT` bytes unpacked. Whatever breaks a
rule makes the whole archive `ArchiveUnsafe`, before any of it is used. A damaged file in a sound archive is the problem
of that file alone.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import secrets
import stat
import struct
import tarfile
import tempfile
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, Self, cast

from shared.filecrypt import KEY_BYTES, SegmentEncryptor, SegmentReader, file_cipher
from shared.problems import ArchiveUnsafe, BodyTooLarge, ServiceUnavailable

FILE_LIMIT = 20_000
BYTES_LIMIT = 4 * 2**30
MEMBER_LIMIT_BYTES = 64 * 2**20  # of one file that is read whole; as large as a request body
PATH_LIMIT = 1024

_ENTRIES_PER_FILE = 2  # folders have entries of their own
_READ_LIMIT_BYTES = 32 * 2**20  # a directory of 20,000 long names; a larger read is an attack on memory
_TAR_OVERHEAD_BYTES = 4096  # a file's headers and padding
_IN_MEMORY_BYTES = 16 * 2**20
_COPY_BYTES = 1 << 20
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_GZIP_START = b"\x1f\x8b"
_TAR_MARK_AT, _TAR_MARK = 257, b"ustar"
_ENCRYPTED = 0x1  # flag of a zip entry
# What the standard library raises on damaged archives, besides its own errors.
_FORMAT_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    ValueError,
    LookupError,
    OverflowError,
    RuntimeError,  # NotImplementedError, RecursionError: what no honest archive asks for
    struct.error,
)


class Archive:
    """An opened archive. Threads may read from it at the same time. Closing it leaves the stream open.

    paths  the files in the order of the archive, `/` between parts, in Unicode's NFC. Hidden ones, whose name or a
           folder's on the way begins with a dot or is `__MACOSX`, count for the limits and are left out
    """

    def __init__(self, members: dict[str, tuple[int, Callable[[], bytes]]], close: Callable[[], None]) -> None:
        self._members = members
        self._close = close
        self.paths = tuple(members)

    def read(self, path: str, limit_bytes: int = MEMBER_LIMIT_BYTES) -> bytes:
        """One file, whole.

        Raises `BodyTooLarge` beyond `limit_bytes`, `ArchiveUnsafe` for a file that is damaged, and `KeyError` for one
        that is not among `paths`.
        """
        size, read = self._members[path]
        if size > limit_bytes:
            raise BodyTooLarge(f"{path} has {size} bytes; it may have {limit_bytes}.", limit_bytes=limit_bytes)
        with _format_errors(f"{path} cannot be read"):
            data = read()
            if len(data) != size:
                raise ValueError(f"it has {len(data)} bytes and should have {size}")
        return data

    def size(self, path: str) -> int:
        """How many bytes a file has, unpacked."""
        return self._members[path][0]

    def close(self) -> None:
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def kind_of(stream: BinaryIO) -> str | None:
    """The media type of an archive, from its head alone; None where it is none. An old tar without a mark is none."""
    head = stream.read(_TAR_MARK_AT + len(_TAR_MARK))
    if head.startswith(_ZIP_STARTS):
        return "application/zip"
    if head.startswith(_GZIP_START):
        return "application/gzip"
    return "application/x-tar" if head[_TAR_MARK_AT:] == _TAR_MARK else None


def open_archive(
    stream: BinaryIO,
    *,
    file_limit: int = FILE_LIMIT,
    bytes_limit: int = BYTES_LIMIT,
    scratch: Path | None = None,
) -> Archive:
    """Open a seekable stream as an archive, checked as a whole. Raises `ArchiveUnsafe`.

    What gzip packed is unpacked once, into memory or a file without a name in the folder `scratch`, encrypted under a
    key that only this process has; a full disk is `ServiceUnavailable`.
    """
    with _format_errors("The archive cannot be read"):
        stream.seek(0)
        start = stream.read(4)
        if start in _ZIP_STARTS:
            return _open_zip(stream, _Rules(file_limit, bytes_limit))
        if start.startswith(_GZIP_START):
            unpacked = _unpacked(stream, bytes_limit + file_limit * _TAR_OVERHEAD_BYTES, scratch)
            try:
                return _open_tar(unpacked, _Rules(file_limit, bytes_limit), unpacked.close)
            except BaseException:
                unpacked.close()
                raise
        return _open_tar(stream, _Rules(file_limit, bytes_limit), lambda: None)


def safe_path(name: str) -> str:
    """The path as this module writes it. Raises `ArchiveUnsafe` unless it stays below the folder it is put into."""
    path = unicodedata.normalize("NFC", name).removeprefix("./").rstrip("/")
    parts = path.split("/")
    if (
        not path
        or len(path) > PATH_LIMIT
        or not path.isprintable()  # control characters, and bytes that are no text
        or "\\" in path
        or re.match(r"[A-Za-z]:", path)
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise ArchiveUnsafe(f"The path {name[:120]!r} is not accepted.")
    return path


class _Rules:
    """Counts what an archive declares, entry by entry."""

    def __init__(self, file_limit: int, bytes_limit: int) -> None:
        self._file_limit = file_limit
        self._bytes_limit = bytes_limit
        self._entries = 0
        self._bytes = 0
        self._seen: set[str] = set()

    def take(self, name: str, size: int, *, is_folder: bool) -> str | None:
        """Check one entry. Returns the path of a file that is shown, else None."""
        self._entries += 1
        if self._entries > self._file_limit * _ENTRIES_PER_FILE:
            raise ArchiveUnsafe(f"The archive has more than {self._file_limit * _ENTRIES_PER_FILE} entries.")
        if is_folder:
            if name not in ("", ".", "./"):
                safe_path(name)
            return None
        path = safe_path(name)
        if path in self._seen:
            raise ArchiveUnsafe(f"The path {path[:120]!r} comes twice.")
        self._seen.add(path)
        self._bytes += size
        if len(self._seen) > self._file_limit:
            raise ArchiveUnsafe(f"The archive has more than {self._file_limit} files.")
        if self._bytes > self._bytes_limit:
            raise ArchiveUnsafe(f"The archive has more than {self._bytes_limit} bytes unpacked.")
        return None if any(part.startswith(".") or part == "__MACOSX" for part in path.split("/")) else path


class _Guarded(io.RawIOBase):
    """A stream for code that believes what an archive says: no read larger than any honest archive needs."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream

    def read(self, count: int = -1, /) -> bytes:
        if count > _READ_LIMIT_BYTES:
            raise ValueError(f"a part of it has {count} bytes")
        data = self._stream.read(count if count >= 0 else _READ_LIMIT_BYTES + 1)
        if len(data) > _READ_LIMIT_BYTES:
            raise ValueError(f"a part of it has more than {_READ_LIMIT_BYTES} bytes")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET and offset < 0:
            raise ValueError(f"a part of it lies at byte {offset}")
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _open_zip(stream: BinaryIO, rules: _Rules) -> Archive:
    archive = zipfile.ZipFile(cast("IO[bytes]", _Guarded(stream)))
    members: dict[str, tuple[int, Callable[[], bytes]]] = {}
    for info in archive.infolist():
        name = info.orig_filename  # `filename` ends at a zero byte, and would hide what follows
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ArchiveUnsafe(f"{name[:120]!r} is no plain file.")
        if info.flag_bits & _ENCRYPTED:
            raise ArchiveUnsafe(f"{name[:120]!r} is encrypted.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveUnsafe(
                f"{name[:120]!r} is packed by method {info.compress_type}; stored and deflated are read."
            )
        path = rules.take(name, info.file_size, is_folder=info.is_dir())
        if path is not None:
            members[path] = info.file_size, partial(_zip_member, archive, info)
    return _not_empty(members, archive.close)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A file whose CRC is right. In pieces: `archive.read` inflates whatever comes, and cuts it to size afterwards."""
    with archive.open(info) as member:
        return b"".join(iter(partial(member.read, _COPY_BYTES), b""))


def _open_tar(stream: BinaryIO, rules: _Rules, close: Callable[[], None]) -> Archive:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    lock = threading.Lock()

    def read(offset: int, count: int) -> bytes:
        with lock:
            stream.seek(offset)
            return stream.read(count)

    members: dict[str, tuple[int, Callable[[], bytes]]] = {}
    with tarfile.open(fileobj=cast("IO[bytes]", _Guarded(stream)), mode="r:") as archive:
        for info in archive:
            if not (info.isdir() or info.isreg()) or info.issparse():
                raise ArchiveUnsafe(f"{info.name[:120]!r} is no plain file.")
            if info.size < 0 or info.offset_data + info.size > size:
                raise ArchiveUnsafe(f"The archive ends within {info.name[:120]!r}.")
            path = rules.take(info.name, info.size, is_folder=info.isdir())
            if path is not None:
                members[path] = info.size, partial(read, info.offset_data, info.size)
        end = read(archive.offset, tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):  # the reader takes damage, and a missing rest, for the end
        raise ArchiveUnsafe(f"The archive is damaged or cut off behind {len(members)} files.")
    return _not_empty(members, close)


def _not_empty(members: dict[str, tuple[int, Callable[[], bytes]]], close: Callable[[], None]) -> Archive:
    if not members:
        raise ArchiveUnsafe("The archive holds no files.")
    return Archive(members, close)


def _unpacked(stream: BinaryIO, limit: int, scratch: Path | None) -> BinaryIO:
    """What gzip packed, seekable. A tar in gzip has no other way to its files than through all before them."""
    cipher = file_cipher(secrets.token_bytes(KEY_BYTES), "")  # it may hold faces: never plain on a disk
    folder = None if scratch is None else str(scratch)
    with contextlib.ExitStack() as opened:
        sealed = opened.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES, dir=folder))

        def write(piece: bytes) -> None:
            try:
                sealed.write(piece)
            except OSError as error:
                raise ServiceUnavailable(f"There is no room to unpack the archive: {error.strerror}.") from error

        encryptor = SegmentEncryptor(cipher, write)
        stream.seek(0)
        total = 0
        with gzip.GzipFile(fileobj=stream, mode="rb") as packed:
            while piece := _next_piece(packed):
                total += len(piece)
                if total > limit:
                    raise ArchiveUnsafe(f"The archive has more than {limit} bytes unpacked.")
                encryptor.write(piece)
        encryptor.finish()
        reader = io.BufferedReader(SegmentReader(cast("BinaryIO", sealed), cipher))
        opened.pop_all()  # the reader closes it from now on
        return reader


def _next_piece(packed: gzip.GzipFile) -> bytes:
    try:
        return packed.read(_COPY_BYTES)
    except gzip.BadGzipFile as error:  # an OSError, and those mean the disk
        raise ValueError(str(error)) from error


@contextlib.contextmanager
def _format_errors(what: str) -> Iterator[None]:
    try:
        yield
    except _FORMAT_ERRORS as error:
        raise ArchiveUnsafe(f"{what}: {error}.") from error
    except OSError as error:
        raise ServiceUnavailable(f"{what}: {error.strerror}.") from error
