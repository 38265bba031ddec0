"""The life of a tenant's secret key. Every step is audited before it is made.

    creating -> active <-> disabled
                active, disabled -> pending_destroy -> (destroyed)      a second custodian and the grace period
                                    pending_destroy -> disabled         cancel-destroy

Destroying evidence by mistake is as bad as a leak. So it takes two custodians *and* time: one asks for it, which stops
the key at once; another confirms it; and only when the grace period is over as well are the secrets deleted. Until
then any custodian may cancel, which leaves the key disabled. Expiry only disables a key: no clock destroys anything.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from gateway.custody.audit import AuditTrail
from gateway.custody.canonical import canonical
from gateway.custody.envelope import METHOD_SECRET, Envelope, SecretName
from gateway.custody.store import KeyState, KeyStore, Purpose
from gateway.principals import Principal
from shared.ids import random_id
from shared.keyderivation import SECRET_BYTES
from shared.problems import (
    IdempotencyConflict,
    InvalidRequest,
    Problem,
    SecretKeyConflict,
    SecretKeyIntegrity,
    SecretKeyNotFound,
    ServiceUnavailable,
)
from shared.secretbytes import SecretBytes

PURPOSES: frozenset[Purpose] = frozenset({"anonymize", "recover"})  # `forensic` is given only where it is asked for
DAY_S = 24 * 3600.0
GRACE_DAYS = 14  # between 7 and 30 (key-custody.md, section 4)
GRACE_DAYS_MIN, GRACE_DAYS_MAX = 7, 30

_IDEMPOTENCY_S = DAY_S
_HALF_MADE_S = 3600.0  # longer than any create may take, retries with its idempotency key included
_CHANGE_TRIES = 5  # a change that lost against another one is decided anew

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Caller:
    """Who asks, and in which request: for the audit trail."""

    principal: Principal
    request_id: str = ""


@dataclass(frozen=True)
class NewKey:
    """What a custodian says about a new key."""

    label: str = ""
    not_after: float | None = None
    purposes: frozenset[Purpose] = field(default=PURPOSES)
    default: bool = False

    def digest(self) -> str:
        """The same for the same request, whatever the order of its fields."""
        parts = [self.label, repr(self.not_after), sorted(self.purposes), self.default]
        return hashlib.sha256(canonical(parts)).hexdigest()


class SecretKeys:
    """What custodians do with keys. Every call may raise `AuditUnavailable`, `KekUnavailable`, `ServiceUnavailable`."""

    def __init__(
        self, store: KeyStore, envelope: Envelope, audit: AuditTrail, *, now: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._envelope = envelope
        self._audit = audit
        self._now = now

    async def create(self, caller: Caller, new: NewKey, *, idempotency_key: str | None = None) -> KeyState:
        """Make a key. When this returns, its secret is on disk, was read back and opened.

        A retry with the same idempotency key goes on where the first try stopped and returns the same key; with another
        `new` it raises `IdempotencyConflict`. Raises `InvalidRequest` for an expiry that has passed.
        """
        if new.not_after is not None and new.not_after <= self._now():
            raise InvalidRequest("`not_after` must be in the future.")
        principal = caller.principal
        key_id = random_id("key")
        if idempotency_key is not None:
            key_id = await self._claimed(principal, new, idempotency_key, key_id)
        existing = await self._store.find(principal.tenant, key_id)
        if existing is None or existing.status == "creating":
            await self._note(caller, "key.create", key_id, version=1, decision="intended")
            state = await self._activated(caller, existing or await self._written(caller, key_id, new))
        else:  # the answer of an earlier try was lost; write once more, because it may have stopped before the disk
            state = await self._store.change(existing, existing)
        if new.default:
            await self._store.set_default(principal.tenant, key_id)
        return state

    async def get(self, tenant: str, key_id: str) -> KeyState:
        return await self._store.load(tenant, key_id)

    async def list(self, tenant: str) -> Sequence[KeyState]:
        """The keys of a tenant, oldest first."""
        return [state for state in await self._store.list(tenant) if state.status != "creating"]

    async def default(self, tenant: str) -> str | None:
        return await self._store.default(tenant)

    async def rotate(self, caller: Caller, key_id: str) -> KeyState:
        """Give new pictures a new secret. Older versions go on recovering theirs."""
        before = await self._store.load(caller.principal.tenant, key_id)
        if before.status != "active":
            raise SecretKeyConflict("Only an active key is rotated.")
        version = before.version + 1
        await self._note(caller, "key.rotate", key_id, version=version, rev=before.rev, decision="intended")
        name = SecretName(METHOD_SECRET, before.tenant, key_id, version)
        with SecretBytes(secrets.token_bytes(SECRET_BYTES)) as secret:
            await self._store.put_next(before, await self._envelope.wrap(name, secret))
            await self._read_back(name, secret)
        after = await self._store.change(before, replace(before, version=version))
        await self._note(caller, "key.rotate", key_id, version=version, rev=after.rev, decision="done")
        return after

    async def disable(self, caller: Caller, key_id: str, *, action: str = "key.disable") -> KeyState:
        """Stop a key. Once this has returned, nothing is anonymized or recovered with it any more."""

        def step(state: KeyState) -> KeyState:
            if state.status == "pending_destroy":
                raise SecretKeyConflict("The key is about to be destroyed; cancel that first.")
            return replace(state, status="disabled")

        return await self._change(caller, action, key_id, step)

    async def enable(self, caller: Caller, key_id: str, *, not_after: float | None = None) -> KeyState:
        """Let a disabled key work again. One whose time is over needs a new `not_after`."""

        def step(state: KeyState) -> KeyState:
            if state.status == "pending_destroy":
                raise SecretKeyConflict("The key is about to be destroyed; cancel that first.")
            expiry = state.not_after if not_after is None else not_after
            if expiry is not None and expiry <= self._now():
                raise InvalidRequest("The key's time is over; give a `not_after` in the future.")
            return replace(state, status="active", not_after=expiry)

        return await self._change(caller, "key.enable", key_id, step)

    async def destroy(self, caller: Caller, key_id: str, *, reason: str, grace_days: int = GRACE_DAYS) -> KeyState:
        """Ask for a key's end, or confirm what another custodian asked for.

        The first call stops the key and starts the grace period. A call by another custodian confirms. The secrets are
        deleted when both are given: the confirmation and the end of the grace period.
        """
        custodian = caller.principal.id

        def step(state: KeyState) -> KeyState:
            if state.status != "pending_destroy":
                at = self._now() + grace_days * DAY_S
                return replace(state, status="pending_destroy", destroy_at=at, destroy_requested_by=custodian)
            if state.destroy_requested_by == custodian or state.destroy_approved_by:
                raise SecretKeyConflict(
                    "Another custodian has to confirm that the key is destroyed."
                    if not state.destroy_approved_by
                    else "The end of this key is confirmed already."
                )
            return replace(state, destroy_approved_by=custodian)

        after = await self._change(caller, "key.destroy", key_id, step, reason=reason)
        return await self._shredded_if_due(after, caller)

    async def cancel_destroy(self, caller: Caller, key_id: str) -> KeyState:
        """Call off a key's end. The key stays disabled until a custodian enables it."""

        def step(state: KeyState) -> KeyState:
            if state.status != "pending_destroy":
                raise SecretKeyConflict("Nobody has asked for this key to be destroyed.")
            return replace(
                state, status="disabled", destroy_at=None, destroy_requested_by=None, destroy_approved_by=None
            )

        return await self._change(caller, "key.cancel_destroy", key_id, step)

    async def sweep(self) -> None:
        """Disable keys whose time is over, delete those whose end is confirmed and due, clear half-made ones."""
        for tenant in await self._store.tenants():
            try:
                states = await self._store.list(tenant)
            except SecretKeyIntegrity:  # one tenant's damage does not keep the others' keys from expiring
                _log.critical("custody.alarm", what="a key's record is damaged", tenant=tenant)
                continue
            for state in states:
                try:
                    await self._swept(state)
                except (SecretKeyConflict, SecretKeyNotFound):  # somebody else was faster
                    continue

    async def _swept(self, state: KeyState) -> None:
        sweeper = Caller(Principal("sweeper", state.tenant, "custodian", frozenset()))
        now = self._now()
        if state.status == "creating" and state.created_at + _HALF_MADE_S < now:
            await self._store.destroy(state, now, tombstone=False)
        elif state.status == "active" and state.not_after is not None and state.not_after <= now:
            await self.disable(sweeper, state.key_id, action="key.expire")
        else:
            await self._shredded_if_due(state, sweeper)

    async def _shredded_if_due(self, state: KeyState, caller: Caller) -> KeyState:
        """Delete the secrets if a second custodian has confirmed and the grace period is over."""
        if state.status != "pending_destroy" or not state.destroy_approved_by or (state.destroy_at or 0) > self._now():
            return state
        await self._note(caller, "key.shred", state.key_id, rev=state.rev, decision="intended")
        await self._store.destroy(state, self._now())
        await self._note(caller, "key.shred", state.key_id, rev=state.rev + 1, decision="done")
        return replace(state, status="destroyed", rev=state.rev + 1)

    async def _claimed(self, principal: Principal, new: NewKey, idempotency_key: str, key_id: str) -> str:
        claim = hashlib.sha256(canonical([principal.id, idempotency_key])).hexdigest()
        digest, first = await self._store.claim(principal.tenant, claim, new.digest(), key_id, _IDEMPOTENCY_S)
        if digest != new.digest():
            raise IdempotencyConflict
        return first

    async def _written(self, caller: Caller, key_id: str, new: NewKey) -> KeyState:
        """Write a new key that nobody can use yet. Whatever goes wrong from here on leaves none."""
        principal = caller.principal
        draft = KeyState(
            principal.tenant,
            key_id,
            "creating",
            1,
            new.label,
            new.purposes,
            created_at=self._now(),
            created_by=principal.id,
            not_after=new.not_after,
        )
        name = SecretName(METHOD_SECRET, draft.tenant, key_id, 1)
        with SecretBytes(secrets.token_bytes(SECRET_BYTES)) as secret:
            wrapped = await self._envelope.wrap(name, secret)
            try:
                written = await self._store.create(draft, wrapped)
                if written is not None:
                    await self._read_back(name, secret)
                    return written
            except Problem as problem:
                await self._discard(replace(draft, rev=1))
                raise _not_safe() from problem
        found = await self._store.find(draft.tenant, key_id)
        if found is None:
            raise SecretKeyNotFound  # its id was given out before, and the key destroyed since
        return found  # the same request is under way, or was

    async def _activated(self, caller: Caller, draft: KeyState) -> KeyState:
        """Let a key that was written and read back be used. A retry may find that another one has done so."""
        if draft.status != "creating":
            return draft
        name = SecretName(METHOD_SECRET, draft.tenant, draft.key_id, 1)
        (await self._envelope.unwrap(name, await self._store.wrapped(draft.tenant, draft.key_id, 1))).wipe()
        await self._note(caller, "key.create", draft.key_id, version=1, rev=draft.rev + 1, decision="done")
        try:
            return await self._store.change(draft, replace(draft, status="active"))
        except SecretKeyConflict:
            found = await self._store.find(draft.tenant, draft.key_id)
            if found is None:  # the try that wrote it has failed, and taken it back
                raise _not_safe() from None
            return found

    async def _discard(self, draft: KeyState) -> None:
        """Take back a key that was never given out. What remains if this fails is cleared by the sweeper."""
        try:
            await self._store.destroy(draft, self._now(), tombstone=False)
        except Problem as problem:
            _log.warning("key.discard_failed", key_id=draft.key_id, code=problem.code)

    async def _read_back(self, name: SecretName, secret: SecretBytes) -> None:
        stored = await self._store.wrapped(name.tenant, name.key_id, name.version)
        with await self._envelope.unwrap(name, stored) as again:
            if again != secret:
                raise SecretKeyIntegrity("The secret that was read back is another one.")

    async def _change(
        self,
        caller: Caller,
        action: str,
        key_id: str,
        step: Callable[[KeyState], KeyState],
        *,
        reason: str | None = None,
    ) -> KeyState:
        """Decide a change on the newest state, audit it, make it; decide anew where another change came between."""
        for last in range(_CHANGE_TRIES - 1, -1, -1):
            before = await self._store.load(caller.principal.tenant, key_id)
            try:
                after = step(before)
            except Problem as problem:
                await self._note(caller, action, key_id, rev=before.rev, reason=problem.code, decision="denied")
                raise
            await self._note(caller, action, key_id, rev=before.rev, reason=reason, decision="intended")
            try:
                changed = await self._store.change(before, after)
            except SecretKeyConflict:
                if not last:
                    raise
            else:
                await self._note(caller, action, key_id, rev=changed.rev, decision="done")
                return changed
        raise SecretKeyConflict

    async def _note(
        self,
        caller: Caller,
        action: str,
        key_id: str,
        *,
        decision: str,
        version: int | None = None,
        rev: int | None = None,
        reason: str | None = None,
    ) -> None:
        await self._audit.append(
            action,
            tenant=caller.principal.tenant,
            actor=caller.principal.id,
            role=caller.principal.role,
            key_id=key_id,
            key_version=version,
            rev=rev,
            reason=reason,
            decision=decision,
            request_id=caller.request_id or None,
        )


def _not_safe() -> ServiceUnavailable:
    return ServiceUnavailable("The key could not be made safe. Try again.", retry_after_s=1)
