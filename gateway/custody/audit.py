"""The audit trail: what was done with secret keys, by whom and why, in files that only grow.

One file a day under `<home>/audit`, one entry a line: the event as canonical JSON, a tab, the MAC of the chain up to
and including this entry (key-custody.md, section 8). An entry is on disk before what it tells of is done: if it cannot
be written, nothing happens. Several processes may write; a lock file puts them in order.

The chain alone shows a change to whoever holds its key. A tail that was cut off is found by a checkpoint, which is
signed and belongs in a second place (`checkpoints.py`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import structlog
from starlette.concurrency import run_in_threadpool

from gateway.custody.canonical import canonical
from gateway.custody.series import CustodySeries
from gateway.custody.trail import TORN, Entry, Head, day_files, read_head
from shared.keyderivation import chain_mac
from shared.problems import AuditUnavailable
from shared.secretbytes import SecretBytes

FIELDS = frozenset(
    {"tenant", "actor", "role", "subject", "key_id", "key_version", "rev", "record_id", "record_digest", "model_id"}
    | {"job_id", "lease", "operation", "unit", "attempt", "faces", "nonces_digest", "purpose", "reason", "decision"}
    | {"request_id", "after", "mode"}
)
"""What an entry may say besides action, seq and time. No secrets, no pictures, no embeddings."""

_LOCK_WITHIN_S = 5.0
_LOCK_PAUSE_S = 0.005

_log = structlog.get_logger(__name__)


class AuditTrail:
    """Appends to the trail. Every failure to do so is `AuditUnavailable`."""

    def __init__(
        self,
        folder: Path,
        key: SecretBytes,
        *,
        now: Callable[[], float] = time.time,
        series: CustodySeries | None = None,
    ) -> None:
        self.folder = folder
        self.key = key
        self._now = now
        self._series = series or CustodySeries()
        self._head: Head | None = None

    async def append(self, action: str, **fields: str | int | None) -> int:
        """Write one entry and return its number, once it is on disk. Fields that are None are left out."""
        if unknown := fields.keys() - FIELDS:
            raise TypeError(f"the audit trail has no field {', '.join(sorted(unknown))}")
        event = {"action": action, **{name: value for name, value in fields.items() if value is not None}}
        began = time.perf_counter()
        try:
            seq = await run_in_threadpool(self._append, event)
        except AuditUnavailable:
            self._series.audit_failures.inc()
            raise
        decision, reason = str(fields.get("decision") or ""), str(fields.get("reason") or "")
        self._series.entered(action, decision, reason, seq, time.perf_counter() - began)
        return seq

    async def head(self) -> Head:
        """Where the chain ends now. Raises `AuditUnavailable` where the last entry does not verify."""
        return await run_in_threadpool(self._checked_head)

    async def health(self) -> str:
        """`ok` or `down`: whether the files can be locked and end as they should; never raises."""
        try:
            await self.head()
        except AuditUnavailable:
            return "down"
        return "ok"

    def _checked_head(self) -> Head:
        with self._locked():
            return self._find_head()

    def _append(self, event: Mapping[str, str | int]) -> int:
        with self._locked():
            head = self._find_head()
            if head.is_open or head.torn:
                head = self._close_torn(head)
            now = self._now()
            day = self.folder / f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d}.jsonl"
            # Where the clock went back across midnight, the newest file goes on: files sort as the chain runs.
            self._head = self._write(max(day, head.path or day), event, head)
            return self._head.seq

    def _write(self, path: Path, event: Mapping[str, str | int], head: Head, before: bytes = b"") -> Head:
        text = canonical({**event, "seq": head.seq + 1, "time": timestamp(self._now())}).decode()
        entry = Entry(text, chain_mac(self.key.octets, head.mac, text))
        size = append_durably(path, before + entry.to_line())
        return Head(head.seq + 1, entry.mac, path, size)

    def _close_torn(self, head: Head) -> Head:
        """A process died while it wrote. End its line, and let the next entry pin what it left."""
        assert head.path is not None  # noqa: S101
        end = b"\n" if head.is_open else b""
        if not head.torn:  # the entry is whole but for its end
            size = append_durably(head.path, end)
            return Head(head.seq, head.mac, head.path, size)
        _log.warning("audit.torn_line", bytes=len(head.torn))
        event = {"action": TORN, "digest": hashlib.sha256(head.torn).hexdigest()}
        return self._write(head.path, event, head, before=end)

    def _find_head(self) -> Head:
        """The end of the chain, under the lock: the one remembered if the files are as we left them, else read."""
        known = self._head
        newest = max(day_files(self.folder), default=None)
        size = newest.stat().st_size if newest else 0
        if known and (known.path, known.size) == (newest, size):
            return known
        if known and known.path and (newest is None or (newest, size) < (known.path, known.size)):
            self._alarm("the audit trail is shorter than what was written to it")
        try:
            return read_head(self.folder, self.key)
        except AuditUnavailable as problem:
            self._alarm(problem.detail)
            raise

    @staticmethod
    def _alarm(what: str) -> None:
        _log.critical("custody.alarm", what=what)
        raise AuditUnavailable("The audit trail was altered. Nothing is written to it until an operator has looked.")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o750)
            lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                _take(lock)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            _log.error("audit.unavailable", reason=error.strerror)
            raise AuditUnavailable(retry_after_s=5) from error


def timestamp(seconds: float) -> str:
    """UTC to the millisecond, as the trail writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def append_durably(path: Path, octets: bytes) -> int:
    """Append and wait for the disk; returns the file's length. Raises `OSError`."""
    is_new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        while octets:
            octets = octets[os.write(descriptor, octets) :]
        os.fsync(descriptor)
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if is_new:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return size


def _take(lock: int) -> None:
    """Lock the file, waiting for other processes a while. A second descriptor of this process waits as well."""
    until = time.monotonic() + _LOCK_WITHIN_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(_LOCK_PAUSE_S)
        else:
            return
