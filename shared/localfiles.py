"""The file store in a folder: one machine, or a volume that several mount."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO

from shared.files import BUFFER_BYTES, FileCensus, FileDamaged, FileStore, checked_id, store_problem
from shared.problems import StoredFileNotFound
from shared.storedfile import Owner, Sink, StoredFile, moment

ABANDONED_AFTER_S = 3600.0  # a half-written file that nobody wrote to for this long has lost its writer
CHECK_BYTES = 4096  # one block


class LocalFiles(FileStore):
    """Files in a folder, which several processes and containers may share.

    A file is `<two last characters of its id>/<id>` and its description `<id>.json` beside it; it exists once the
    description does, which is renamed into place last and removed first. The description's modification time is when
    the file expires: a sweep looks at names and times and opens nothing. Copy the folder with times kept.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        super().__init__(now)
        self._folder = folder

    def stat(self, file_id: str) -> StoredFile:
        with _errors("read"), _existing(_description(self._path(file_id))) as stream:
            expires_at = os.fstat(stream.fileno()).st_mtime_ns / 10**9
            text = stream.read()
        if expires_at <= self._now():
            raise StoredFileNotFound
        try:
            fields = json.loads(text)
            return StoredFile(**{**fields, "owner": Owner(**fields["owner"]), "expires_at": expires_at})
        except (ValueError, TypeError, KeyError) as error:
            raise FileDamaged from error

    def delete(self, file_id: str) -> None:
        with contextlib.suppress(StoredFileNotFound), _errors("changed"):
            _remove(self._path(file_id))

    def extend(self, file_id: str, ttl_s: float) -> None:
        path = self._path(file_id)
        stored = self.stat(file_id)
        expires_at = moment(self._now() + ttl_s)
        if expires_at <= stored.expires_at:
            return
        with _errors("changed"):
            # Not utime: only the user who made a file may set its time, and API and worker may be two.
            _write_description(path, replace(stored, expires_at=expires_at))
            if not path.exists():  # deleted meanwhile: its description must not come back
                _remove(path)
                raise StoredFileNotFound

    def sweep(self, now: float | None = None) -> int:
        now = self._now() if now is None else now
        with _errors("swept"):
            return sum(_sweep_shard(shard.path, now) for shard in _entries(self._folder))

    def check(self) -> None:
        with _errors("written"):
            probe = self._folder / "check" / f"{os.urandom(6).hex()}.part"  # a sweep looks there as everywhere
            probe.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
            try:
                with _new_file(probe) as file:  # a full disk still makes empty files
                    _write_all(file, bytes(CHECK_BYTES))
            finally:
                probe.unlink(missing_ok=True)

    def census(self) -> FileCensus:
        with _errors("read"):
            shards = [_shard_census(shard.path) for shard in _entries(self._folder)]
        return FileCensus(sum(one.count for one in shards), sum(one.bytes for one in shards))

    def _path(self, file_id: str) -> Path:
        return self._folder / checked_id(file_id)[-2:] / file_id

    def _sink(self, file_id: str) -> Sink:
        return _FolderSink(self._path(file_id))

    def _raw(self, file_id: str) -> BinaryIO:
        with _errors("read"):
            return _existing(self._path(file_id))


class _FolderSink:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        with _errors("written"):
            path.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
            self._file = _new_file(self._part)

    def write(self, data: bytes) -> None:
        with _errors("written"):
            _write_all(self._file, data)

    def commit(self, stored: StoredFile) -> None:
        with _errors("written"):
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.rename(self._path)
            _write_description(self._path, stored)

    def abort(self) -> None:
        with contextlib.suppress(OSError):  # what cannot be removed now, a sweep will remove
            self._file.close()
            self._part.unlink(missing_ok=True)
            _remove(self._path)


def _description(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _new_file(path: Path) -> io.FileIO:
    """A file for user and group that did not exist before, unbuffered: what `write` did not refuse is written."""
    return io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660), "wb")


def _write_all(file: io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]  # a disk that is almost full takes a part, and raises at the next


def _write_description(path: Path, stored: StoredFile) -> None:
    """Put a file's description in place, whole: what was there before is replaced.

    The folder is not synced, which would make each file a third slower (12 instead of 8 ms): power that fails within
    the file system's commit interval can take the newest files, as it can take the newest jobs, never a part of one.
    """
    fields = asdict(stored)
    del fields["expires_at"]
    part = path.with_name(f"{path.name}.{os.urandom(6).hex()}.part")  # two may extend the same file
    try:
        with _new_file(part) as file:
            _write_all(file, json.dumps(fields).encode())
            expires_ns = round(stored.expires_at * 1000) * 10**6
            os.utime(file.fileno(), ns=(expires_ns, expires_ns))
            os.fsync(file.fileno())
        part.rename(_description(path))
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _remove(path: Path) -> None:
    _description(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _sweep_shard(folder: str, now: float) -> int:
    """Remove what is over in one folder. Returns how many files that was; pieces without a description count too."""
    entries = _entries(folder)
    described = {entry.name.removesuffix(".json") for entry in entries if entry.name.endswith(".json")}
    removed = 0
    for entry in entries:
        if entry.name in described:
            continue  # bytes that belong to a description
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            stat = entry.stat()
            if entry.name.endswith(".json"):
                if stat.st_mtime <= now:
                    _remove(Path(entry.path.removesuffix(".json")))
                    removed += 1
            elif stat.st_ctime + ABANDONED_AFTER_S <= now:  # st_mtime of a new description is its expiry already
                Path(entry.path).unlink()
                removed += 1
    return removed


def _shard_census(folder: str) -> FileCensus:
    count = size = 0
    for entry in _entries(folder):
        with contextlib.suppress(FileNotFoundError):
            size += entry.stat().st_size
            count += entry.name.endswith(".json")
    return FileCensus(count, size)


def _existing(path: Path) -> BinaryIO:
    try:
        return path.open("rb", buffering=BUFFER_BYTES)
    except FileNotFoundError:
        raise StoredFileNotFound from None


@contextlib.contextmanager
def _errors(done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise store_problem(done, error) from error
