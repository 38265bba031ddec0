"""Image keys for a worker: of single pictures, for one job, a few times, and never the secret they come from.

Each redeem is decided on what is true at that moment: the lease, the principal and its scope, the record, the key's
state. It is in the audit trail before the octets leave, and it is counted by a script that compares the key's revision:
once a disable was answered, no redeem succeeds any more (key-custody.md, section 5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.custody.admission import Admission
from gateway.custody.forensic import DekName, new_dek, opened_dek
from gateway.custody.leases import SCOPES_OF, Asked, Lease, Leases
from gateway.custody.limits import Limiter
from gateway.custody.opening import KeyOpener
from gateway.custody.records import Records
from gateway.custody.store import KeyState, Purpose
from shared.context import CallContext
from shared.keyderivation import method_key
from shared.leases import image_nonce
from shared.problems import (
    InvalidRequest,
    LeaseRefused,
    RecordInvalid,
    RecordMismatch,
    RecordModelMismatch,
    SecretKeyConflict,
    SecretKeyNotFound,
    SidecarInvalid,
)
from shared.secretbytes import wipe

_CHANGE_TRIES = 5  # a redeem that lost against a change of the key is decided anew
# What counts towards the lock-out.
_OWN_DOING = (RecordInvalid, RecordMismatch, RecordModelMismatch, SidecarInvalid, SecretKeyNotFound)
_PURPOSE_MAX_CHARACTERS = 200


@dataclass(frozen=True)
class Wish:
    """What a worker asks for one unit.

    nonces  to anonymize: `image_nonce` of each face, or "" for each, to link pictures
    record  to recover: the signed record, with `purpose`

    forensic     to anonymize: a data key for the originals as well
    wrapped_dek  to recover: the data key that the sidecar holds wrapped, in place of image keys
    """

    attempt: int
    unit: int
    model: str
    model_digest: str
    key_scheme: str
    dim: int
    nonces: tuple[str, ...] | None = None
    record: Mapping[str, Any] | None = None
    purpose: str | None = None
    forensic: bool = False
    wrapped_dek: bytes | None = None


@dataclass(frozen=True)
class _Due:
    """What the wish comes to: which key and version, for which faces."""

    purpose: Purpose
    asked: Asked
    key_id: str
    key_version: int
    record_id: str

    @property
    def purposes(self) -> tuple[Purpose, ...]:
        return (self.purpose, "forensic") if self.asked.is_forensic else (self.purpose,)


class Redeeming:
    """The worker's way to image keys and to the key of its job's files."""

    def __init__(
        self, admission: Admission, leases: Leases, opener: KeyOpener, records: Records, limiter: Limiter
    ) -> None:
        self._admission = admission
        self._leases = leases
        self._opener = opener
        self._records = records
        self._limiter = limiter

    async def file_key(self, context: CallContext, lease_id: str) -> bytearray:
        """The key of the job's files; the caller wipes it. Raises `LeaseRefused`, `LeaseExpired`, `ScopeMissing`."""
        async with self._admission.audited(context, "lease.file_key", lease_id, {}):
            lease, _ = await self._admission.lease(context, lease_id, SCOPES_OF)
            await self._admission.note(context, "lease.file_key", lease_id, decision="allowed")
            return await self._leases.file_key(lease.tenant, lease_id)

    async def redeem(self, context: CallContext, lease_id: str, wish: Wish) -> bytearray:
        """The octets of the unit's image keys, 4 * dim a face, in order of the faces; the caller wipes them.

        Behind them, for `forensic`: the data key, the same wrapped, and the name that the record will have. For
        `wrapped_dek`: the data key alone.

        Raises `LeaseRefused`, `LeaseExpired`, `ScopeMissing`, `InvalidRequest`, `RateLimited`, `RecordInvalid`,
        `RecordMismatch`, `RecordModelMismatch`, `SidecarInvalid`, `SecretKeyNotFound`, `SecretKeyDisabled`,
        `SecretKeyPurpose`, `SecretKeyIntegrity`, `KekUnavailable`, `AuditUnavailable`, `ServiceUnavailable`.
        """
        about: dict[str, str | int | None] = {"unit": wish.unit, "attempt": wish.attempt}
        about |= {"model_id": wish.model, "purpose": wish.purpose}
        async with self._admission.audited(context, "lease.redeem", lease_id, about):
            lease, principal = await self._admission.lease(context, lease_id, {"anonymize", "recover"})
            if lease.kind == "anonymize":
                due = _due_to_anonymize(lease, wish, self._records.record_id(lease.id, wish.unit, wish.attempt))
                state = await self._counted(context, lease, wish, due)
                return await self._derived(state, due, wish)
            try:
                due = self._due_to_recover(lease, wish)
                await self._opener.usable(lease.tenant, due.key_id, *due.purposes)
                await self._limiter.take_key(principal, due.key_id, lease.request_id)
                state = await self._counted(context, lease, wish, due)
                return await self._derived(state, due, wish)
            except _OWN_DOING:
                await self._limiter.failed(principal, lease.request_id)
                raise

    def _due_to_recover(self, lease: Lease, wish: Wish) -> _Due:
        if wish.forensic or wish.nonces is not None or not 1 <= len(wish.purpose or "") <= _PURPOSE_MAX_CHARACTERS:
            raise InvalidRequest(
                f"Recovery takes a record and a `purpose` of 1 to {_PURPOSE_MAX_CHARACTERS} characters, no nonces."
            )
        if wish.record is None:
            raise RecordInvalid
        record = self._records.read(wish.record, lease.tenant)
        if not record.own_tenant or not record.nonces:
            raise RecordInvalid
        if lease.key_id not in (None, record.key_id):
            raise RecordMismatch("The record was made with another key than the one named.")
        made_with = (record.model_id, record.model_digest, record.key_scheme)
        if (wish.model, wish.model_digest, wish.key_scheme) != made_with:
            raise RecordModelMismatch(model_id=record.model_id)
        if wish.wrapped_dek is not None and not record.is_forensic:
            raise SidecarInvalid
        asked = Asked(*made_with, record.nonces, is_forensic=wish.wrapped_dek is not None)
        return _Due("recover", asked, record.key_id, record.key_version, record.record_id)

    async def _counted(self, context: CallContext, lease: Lease, wish: Wish, due: _Due) -> KeyState:
        """Check the key, write the audit entry, count the redeem; all of it anew if the key changed meanwhile."""
        for last in range(_CHANGE_TRIES - 1, -1, -1):
            state = await self._opener.usable(lease.tenant, due.key_id, *due.purposes)
            await self._admission.note(
                context,
                "lease.redeem",
                lease.id,
                decision="allowed",
                key_id=due.key_id,
                key_version=due.key_version,
                rev=state.rev,
                record_id=due.record_id if due.purpose == "recover" else None,
                model_id=wish.model,
                purpose=wish.purpose,
                unit=wish.unit,
                attempt=wish.attempt,
                faces=len(due.asked.nonces),
                mode="forensic" if due.asked.is_forensic else None,
                nonces_digest=hashlib.sha256(b"".join(due.asked.nonces)).hexdigest(),
            )
            try:
                await self._leases.redeem(
                    lease, key_id=due.key_id, key_rev=state.rev, unit=wish.unit, attempt=wish.attempt, asked=due.asked
                )
            except SecretKeyConflict:
                if not last:
                    raise
            else:
                return state
        raise SecretKeyConflict

    async def _derived(self, state: KeyState, due: _Due, wish: Wish) -> bytearray:
        octets = bytearray()
        name = DekName(state.tenant, due.key_id, due.key_version, due.record_id)
        async with self._opener.open(state, due.key_version, due.purpose) as secret:
            if wish.wrapped_dek is not None:
                with opened_dek(secret.octets, name, wish.wrapped_dek) as dek:
                    return bytearray(dek.octets)
            for nonce in due.asked.nonces:
                face = method_key(
                    secret.octets,
                    tenant=state.tenant,
                    key_id=due.key_id,
                    model_id=due.asked.model_id,
                    image_nonce=nonce,
                    dim=wish.dim,
                )
                octets += face
                wipe(face)
            if wish.forensic:
                dek, wrapped = new_dek(secret.octets, name)
                with dek:
                    octets += dek.octets + wrapped + due.record_id.encode()
        return octets


def _due_to_anonymize(lease: Lease, wish: Wish, record_id: str) -> _Due:
    if wish.record is not None or wish.wrapped_dek is not None or not wish.nonces:
        raise InvalidRequest("Anonymization takes one nonce a face, and no record.")
    # No nonce but this job's: else a worker could redeem, with any lease of a key, the image keys of older pictures,
    # whose nonces stand in their records. Linked pictures share one image key by intent.
    own = tuple(image_nonce(lease.job_id, face, wish.unit) for face in range(len(wish.nonces)))
    if any(wish.nonces) and wish.nonces != own:
        raise LeaseRefused("The nonces are not those of this job.")
    if lease.key_id is None:
        raise LeaseRefused
    nonces = tuple(map(bytes.fromhex, wish.nonces))
    asked = Asked(wish.model, wish.model_digest, wish.key_scheme, nonces, wish.forensic)
    return _Due("anonymize", asked, lease.key_id, lease.key_version, record_id)
