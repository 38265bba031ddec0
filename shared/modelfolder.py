"""A model on disk: its folder of weights, its digest, and the numbered versions of one name beside each other."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.problems import ServiceUnavailable, WeightsDamaged

CARD, FIGURES, LICENCE = "MODEL_CARD.md", "evaluate.json", "LICENSE"
_ABOUT = frozenset({CARD, FIGURES, LICENCE, "README.md"})  # beside the weights, not part of what computes


def folders_in(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, by path, but those whose name, or a folder's on the way, begins with a dot."""
    found = (path for path in folder.rglob("*") if path.is_file())
    shown = (path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(shown, key=Path.as_posix)


def digest_of(folder: Path) -> str:
    """SHA-256 (hex) over what computes: all files of a model but hidden ones and those that only describe it.

    Hashed are, for each file in the order of its path: the path from `folder` on, a zero byte, the file's SHA-256.
    """
    total = hashlib.sha256()
    for path in files_of(folder):
        relative = path.relative_to(folder).as_posix()
        if relative not in _ABOUT:
            with path.open("rb") as stream:
                total.update(relative.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def versions_in(home: Path) -> tuple[int, ...]:
    return tuple(sorted(int(path.name) for path in folders_in(home) if re.fullmatch("[1-9][0-9]*", path.name)))


def state_of(home: Path) -> dict[str, int | None]:
    """`last`: the highest version ever given; `current`: the one that a rollback chose."""
    known = read_json(home / "state.json")
    return {"last": known.get("last"), "current": known.get("current")}


def write_state(home: Path, *, last: int, current: int | None) -> None:
    part = home / ".state.part"  # under the lock: nobody else writes it
    write_durably(part, json.dumps({"last": last, "current": current}).encode())
    part.rename(home / "state.json")


def write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def copy_files(source: Path, target: Path) -> None:
    files = files_of(source) if source.is_dir() else []
    if not files:
        raise ValueError(f"{source} holds no files")
    for path in files:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as reader, copy.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())


def text_of(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def licence_of(folder: Path) -> str | None:
    lines = (text_of(folder / LICENCE) or "").split("\n")
    return next((line.strip() for line in lines if line.strip()), None)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file."""
    text = text_of(path)
    try:
        known = json.loads(text) if text is not None else {}
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise WeightsDamaged(f"{path.name} of the model is not a JSON object.")
    return known


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """One process at a time changes the versions of a name. The lock ends with the process."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServiceUnavailable(f"The model store does not answer: {error.strerror}.") from error
