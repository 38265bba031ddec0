"""What custody counts: entries of the audit trail, how long each took, how far checkpoints are behind."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.metrics import SECONDS


class CustodySeries:
    """Nothing happens in custody without an entry, so that counting those counts leases, redeems and refusals."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.events = Counter(
            "tenfold_custody_events",
            "Entries of the audit trail. `reason` is the code of a refusal.",
            ["action", "decision", "reason"],
            registry=self.registry,
        )
        self.audit_seconds = Histogram(
            "tenfold_custody_audit_seconds",
            "Until an entry was on disk, waiting for other writers included.",
            registry=self.registry,
            buckets=SECONDS,
        )
        self.audit_failures = Counter(
            "tenfold_custody_audit_failures",
            "Entries that could not be written; nothing was done then.",
            registry=self.registry,
        )
        self.entries = Gauge(
            "tenfold_custody_audit_entries", "Entries of the trail, as last written here.", registry=self.registry
        )
        self.checkpointed = Gauge(
            "tenfold_custody_checkpoint_entries", "Entries below the newest checkpoint.", registry=self.registry
        )
        self.checkpoint_time = Gauge(
            "tenfold_custody_checkpoint_timestamp_seconds",
            "When this process made its newest checkpoint; 0: none yet.",
            registry=self.registry,
        )

    def entered(self, action: str, decision: str, reason: str, seq: int, seconds: float) -> None:
        """An entry is on disk. `reason` counts for refusals alone: elsewhere it is a custodian's own words."""
        self.events.labels(action, decision, reason if decision == "denied" else "").inc()
        self.audit_seconds.observe(seconds)
        self.entries.set(seq + 1)
