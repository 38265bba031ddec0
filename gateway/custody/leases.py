"""Leases: what a worker may ask for on behalf of one job, and how often.

A lease is bound to job, operation, tenant, principal and, where it is known beforehand, key and version. It is a name,
not a capability: asking takes a call that the worker's installation signed and a context that the gateway signed. It
lives in custody Redis under a MAC; what was used of it stands in a hash beside it, changed by scripts only.

    kc:{<tenant>}:lease:<lease>   hash    the lease, `mac`; dropped by Redis when nothing can need it any more
    kc:{<tenant>}:use:<lease>     hash    redeems, attempts, digests, seals by unit
    kc:{<lease>}:tenant           string  whose lease it is, for downloads
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.custody.canonical import canonical
from gateway.custody.database import Database
from gateway.custody.macs import checked, with_mac
from gateway.custody.roots import Roots
from gateway.custody.store import key_name
from gateway.principals import Principal
from shared.ids import pattern, random_id
from shared.keyderivation import NONCE_BYTES, SECRET_BYTES, WrongKey, length_prefix, unwrap, wrap
from shared.problems import LeaseExpired, LeaseRefused, SecretKeyConflict, SecretKeyIntegrity
from shared.secretbytes import SecretBytes

Kind = Literal["anonymize", "recover", "verify", "guard"]
SCOPES_OF: Mapping[Kind, frozenset[str]] = {
    "anonymize": frozenset({"use"}),
    "recover": frozenset({"recover"}),
    "verify": frozenset({"verify"}),
    "guard": frozenset({"use", "recover", "verify"}),  # any: it goes with an operation that has its own
}
"""One of these the principal must hold."""

REDEEMS_A_UNIT = 3  # the first, and two after a worker died
FILE_KEY_AFTER_S = 3600.0  # results outlive the job's deadline by 15 minutes; the rest is for clocks and slow downloads

_LEASE_ID = re.compile(pattern("lease"))
_REFUSALS = {
    "gone": LeaseExpired("The lease has run out."),
    "used_up": LeaseExpired(f"A unit is redeemed {REDEEMS_A_UNIT} times at most."),
    "stale": LeaseRefused("A later attempt has taken this unit over."),
    "other": LeaseRefused("This attempt asked for something else before."),
    "units": LeaseRefused("The lease allows no further unit."),
    "faces": LeaseRefused("The lease allows no further face."),
}


@dataclass(frozen=True)
class Caps:
    """How much one lease may be used for."""

    units: int
    faces: int


CAPS: Mapping[Kind, Caps] = {
    "anonymize": Caps(units=20_000, faces=200_000),  # the largest archive, ten faces a picture
    "recover": Caps(units=1, faces=1000),  # one picture
    "verify": Caps(units=0, faces=0),
    "guard": Caps(units=0, faces=0),  # it opens the pictures that the guard is shown, and nothing else
}


@dataclass(frozen=True)
class Lease:
    """What was allowed. Times are seconds since the epoch; `key_version` 0 means: as the record says."""

    id: str
    tenant: str
    principal: str
    job_id: str
    method: str
    operation: str
    kind: Kind
    key_id: str | None
    key_version: int
    opened_at: float
    expires_at: float
    request_id: str
    caps: Caps


@dataclass(frozen=True)
class Asked:
    """What a redeem asks for, and what a seal must match: the same weights and the same faces."""

    model_id: str
    model_digest: str
    key_scheme: str
    nonces: tuple[bytes, ...]
    is_forensic: bool = False
    """With a data key for the originals."""

    def digest(self) -> str:
        nonces = [nonce.hex() for nonce in self.nonces]
        parts = [self.model_id, self.model_digest, self.key_scheme, nonces, self.is_forensic]
        return hashlib.sha256(canonical(parts)).hexdigest()


class Leases:
    """Opens leases and keeps count of them. Every call may raise `ServiceUnavailable` and `SecretKeyIntegrity`."""

    def __init__(self, database: Database, roots: Roots, *, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._roots = roots
        self._now = now

    async def open(
        self,
        principal: Principal,
        *,
        lease_id: str,
        job_id: str,
        method: str,
        operation: str,
        kind: Kind,
        key_id: str | None,
        key_version: int,
        expires_at: float,
        request_id: str,
    ) -> Lease:
        """Write a lease with a new file key."""
        lease = Lease(
            lease_id,
            principal.tenant,
            principal.id,
            job_id,
            method,
            operation,
            kind,
            key_id,
            key_version,
            self._now(),
            expires_at,
            request_id,
            CAPS[kind],
        )
        nonce = secrets.token_bytes(NONCE_BYTES)
        with SecretBytes(secrets.token_bytes(SECRET_BYTES)) as file_key:
            wrapped = wrap(self._roots.lease.octets, nonce, file_key.octets, _file_key_aad(lease.tenant, lease.id))
        name = _name(lease.tenant, lease.id)
        fields = {**_to_hash(lease), "file_key_nonce": nonce.hex(), "file_key": wrapped.hex()}
        keep_ms = int(max(0.0, expires_at - lease.opened_at + FILE_KEY_AFTER_S) * 1000)
        flat = [part for item in with_mac(self._roots.metadata, name, fields).items() for part in item]
        await self._database.run("open_lease", [name], [keep_ms, *flat])
        await self._database.run("claim", [_owner(lease.id)], [lease.tenant, keep_ms])
        return lease

    async def find(self, tenant: str, lease_id: str) -> Lease:
        """A lease of this tenant, expired or not. Raises `LeaseRefused` where there is none."""
        return _from_hash(lease_id, await self._fields(tenant, lease_id))

    async def tenant_of(self, lease_id: str) -> str:
        """Whose lease it is. Raises `LeaseRefused` where there is none."""
        tenant = await self._database.text(_owner(lease_id)) if _LEASE_ID.fullmatch(lease_id) else None
        if tenant is None:
            raise LeaseRefused
        return tenant

    async def file_key(self, tenant: str, lease_id: str) -> bytearray:
        """The key of the files of this lease's job; the caller wipes it."""
        fields = await self._fields(tenant, lease_id)
        nonce, wrapped = bytes.fromhex(fields["file_key_nonce"]), bytes.fromhex(fields["file_key"])
        try:
            return unwrap(self._roots.lease.octets, nonce, wrapped, _file_key_aad(tenant, lease_id))
        except WrongKey:
            raise SecretKeyIntegrity from None

    async def release(self, lease: Lease) -> None:
        """Forget a lease and the key of its files. Nothing is redeemed with it, and its id opens nothing, any more."""
        await self._database.run("delete", [_name(lease.tenant, lease.id), _use(lease.tenant, lease.id)], [])
        await self._database.run("delete", [_owner(lease.id)], [])

    async def redeem(self, lease: Lease, *, key_id: str, key_rev: int, unit: int, attempt: int, asked: Asked) -> None:
        """Count one redeem. Raises `LeaseRefused`, `LeaseExpired`, and `SecretKeyConflict` if the key has changed."""
        keys = [_name(lease.tenant, lease.id), _use(lease.tenant, lease.id), key_name(lease.tenant, key_id)]
        caps = [REDEEMS_A_UNIT, lease.caps.units, lease.caps.faces]
        args: list[str | int] = [key_rev, unit, attempt, asked.digest(), len(asked.nonces), *caps]
        await self._run("redeem_lease", keys, args)

    async def seal(self, lease: Lease, *, unit: int, attempt: int, asked: Asked, draft_digest: str) -> None:
        """Reserve a unit's record for one draft. Raises `LeaseRefused` and `LeaseExpired`."""
        keys = [_name(lease.tenant, lease.id), _use(lease.tenant, lease.id)]
        await self._run("seal_lease", keys, [unit, attempt, asked.digest() if asked.nonces else "", draft_digest])

    async def _run(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> None:
        answer = await self._database.run(script, keys, args)
        if answer == "changed":
            raise SecretKeyConflict
        if answer != "ok":
            refusal = _REFUSALS[answer]
            raise type(refusal)(refusal.detail)

    async def _fields(self, tenant: str, lease_id: str) -> dict[str, str]:
        if not _LEASE_ID.fullmatch(lease_id):
            raise LeaseRefused
        name = _name(tenant, lease_id)
        fields = await self._database.hash(name)
        if not fields:
            raise LeaseRefused
        return checked(self._roots.metadata, name, fields)


def new_lease_id() -> str:
    return random_id("lease")


def _to_hash(lease: Lease) -> dict[str, str]:
    return {
        "tenant": lease.tenant,
        "principal": lease.principal,
        "job_id": lease.job_id,
        "method": lease.method,
        "operation": lease.operation,
        "kind": lease.kind,
        "key_id": lease.key_id or "",
        "key_version": str(lease.key_version),
        "opened_at": repr(lease.opened_at),
        "expires_at": repr(lease.expires_at),
        "request_id": lease.request_id,
        "max_units": str(lease.caps.units),
        "max_faces": str(lease.caps.faces),
    }


def _from_hash(lease_id: str, fields: Mapping[str, str]) -> Lease:
    return Lease(
        lease_id,
        fields["tenant"],
        fields["principal"],
        fields["job_id"],
        fields["method"],
        fields["operation"],
        fields["kind"],  # type: ignore[arg-type]
        fields["key_id"] or None,
        int(fields["key_version"]),
        float(fields["opened_at"]),
        float(fields["expires_at"]),
        fields["request_id"],
        Caps(int(fields["max_units"]), int(fields["max_faces"])),
    )


def _file_key_aad(tenant: str, lease_id: str) -> bytes:
    return length_prefix("kc-lease/v1", tenant, lease_id)


def _name(tenant: str, lease_id: str) -> str:
    return f"kc:{{{tenant}}}:lease:{lease_id}"


def _use(tenant: str, lease_id: str) -> str:
    return f"kc:{{{tenant}}}:use:{lease_id}"


def _owner(lease_id: str) -> str:
    return f"kc:{{{lease_id}}}:tenant"
