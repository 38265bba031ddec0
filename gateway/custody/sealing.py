"""Records for a worker: signed for the faces that it redeemed, and checked for whoever holds a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from gateway.custody.admission import Admission
from gateway.custody.canonical import canonical
from gateway.custody.leases import Asked, Leases
from gateway.custody.limits import Limiter
from gateway.custody.opening import KeyOpener
from gateway.custody.records import Records, check_nonces, is_forensic, nonces_of
from gateway.custody.store import Purpose
from shared.context import CallContext
from shared.problems import InvalidRequest, LeaseRefused, RecordInvalid

DRAFT_FIELDS = frozenset({"model_id", "model_digest", "key_scheme", "linkage", "image", "faces"})


class Sealing:
    """The worker's way to signatures."""

    def __init__(
        self, admission: Admission, leases: Leases, opener: KeyOpener, records: Records, limiter: Limiter
    ) -> None:
        self._admission = admission
        self._leases = leases
        self._opener = opener
        self._records = records
        self._limiter = limiter

    async def seal(
        self, context: CallContext, lease_id: str, *, unit: int, attempt: int, draft: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Sign the record of a unit: once an attempt, and the same answer for the same draft.

        draft  exactly `DRAFT_FIELDS`; a face that was anonymized has its `nonce`; numbers with a fraction are strings

        Raises `LeaseRefused` for faces that this attempt did not redeem and for a second draft, `InvalidRequest` for a
        draft without canonical form, and what a redeem raises about lease, scope and key.
        """
        about: dict[str, str | int | None] = {"unit": unit, "attempt": attempt, "model_id": str(draft.get("model_id"))}
        async with self._admission.audited(context, "record.seal", lease_id, about):
            lease, _ = await self._admission.lease(context, lease_id, {"anonymize"})
            if lease.key_id is None:
                raise LeaseRefused
            asked, digest = _read(draft)
            purposes: tuple[Purpose, ...] = ("anonymize", "forensic") if asked.is_forensic else ("anonymize",)
            state = await self._opener.usable(lease.tenant, lease.key_id, *purposes)
            await self._leases.seal(lease, unit=unit, attempt=attempt, asked=asked, draft_digest=digest)
            record_id = self._records.record_id(lease.id, unit, attempt)
            await self._admission.note(
                context,
                "record.seal",
                lease.id,
                decision="allowed",
                key_id=state.key_id,
                key_version=lease.key_version,
                rev=state.rev,
                record_id=record_id,
                record_digest=digest,
                faces=len(asked.nonces),
                mode="forensic" if asked.is_forensic else None,
                **about,
            )
            return self._records.sign(
                draft,
                record_id=record_id,
                tenant=lease.tenant,
                key_id=lease.key_id,
                key_version=lease.key_version,
                opened_at=lease.opened_at,
            )

    async def check(self, context: CallContext, record: Mapping[str, Any]) -> dict[str, Any]:
        """Whether a record is ours and the caller's; what it says is repeated to its own tenant only.

        Raises `ScopeMissing` and `RateLimited`.
        """
        async with self._admission.audited(context, "record.check", None, {}):
            principal = await self._admission.principal(context, ("verify", "recover"))
            await self._limiter.take_verify(principal, context.request_id)
        try:
            read = self._records.read(record, context.tenant)
        except RecordInvalid:
            return {"valid": False, "own_tenant": False}
        if not read.own_tenant:
            return {"valid": True, "own_tenant": False}
        return {
            "valid": True,
            "own_tenant": True,
            "record_id": read.record_id,
            "key_id": read.key_id,
            "key_version": read.key_version,
            "key_scheme": read.key_scheme,
            "model_id": read.model_id,
            "model_digest": read.model_digest,
            "linkage": read.linkage,
        }


def _read(draft: Mapping[str, Any]) -> tuple[Asked, str]:
    """What the draft must have redeemed, and the digest of its canonical form."""
    if set(draft) != DRAFT_FIELDS:
        raise InvalidRequest(f"A draft has exactly the fields {', '.join(sorted(DRAFT_FIELDS))}.")
    try:
        if not all(isinstance(face, Mapping) for face in draft["faces"]):
            raise ValueError("a face is not an object")
        nonces = nonces_of(draft["faces"])
        check_nonces(nonces, draft["linkage"])
        weights = draft["model_id"], draft["model_digest"], draft["key_scheme"]
        asked = Asked(*weights, tuple(map(bytes.fromhex, nonces)), is_forensic(draft["faces"]))
        return asked, hashlib.sha256(canonical(draft)).hexdigest()
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"The draft has no signature: {error}.") from None
