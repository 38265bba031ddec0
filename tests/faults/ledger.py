"""What callers were promised during the faults, and whether it came true."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})


@dataclass
class Promise:
    """One call with an idempotency key: every job that an answer named, and how often it was sent."""

    operation: str
    jobs: set[str] = field(default_factory=set)
    sent: int = 0
    record: dict[str, Any] | None = None
    """The job as the gateway shows it at the end; None: it knows of none."""

    @property
    def state(self) -> str:
        return "lost" if self.record is None else str(self.record["state"])


@dataclass
class Ledger:
    """Filled by the traffic, judged at the end."""

    promises: list[Promise] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    """Secret keys whose making was answered."""
    keys_found: set[str] = field(default_factory=set)
    versions: Counter[str] = field(default_factory=Counter)
    """Versions of each trained model; every training had a name of its own."""
    endings: Counter[str] = field(default_factory=Counter)
    """Terminal events by job."""
    audited: set[str] = field(default_factory=set)
    """Jobs that an audit entry says were given image keys."""
    untruths: list[str] = field(default_factory=list)
    """Times at which readiness said what was not so."""
    kills: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)

    def accepted(self) -> list[Promise]:
        return [promise for promise in self.promises if promise.jobs]

    def lost(self) -> list[Promise]:
        """Accepted, and no end that anybody could read."""
        return [promise for promise in self.accepted() if promise.state not in TERMINAL]

    def doubled(self) -> list[str]:
        """What took effect twice: two jobs of one idempotency key, two ends of one job, two models of one training."""
        jobs = [promise.operation for promise in self.promises if len(promise.jobs) > 1]
        ends = [job_id for job_id, count in self.endings.items() if count > 1]
        return [*jobs, *ends, *(name for name, count in self.versions.items() if count > 1)]

    def recoveries_without_audit_entry(self) -> list[str]:
        recovered = [p for p in self.accepted() if p.operation == "ifadit/recover" and p.state == "succeeded"]
        return [job_id for promise in recovered for job_id in promise.jobs if job_id not in self.audited]

    def is_clean(self) -> bool:
        return not (
            self.lost()
            or self.doubled()
            or self.keys - self.keys_found
            or self.recoveries_without_audit_entry()
            or self.untruths
        )

    def report(self) -> dict[str, Any]:
        """Everything as JSON; `clean` is the verdict."""
        ends = Counter(f"{promise.operation} {promise.state}" for promise in self.accepted())
        problems = Counter(
            str(promise.record["error"]["code"])
            for promise in self.accepted()
            if promise.record and promise.record.get("error")
        )
        return {
            "clean": self.is_clean(),
            "kills": dict(self.kills),
            "accepted_jobs": len(self.accepted()),
            "sent_again": sum(max(0, promise.sent - 1) for promise in self.promises),
            "lost": [[*sorted(promise.jobs), promise.operation, promise.state] for promise in self.lost()],
            "doubled": self.doubled(),
            "keys_made": len(self.keys),
            "keys_lost": sorted(self.keys - self.keys_found),
            "recoveries": sum(p.operation == "ifadit/recover" and p.state == "succeeded" for p in self.accepted()),
            "recoveries_without_audit_entry": self.recoveries_without_audit_entry(),
            "readiness_untruths": self.untruths,
            "ends": dict(sorted(ends.items())),
            "problems": dict(problems),
            "answers": dict(self.answers),
        }


def audited_jobs(folder: Path) -> set[str]:
    """Jobs that the audit trail says were given image keys, whatever else happened to it."""
    entries = [
        json.loads(line.partition("\t")[0])
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
        if line.startswith("{") and "\t" in line
    ]
    given = [entry for entry in entries if (entry["action"], entry.get("decision")) == ("lease.redeem", "allowed")]
    return {str(entry["job_id"]) for entry in given}
