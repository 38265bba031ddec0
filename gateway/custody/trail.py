"""Reading the audit trail: its entries, its end, and whether it is what was written.

Files are named by day and sort as the chain runs. A line is the event's text, a tab and the chain's MAC in hex.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.keyderivation import CHAIN_START, chain_mac
from shared.problems import AuditUnavailable
from shared.secretbytes import SecretBytes

TORN = "audit.torn"

_DAY_FILE = re.compile(r"\d{4}-\d{2}-\d{2}\.jsonl")
_LINE = re.compile(rb"(\{.*\})\t([0-9a-f]{64})")
_TAIL_BYTES = 64 * 1024  # far more than three lines


@dataclass(frozen=True)
class Entry:
    """One line of the trail. `event` is the exact text that `mac` covers."""

    event: str
    mac: bytes

    @property
    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(self.event)
        return fields

    @property
    def seq(self) -> int:
        return int(self.fields["seq"])

    def to_line(self) -> bytes:
        return f"{self.event}\t{self.mac.hex()}\n".encode()

    @staticmethod
    def from_line(line: bytes) -> Entry | None:
        """Read a line without its end; None where it is not an entry."""
        found = _LINE.fullmatch(line)
        try:
            entry = Entry(found[1].decode(), bytes.fromhex(found[2].decode())) if found else None
            return entry if entry and entry.seq >= 0 else None
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class Head:
    """Where the chain ends: number and MAC of the last entry, and the length of the newest file.

    `torn` are the octets of a last line that a dying process left unfinished; `is_open` says that the newest file does
    not end with the end of a line.
    """

    seq: int
    mac: bytes
    path: Path | None
    size: int
    torn: bytes = b""
    is_open: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A statement about the chain, made earlier and kept elsewhere: entry `seq` had this MAC."""

    seq: int
    mac: str


@dataclass(frozen=True)
class Verdict:
    """What a walk along the whole chain found. `first_bad` is the number of the first entry that is not as written."""

    count: int
    first_bad: int | None = None
    reason: str = ""


def day_files(folder: Path) -> list[Path]:
    """The files of the trail, oldest first."""
    return sorted(path for path in folder.iterdir() if _DAY_FILE.fullmatch(path.name)) if folder.is_dir() else []


def read_head(folder: Path, key: SecretBytes) -> Head:
    """Find the end of the chain and check its last entry. Raises `AuditUnavailable` where that does not verify."""
    files = day_files(folder)
    lines: list[bytes] = []
    is_open = False
    for path in reversed(files):
        found, unfinished = _last_lines(path)
        is_open = is_open or (unfinished and path == files[-1])  # the end of a file ends its last line
        lines = [*found, *lines]
        if len(lines) > 2:
            break
    torn = lines.pop() if lines and Entry.from_line(lines[-1]) is None else b""
    entries = [entry for entry in map(Entry.from_line, lines) if entry]
    before = entries[-2].mac if len(entries) > 1 else CHAIN_START
    if entries and not _follows(entries[-1], before, key):
        raise AuditUnavailable("The last entry of the audit trail does not verify.")
    seq, mac = (entries[-1].seq, entries[-1].mac) if entries else (-1, CHAIN_START)
    newest = files[-1] if files else None
    return Head(seq, mac, newest, newest.stat().st_size if newest else 0, torn, is_open)


def verify(folder: Path, key: SecretBytes, checkpoints: Sequence[Checkpoint] = ()) -> Verdict:
    """Walk the chain from its first entry. The verdict names the first entry that was altered, moved or is missing."""
    expected, mac, torn = 0, CHAIN_START, b""
    promised = {checkpoint.seq: checkpoint.mac for checkpoint in checkpoints}
    for line in _lines(folder):
        entry = Entry.from_line(line)
        if entry is None:
            if torn:
                return Verdict(expected, expected, "a line is not an entry")
            torn = line
            continue
        if entry.seq != expected:
            return Verdict(expected, expected, f"entry {entry.seq} stands in its place")
        if not _follows(entry, mac, key):
            return Verdict(expected, expected, "the entry, or what stood before it, was altered")
        if torn and not _tells_of(entry, torn):
            return Verdict(expected, expected, "a line before it is not an entry")
        if entry.seq in promised and promised[entry.seq] != entry.mac.hex():
            return Verdict(expected, expected, "a checkpoint says otherwise")
        expected, mac, torn = expected + 1, entry.mac, b""
    if beyond := [seq for seq in promised if seq >= expected]:
        return Verdict(expected, expected, f"the trail ends here, but a checkpoint knows entry {max(beyond)}")
    return Verdict(expected)


def read(folder: Path, after: int, limit: int, tenant: str) -> list[Entry]:
    """Up to `limit` entries of one tenant with numbers above `after`, in order."""
    found: list[Entry] = []
    for path in _files_after(folder, after):
        for line in _lines_of(path):
            entry = Entry.from_line(line)
            if entry and entry.seq > after and entry.fields.get("tenant") == tenant:
                found.append(entry)
                if len(found) == limit:
                    return found
    return found


def _files_after(folder: Path, after: int) -> list[Path]:
    """The files from the one on that may hold entry `after` + 1: those before begin and end too early."""
    files = day_files(folder)
    for index in range(len(files) - 1, -1, -1):
        first = next((entry for entry in map(Entry.from_line, _lines_of(files[index])) if entry), None)
        if first and first.seq <= after + 1:
            return files[index:]
    return files


def _lines(folder: Path) -> Iterator[bytes]:
    for path in day_files(folder):
        yield from _lines_of(path)


def _lines_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            yield line.removesuffix(b"\n")


def _last_lines(path: Path) -> tuple[list[bytes], bool]:
    """The last lines of a file without their ends, and whether the very last one lacks its end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    lines = tail.split(b"\n")
    last = lines.pop()
    if start > 0:
        del lines[0]  # it began before the window
    return ([*lines, last], True) if last else (lines, False)


def _follows(entry: Entry, before: bytes, key: SecretBytes) -> bool:
    return hmac.compare_digest(chain_mac(key.octets, before, entry.event), entry.mac)


def _tells_of(entry: Entry, torn: bytes) -> bool:
    fields = entry.fields
    return fields.get("action") == TORN and fields.get("digest") == hashlib.sha256(torn).hexdigest()
