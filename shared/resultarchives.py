"""The archive in which the results of an archive come back: files, and `results.jsonl` with one line an entry.

{"id": "cat/1.png", "path": "cat/1.png", "result": {…}}
{"id": "s2", "paths": {"audio": "2.wav", "visual": null}, "error": {"code": "image_unreadable", …}}
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import TracebackType
from typing import IO, Any, Protocol, Self, cast

from shared.archives import safe_path
from shared.manifests import SINGLE, Entry
from shared.problems import ArchiveUnsafe, Problem

MEDIA_TYPE = "application/zip"
RESULTS = "results.jsonl"
_PACKED = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gz", ".zip"})  # deflating them again gains nothing
_EPOCH = (1980, 1, 1, 0, 0, 0)  # no time: the same results are the same bytes


class Target(Protocol):
    """Where the archive goes: written from start to end, never sought in. `FileWriter` is one."""

    def write(self, data: bytes, /) -> object: ...
    def flush(self) -> object: ...


class ResultArchive:
    """A zip being written. Entries may be finished in any order; `results.jsonl`, last, has them in the input's.

    Use it as a context manager: leaving without an error writes the results and ends the zip, and raises `ValueError`
    if one of the entries has none. Only the lines of `results.jsonl` are held in memory.
    """

    def __init__(self, target: Target, entries: int) -> None:
        self._zip = zipfile.ZipFile(cast("IO[bytes]", target), "w", zipfile.ZIP_DEFLATED)
        self._entries = entries
        self._lines: dict[int, str] = {}
        self._paths: set[str] = {RESULTS}

    def add(self, entry: Entry, result: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> None:
        """The result of one entry, and the files that belong to it, by their path in the archive."""
        for path, data in (files or {}).items():
            self._write(path, data)
        self._line(entry, {"result": dict(result)})

    def fail(self, entry: Entry, problem: Problem) -> None:
        """An entry that has no result, and why."""
        self._line(entry, {"error": problem.body()})

    def _line(self, entry: Entry, outcome: Mapping[str, Any]) -> None:
        if entry.index in self._lines or not 0 <= entry.index < self._entries:
            raise ValueError(f"entry {entry.index} of {self._entries} has a result already, or does not exist")
        paths = {SINGLE: entry.paths[SINGLE]} if SINGLE in entry.paths else {"paths": dict(entry.paths)}
        self._lines[entry.index] = json.dumps({"id": entry.id, **paths, **outcome}, ensure_ascii=False)

    def _write(self, path: str, data: bytes) -> None:
        try:
            is_new = safe_path(path) == path and path not in self._paths
        except ArchiveUnsafe:
            is_new = False
        if not is_new:
            raise ValueError(f"{path!r} is no path for a file, or comes twice")
        self._paths.add(path)
        info = zipfile.ZipInfo(path, _EPOCH)
        info.create_system = 3  # Unix, wherever this runs
        info.external_attr = 0o644 << 16
        # Level 0 is still deflate: readers that stream refuse an entry that is stored and has its length behind it.
        level = 0 if PurePosixPath(path).suffix.lower() in _PACKED else 6
        self._zip.writestr(info, data, zipfile.ZIP_DEFLATED, level)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        else:
            self._zip.fp = None  # or its finalizer would end it, and an unfinished zip must not look finished

    def _finish(self) -> None:
        missing = [index for index in range(self._entries) if index not in self._lines]
        if missing:
            raise ValueError(f"{len(missing)} entries have no result, the first is {missing[0]}")
        self._paths.discard(RESULTS)
        self._write(RESULTS, "".join(f"{self._lines[index]}\n" for index in range(self._entries)).encode())
        self._zip.close()
