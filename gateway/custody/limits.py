"""How often somebody may recover: token buckets in custody Redis, by the server's clock (key-custody.md, section 9).

A limit that cannot be read is a limit that says no: the caller sees 503.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from gateway.custody.audit import AuditTrail
from gateway.custody.database import Database
from gateway.principals import Principal
from shared.problems import RateLimited

_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3600.0, 86400.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Bucket:
    """`count` at once, and as many again evenly over `period_s`."""

    count: int
    period_s: float


@dataclass(frozen=True)
class RecoverLimits:
    """The numbers of section 9. Operators do not change them; tests do."""

    actor: Mapping[str, Bucket] = field(
        default_factory=lambda: {"minute": Bucket(10, _MINUTE_S), "day": Bucket(200, _DAY_S)}
    )
    tenant: Mapping[str, Bucket] = field(default_factory=lambda: {"day": Bucket(1000, _DAY_S)})
    key: Mapping[str, Bucket] = field(default_factory=lambda: {"hour": Bucket(30, _HOUR_S)})
    verify: Mapping[str, Bucket] = field(default_factory=lambda: {"minute": Bucket(120, _MINUTE_S)})
    failures: Bucket = Bucket(5, 10 * _MINUTE_S)
    lock_s: float = _HOUR_S


class Limiter:
    """Takes tokens and counts failures. Every call may raise `ServiceUnavailable`."""

    def __init__(self, database: Database, audit: AuditTrail, limits: RecoverLimits) -> None:
        self._database = database
        self._audit = audit
        self._limits = limits

    async def take_recover(self, principal: Principal, request_id: str) -> None:
        """One recovery of this actor and tenant. Raises `RateLimited`, also while the actor is locked out."""
        buckets = {f"actor:{principal.id}:{name}": bucket for name, bucket in self._limits.actor.items()}
        buckets |= {f"tenant:{name}": bucket for name, bucket in self._limits.tenant.items()}
        await self._take(principal, buckets, request_id)

    async def take_key(self, principal: Principal, key_id: str, request_id: str) -> None:
        """One recovery with this key, whoever asks."""
        buckets = {f"key:{key_id}:{name}": bucket for name, bucket in self._limits.key.items()}
        await self._take(principal, buckets, request_id)

    async def take_verify(self, principal: Principal, request_id: str) -> None:
        buckets = {f"verify:{principal.id}:{name}": bucket for name, bucket in self._limits.verify.items()}
        await self._take(principal, buckets, request_id, is_locked_out=False)

    async def failed(self, principal: Principal, request_id: str) -> None:
        """Count a recovery that failed for the caller's own doing; too many of them lock the actor out."""
        limits = self._limits
        keys = [self._name(principal, f"failures:{principal.id}"), self._lock(principal)]
        args = [limits.failures.count, int(limits.failures.period_s * 1000), int(limits.lock_s * 1000)]
        if await self._database.run("count_failure", keys, args):
            _log.critical("custody.alarm", what="an actor was locked out of recovery", principal=principal.id)
            await self.note_block(principal, "locked", request_id)

    async def unlock(self, principal: Principal) -> None:
        """Let an actor in again before its time."""
        await self._database.run(
            "delete", [self._lock(principal), self._name(principal, f"failures:{principal.id}")], []
        )

    async def _take(
        self, principal: Principal, buckets: Mapping[str, Bucket], request_id: str, *, is_locked_out: bool = True
    ) -> None:
        keys = [self._lock(principal), *(self._name(principal, name) for name in buckets)]
        args: Sequence[float] = [value for bucket in buckets.values() for value in (bucket.count, bucket.period_s)]
        wait_ms, which = await self._database.run("take", keys, [int(is_locked_out), *args])
        if wait_ms:
            await self.note_block(principal, "locked" if which == 0 else "limit", request_id)
            detail = "Recovery is locked for this API key." if which == 0 else "The limit of this operation is reached."
            raise RateLimited(detail, retry_after_s=max(1, -(-int(wait_ms) // 1000)))

    async def note_block(self, principal: Principal, reason: str, request_id: str) -> None:
        """Put into the audit trail that somebody was kept from recovering."""
        await self._audit.append(
            "ratelimit.block",
            tenant=principal.tenant,
            actor=principal.id,
            role=principal.role,
            reason=reason,
            decision="denied",
            request_id=request_id or None,
        )

    def _lock(self, principal: Principal) -> str:
        return self._name(principal, f"lock:{principal.id}")

    @staticmethod
    def _name(principal: Principal, rest: str) -> str:
        return f"kc:{{{principal.tenant}}}:limit:{rest}"
