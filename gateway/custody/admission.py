"""Who stands at the internal door: is it the job that the lease was opened for, and may its principal still do this?

Also how a refusal gets into the audit trail: with its reason code, before it is answered.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager

import structlog

from gateway.custody.audit import AuditTrail
from gateway.custody.leases import SCOPES_OF, Kind, Lease, Leases
from gateway.principals import Principal, Principals
from shared.context import CallContext
from shared.problems import AuditUnavailable, LeaseExpired, LeaseRefused, Problem, ScopeMissing, SecretKeyIntegrity

_log = structlog.get_logger(__name__)


class Admission:
    """Checks leases and callers against what is true now. Every call may raise `ServiceUnavailable`."""

    def __init__(
        self, leases: Leases, principals: Principals, audit: AuditTrail, *, now: Callable[[], float] = time.time
    ) -> None:
        self._leases = leases
        self._principals = principals
        self._audit = audit
        self._now = now

    async def lease(self, context: CallContext, lease_id: str, kinds: Collection[Kind]) -> tuple[Lease, Principal]:
        """The lease and its principal. Raises `LeaseRefused`, `LeaseExpired`, `ScopeMissing`."""
        lease = await self.bound(context, lease_id)
        if lease.kind not in kinds:
            raise LeaseRefused
        if lease.expires_at <= self._now():
            raise LeaseExpired
        return lease, await self.principal(context, SCOPES_OF[lease.kind])

    async def bound(self, context: CallContext, lease_id: str) -> Lease:
        """The lease of just this job, expired or not. Raises `LeaseRefused`."""
        if context.lease != lease_id:
            raise LeaseRefused
        lease = await self._leases.find(context.tenant, lease_id)
        bound = (lease.tenant, lease.principal, lease.method, lease.operation, lease.job_id)
        if bound != (context.tenant, context.principal, context.method, context.operation, context.job_id):
            raise LeaseRefused
        return lease

    async def principal(self, context: CallContext, scopes: Collection[str]) -> Principal:
        """The principal of a call, if it still exists and holds one of `scopes`. Raises `ScopeMissing`."""
        principal = await self._principals.find(context.principal)
        if principal is None or principal.tenant != context.tenant or principal.scopes.isdisjoint(scopes):
            raise ScopeMissing(scope=min(scopes))
        return principal

    @asynccontextmanager
    async def audited(
        self, context: CallContext, action: str, lease_id: str | None, about: Mapping[str, str | int | None]
    ) -> AsyncIterator[None]:
        """Put a refusal inside the block into the audit trail; whatever was altered in Redis also raises an alarm."""
        try:
            yield
        except AuditUnavailable:
            raise
        except Problem as problem:
            if isinstance(problem, SecretKeyIntegrity):
                _log.critical("custody.alarm", what="a key's record is damaged", lease=lease_id, action=action)
            await self.note(context, action, lease_id, decision="denied", reason=problem.code, **about)
            raise

    async def note(self, context: CallContext, action: str, lease_id: str | None, **fields: str | int | None) -> None:
        """Write an audit entry about a call at the door."""
        await self._audit.append(
            action,
            tenant=context.tenant,
            actor=context.principal,
            job_id=context.job_id,
            operation=f"{context.method}/{context.operation}",
            request_id=context.request_id or None,
            lease=lease_id,
            **fields,
        )
