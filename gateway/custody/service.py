"""Custody as the gateway sees it: one object that is connected at start and closed at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Self

import structlog

from gateway.custody.admission import Admission
from gateway.custody.audit import AuditTrail
from gateway.custody.checkpoints import Checkpoints
from gateway.custody.database import Database
from gateway.custody.envelope import Envelope
from gateway.custody.kek import InsecureFileKek, KekProvider
from gateway.custody.leases import SCOPES_OF, Kind, Leases, new_lease_id
from gateway.custody.limits import Limiter, RecoverLimits
from gateway.custody.opening import KeyOpener
from gateway.custody.records import Records
from gateway.custody.redeeming import Redeeming
from gateway.custody.roots import Roots
from gateway.custody.sealing import Sealing
from gateway.custody.secretkeys import SecretKeys
from gateway.custody.series import CustodySeries
from gateway.custody.store import KeyStore
from gateway.principals import Principal, PrincipalNotFound, Principals
from shared.context import CallContext
from shared.problems import AuditUnavailable, Problem, ScopeMissing, SecretKeyNotFound
from shared.settings import GatewaySettings

_log = structlog.get_logger(__name__)


class Custody:
    """Secret keys, leases, records, audit trail and principals of one installation.

    Made by `connect`. Call `sweep` about once a minute, and `close` at the end.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        database: Database,
        provider: KekProvider,
        roots: Roots,
        *,
        now: Callable[[], float],
        limits: RecoverLimits,
        actor: str,
    ) -> None:
        envelope = Envelope(provider)
        store = KeyStore(database, roots.metadata)
        self._database = database
        self._store = store
        self._provider = provider
        self._envelope = envelope
        self._roots = roots
        self._actor = actor
        self.now = now
        self._leases = Leases(database, roots, now=now)
        self._opener = KeyOpener(store, envelope, now=now)
        self.internal_secret = settings.internal_secret.get_secret_value()
        self.series = CustodySeries()
        self.audit = AuditTrail(settings.home / "audit", roots.audit, now=now, series=self.series)
        self.checkpoints = Checkpoints(self.audit, roots, self.series)
        self.principals = Principals(
            database, settings.api_key_pepper.get_secret_value(), self.audit, actor=actor, now=now
        )
        self.keys = SecretKeys(store, envelope, self.audit, now=now)
        self.records = Records(roots)
        self.limiter = Limiter(database, self.audit, limits)
        admission = Admission(self._leases, self.principals, self.audit, now=now)
        parts = (admission, self._leases, self._opener, self.records, self.limiter)
        self._admission = admission
        self.redeeming = Redeeming(*parts)
        self.sealing = Sealing(*parts)

    @classmethod
    async def connect(
        cls,
        settings: GatewaySettings,
        *,
        now: Callable[[], float] = time.time,
        limits: RecoverLimits | None = None,
        actor: str = "operator",
        trusts_trail: bool = True,
    ) -> Self:
        """Check the server and the key-encryption key, open the roots, check the end of the audit trail.

        actor         who creates and revokes principals through this object, for the audit trail
        trusts_trail  refuse to start on a trail whose end does not verify; False only to examine it

        Raises `ValueError` with what to change for a server or an environment that custody refuses; `KekUnavailable`,
        `SecretKeyIntegrity`, `AuditUnavailable` and `ServiceUnavailable` as they say.
        """
        provider = InsecureFileKek(settings.kek_path, environment=settings.environment)
        envelope = Envelope(provider)
        await envelope.check()
        database = Database(str(settings.custody_url))
        try:
            await database.check(settings.environment)
            roots = await Roots.open(database, envelope, now())
            limits = limits or RecoverLimits()
            custody = cls(settings, database, provider, roots, now=now, limits=limits, actor=actor)
            if trusts_trail:
                await custody.audit.head()
        except BaseException:
            await database.close()
            raise
        return custody

    async def close(self) -> None:
        """Let go of Redis and wipe what is in memory."""
        await self._database.close()
        self._opener.forget_all()
        self._roots.wipe()

    async def open_lease(
        self,
        principal: Principal,
        *,
        job_id: str,
        method: str,
        operation: str,
        kind: Kind,
        key_id: str | None,
        expires_at: float,
        request_id: str,
    ) -> str:
        """Allow one job to redeem; returns the lease's id. `expires_at` is the job's deadline.

        Anonymization without `key_id` uses the tenant's default key. Raises `ScopeMissing`, `RateLimited`,
        `SecretKeyNotFound`, `SecretKeyDisabled`, `SecretKeyPurpose`, `SecretKeyIntegrity`, `AuditUnavailable`,
        `ServiceUnavailable`.
        """
        lease_id = new_lease_id()

        async def note(decision: str, **fields: str | int | None) -> None:
            await self.audit.append(
                "lease.open",
                tenant=principal.tenant,
                actor=principal.id,
                role=principal.role,
                job_id=job_id,
                operation=f"{method}/{operation}",
                request_id=request_id or None,
                lease=lease_id,
                decision=decision,
                **fields,
            )

        try:
            key_id, key_version = await self._key_of(principal, kind, key_id, request_id)
        except AuditUnavailable:
            raise
        except Problem as problem:
            await note("denied", reason=problem.code)
            raise
        await note("allowed", key_id=key_id, key_version=key_version or None)
        lease = await self._leases.open(
            principal,
            lease_id=lease_id,
            job_id=job_id,
            method=method,
            operation=operation,
            kind=kind,
            key_id=key_id,
            key_version=key_version,
            expires_at=expires_at,
            request_id=request_id,
        )
        return lease.id

    async def release_lease(self, context: CallContext, lease_id: str) -> None:
        """End the lease of a call that no job came of. Raises `LeaseRefused` for another job's."""
        async with self._admission.audited(context, "lease.release", lease_id, {}):
            lease = await self._admission.bound(context, lease_id)
            await self._admission.note(context, "lease.release", lease_id, decision="allowed")
            await self._leases.release(lease)

    async def file_key(self, lease_id: str) -> bytearray:
        """The key of the files of a lease's job, for downloads; the caller wipes it.

        Raises `LeaseRefused` for a lease that is unknown or whose results are gone.
        """
        return await self._leases.file_key(await self._leases.tenant_of(lease_id), lease_id)

    async def census(self) -> dict[str, dict[str, int]]:
        """How many keys there are in each state, and how many secrets under each version of the key-encryption key."""
        states: Counter[str] = Counter()
        keks: Counter[str] = Counter()
        for tenant in await self._store.tenants():
            for state in await self._store.list(tenant):
                states[state.status] += 1
                for version in range(1, state.version + 1):
                    kek = (await self._store.wrapped(tenant, state.key_id, version)).kek
                    keks[f"{kek.kek_id}/{kek.version}"] += 1
        return {"keys": dict(states), "secrets": dict(keks)}

    async def unlock(self, principal_id: str) -> None:
        """Let an actor recover again that was locked out. Raises `PrincipalNotFound`."""
        principal = await self.principals.find(principal_id)
        if principal is None:
            raise PrincipalNotFound
        await self.audit.append(
            "ratelimit.unlock", tenant=principal.tenant, actor=self._actor, subject=principal_id, decision="intended"
        )
        await self.limiter.unlock(principal)

    async def rotate_signing_key(self) -> str:
        """Make the next key that signs records; returns its name. Processes use it from their next start on."""
        await self.audit.append("signing_key.rotate", actor=self._actor, decision="intended")
        return (await self._roots.add_signing_key(self._database, self._envelope, self.now())).kid

    async def sweep(self) -> None:
        """Expire keys, delete those whose end is due, wipe old secrets from memory, make a checkpoint when due."""
        self._opener.forget_expired()
        await self.keys.sweep()
        await self.checkpoints.make_if_due(self.now())
        if self._database.owes_rewrite:
            await self._database.rewrite_log()

    async def ready(self) -> dict[str, str]:
        """What a readiness probe shows: `ok` or `down` for Redis, key-encryption key and audit trail."""
        return {
            "custody_redis": await self._database.health(),
            "kek": await self._provider.health(),
            "audit": await self.audit.health(),
            "durability": self._database.durability,
        }

    async def _key_of(
        self, principal: Principal, kind: Kind, key_id: str | None, request_id: str
    ) -> tuple[str | None, int]:
        """Key and version that the lease is bound to; None and 0 where the record will say."""
        if principal.scopes.isdisjoint(SCOPES_OF[kind]):
            raise ScopeMissing(scope=min(SCOPES_OF[kind]))
        if kind in ("verify", "guard"):
            return None, 0
        if kind == "anonymize":
            if key_id is None and (key_id := await self.keys.default(principal.tenant)) is None:
                raise SecretKeyNotFound("The tenant has no default key. Name one with `?key=`, or have one made.")
            state = await self._opener.usable(principal.tenant, key_id, "anonymize")
            return key_id, state.version
        await self.limiter.take_recover(principal, request_id)
        if key_id is not None:
            try:
                await self._opener.usable(principal.tenant, key_id, "recover")
            except SecretKeyNotFound:
                await self.limiter.failed(principal, request_id)
                raise
        return key_id, 0
