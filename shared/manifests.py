"""What an archive's files are: its `manifest.jsonl`, or else the names of its folders.

A manifest has one JSON object a line:

    {"path": "a/1.png", "label": "cat", "split": "train", "group": "…", "approach": "…", "id": "…"}
    {"audio": "1.wav", "visual": "1.jpg", "label": "joy"}      one path a modality; null: this sample has none

Only the paths are demanded. Paths start where the manifest lies: at the top, or in the one folder that holds
everything. Without a manifest every file is an entry, and the folder that it lies in is its label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.archives import FILE_LIMIT, Archive, safe_path
from shared.problems import ArchiveUnsafe, InvalidRequest, Problem

MANIFEST = "manifest.jsonl"
MANIFEST_LIMIT_BYTES = 32 * 2**20
SINGLE = "path"
_TEXTS = ("id", "label", "split", "group", "approach")


@dataclass(frozen=True)
class Entry:
    """One sample of an archive, in the order of its manifest or of the archive.

    id     the manifest's, or the (first) path, or the number of its line: what results name it by
    paths  where its files lie in the archive, by modality; the only one of a sample is called "path"
    error  what is wrong with this entry; the others are not touched by it
    """

    index: int
    id: str
    paths: Mapping[str, str | None]
    label: str | None = None
    split: str | None = None
    group: str | None = None
    approach: str | None = None
    error: Problem | None = None

    @property
    def path(self) -> str:
        """Where the only file of a sample of one modality lies."""
        path = self.paths.get(SINGLE)
        if path is None:
            raise InvalidRequest(f"The entry {self.id} has no path; it has {', '.join(self.paths) or 'nothing'}.")
        return path


def entries_of(archive: Archive) -> list[Entry]:
    """The samples of an archive. A wrong line becomes an entry with its `error`.

    Raises `ArchiveUnsafe` for a manifest without a line or with more than `FILE_LIMIT`, and `BodyTooLarge` for one of
    more than `MANIFEST_LIMIT_BYTES`.
    """
    place = _manifest_place(archive.paths)
    if place is None:
        return [_of_folder(index, path) for index, path in enumerate(archive.paths)]
    text = archive.read(place + MANIFEST, MANIFEST_LIMIT_BYTES).removeprefix(b"\xef\xbb\xbf")
    lines = [(number, line) for number, line in enumerate(text.split(b"\n"), start=1) if line.strip()]
    if not 0 < len(lines) <= FILE_LIMIT:
        raise ArchiveUnsafe(f"The manifest has {len(lines)} lines; it may have 1 to {FILE_LIMIT}.")
    known = frozenset(archive.paths)
    return [_of_line(index, number, line, place, known) for index, (number, line) in enumerate(lines)]


def _manifest_place(paths: tuple[str, ...]) -> str | None:
    """The folder of the manifest, with its slash: "" for the top."""
    if MANIFEST in paths:
        return ""
    top = paths[0].partition("/")[0] + "/"
    return top if top + MANIFEST in paths and all(path.startswith(top) for path in paths) else None


def _of_folder(index: int, path: str) -> Entry:
    folder = path.rpartition("/")[0]
    return Entry(index, path, {SINGLE: path}, label=folder.rpartition("/")[2] or None)


def _of_line(index: int, number: int, line: bytes, place: str, known: frozenset[str]) -> Entry:
    name = f"line {number}"
    try:
        row = json.loads(line.decode())
        if not isinstance(row, dict):
            raise ValueError("is not a JSON object")
        texts = {key: _text(key, row[key]) for key in _TEXTS if row.get(key) is not None}
        name = texts.get("id", name)
        others = sorted(row.keys() - {SINGLE, *_TEXTS})
        if SINGLE in row and others:
            raise ValueError(f"has a {SINGLE} and also {', '.join(others)[:120]}")
        paths = {key: _path(key, value, place, known) for key, value in row.items() if key not in _TEXTS}
        first = next((path for path in paths.values() if path is not None), None)
        if first is None:
            raise ValueError("names no file")
    except (ValueError, RecursionError, ArchiveUnsafe) as error:
        message = f"Line {number} of the manifest: {error}"
        problem = InvalidRequest(
            message, errors=[{"place": f"{MANIFEST}:{number}", "message": str(error), "kind": "row"}]
        )
        return Entry(index, name, {}, error=problem)
    label, split, group, approach = (texts.get(key) for key in ("label", "split", "group", "approach"))
    return Entry(index, texts.get("id", first), paths, label, split, group, approach)


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{key} is {json.dumps(value)[:40]}, not a text or a whole number")
    return str(value)


def _path(key: str, value: Any, place: str, known: frozenset[str]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{key} is {json.dumps(value)[:40]}, not a path")
    path = place + safe_path(value)
    if path not in known:
        raise ValueError(f"{key}: there is no file {value[:120]!r} in the archive")
    return path
