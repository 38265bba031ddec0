"""Signed statements about the audit trail, for a place that whoever can change the trail cannot reach.

The chain of MACs alone does not show that its tail was cut off, nor that whoever holds its key wrote it anew. A
checkpoint says which MAC an entry had; it is kept beside the trail, given to auditors with every page they read, and
meant to be copied elsewhere (key-custody.md, section 8).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from gateway.custody.audit import AuditTrail, append_durably, timestamp
from gateway.custody.canonical import canonical
from gateway.custody.roots import Roots
from gateway.custody.series import CustodySeries
from gateway.custody.trail import Checkpoint, Verdict, verify
from shared.problems import AuditUnavailable

EVERY_S = 3600.0
_TYPE = "tenfold-audit-checkpoint/v1"
_FILE = "checkpoints.jsonl"


class Checkpoints:
    """Makes, keeps and checks checkpoints of one trail."""

    def __init__(self, audit: AuditTrail, roots: Roots, series: CustodySeries | None = None) -> None:
        self._audit = audit
        self._roots = roots
        self._series = series or CustodySeries()
        self._made_at = float("-inf")
        self.newest: dict[str, Any] | None = None

    async def make(self, now: float) -> dict[str, Any] | None:
        """Sign where the trail ends now, and keep it. None where the trail is empty."""
        head = await self._audit.head()
        if head.seq < 0:
            return None
        fields = {"type": _TYPE, "seq": head.seq, "count": head.seq + 1, "mac": head.mac.hex(), "time": timestamp(now)}
        key = self._roots.signing[-1]
        self.newest = {**fields, "sig": {"alg": "Ed25519", "kid": key.kid, "value": key.sign(canonical(fields))}}
        try:
            await run_in_threadpool(append_durably, self._audit.folder / _FILE, canonical(self.newest) + b"\n")
        except OSError as error:
            raise AuditUnavailable("A checkpoint of the audit trail cannot be written.") from error
        self._made_at = now
        self._series.checkpointed.set(head.seq + 1)
        self._series.checkpoint_time.set(now)
        return self.newest

    async def make_if_due(self, now: float) -> None:
        """Once an hour, and when a process starts."""
        if now - self._made_at >= EVERY_S:
            await self.make(now)

    def verify(self, others: Sequence[Mapping[str, Any]] = ()) -> Verdict:
        """Walk the whole trail and hold it against the checkpoints beside it and `others` from elsewhere.

        Raises `ValueError` for a checkpoint whose signature is not ours.
        """
        path = self._audit.folder / _FILE
        kept = read_file(path) if path.exists() else []
        return verify(self._audit.folder, self._audit.key, [self._read(found) for found in [*kept, *others]])

    def _read(self, checkpoint: Mapping[str, Any]) -> Checkpoint:
        signed = {name: value for name, value in checkpoint.items() if name != "sig"}
        keys = {key.kid: key for key in self._roots.signing}
        try:
            key = keys[checkpoint["sig"]["kid"]]
            is_ours = signed["type"] == _TYPE and key.verifies(canonical(signed), checkpoint["sig"]["value"])
            found = Checkpoint(int(signed["seq"]), str(signed["mac"]))
        except (KeyError, TypeError, ValueError):
            is_ours, found = False, None
        if not is_ours or found is None:
            raise ValueError("a checkpoint is not signed by this installation")
        return found


def read_file(path: Path) -> list[dict[str, Any]]:
    """The checkpoints of a file that was kept elsewhere, one a line."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
