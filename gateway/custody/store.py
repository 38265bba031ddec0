"""Tenants' secret keys in Redis: wrapped secrets, their metadata under a MAC, and changes that compare before they set.

    kc:{<tenant>}:key:<key_id>              hash    metadata, `rev`, `mac`
    kc:{<tenant>}:sec:<key_id>:<version>    hash    one wrapped secret, `mac`
    kc:{<tenant>}:byexp                     zset    key_id by expiry (inf: never)
    kc:{<tenant>}:kekuse:<kek_id>:<version> set     <key_id>/<version> wrapped under that key-encryption key
    kc:{<tenant>}:tomb:<key_id>             string  when it was destroyed; kept for ever, so that no id comes again
    kc:{<tenant>}:default                   hash    the key of requests that name none, `rev`, `mac`

The braces are literal: they keep a tenant's keys in one slot of a Redis cluster. Expiry is data, never a Redis TTL: a
wrong clock must not destroy evidence (key-custody.md, section 3.1).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gateway.custody.canonical import canonical
from gateway.custody.database import Database
from gateway.custody.envelope import Wrapped
from gateway.custody.macs import checked, with_mac
from gateway.custody.roots import TENANTS
from shared.ids import pattern
from shared.problems import SecretKeyConflict, SecretKeyNotFound
from shared.secretbytes import SecretBytes

Status = Literal["creating", "active", "disabled", "pending_destroy", "destroyed"]
Purpose = Literal["anonymize", "recover", "forensic"]
TENANT = re.compile(r"[a-z0-9-]{1,64}")
_KEY_ID = re.compile(pattern("key"))


@dataclass(frozen=True)
class KeyState:
    """What is known of a key, none of it secret. Times are seconds since the epoch."""

    tenant: str
    key_id: str
    status: Status
    version: int  # the newest; all from 1 on can recover
    label: str
    purposes: frozenset[Purpose]
    created_at: float
    created_by: str
    not_after: float | None = None
    destroy_at: float | None = None
    destroy_requested_by: str | None = None
    destroy_approved_by: str | None = None
    rev: int = 0  # of the state that was read; 0: not written yet

    def to_hash(self, rev: int) -> dict[str, str]:
        return {
            "status": self.status,
            "key_version": str(self.version),
            "label": self.label,
            "purposes": ",".join(sorted(self.purposes)),
            "created_at": repr(self.created_at),
            "created_by": self.created_by,
            "not_after": _optional(self.not_after),
            "destroy_at": _optional(self.destroy_at),
            "destroy_requested_by": self.destroy_requested_by or "",
            "destroy_approved_by": self.destroy_approved_by or "",
            "rev": str(rev),
        }

    @staticmethod
    def from_hash(tenant: str, key_id: str, fields: Mapping[str, str]) -> KeyState:
        return KeyState(
            tenant,
            key_id,
            fields["status"],  # type: ignore[arg-type]
            int(fields["key_version"]),
            fields["label"],
            frozenset(fields["purposes"].split(",")),  # type: ignore[arg-type]
            float(fields["created_at"]),
            fields["created_by"],
            float(fields["not_after"]) if fields["not_after"] else None,
            float(fields["destroy_at"]) if fields["destroy_at"] else None,
            fields["destroy_requested_by"] or None,
            fields["destroy_approved_by"] or None,
            int(fields["rev"]),
        )


class KeyStore:
    """Reads and writes keys. What was altered in Redis is `SecretKeyIntegrity`; what is away, `ServiceUnavailable`."""

    def __init__(self, database: Database, mac_key: SecretBytes) -> None:
        self._database = database
        self._mac_key = mac_key

    async def load(self, tenant: str, key_id: str) -> KeyState:
        """The key's state. Unknown, half-made and destroyed keys and other tenants' are `SecretKeyNotFound`."""
        state = await self.find(tenant, key_id)
        if state is None or state.status == "creating":
            raise SecretKeyNotFound
        return state

    async def find(self, tenant: str, key_id: str) -> KeyState | None:
        """The key's state even while it is being created; None where there is no such key."""
        if not _KEY_ID.fullmatch(key_id):
            return None
        name = _key(tenant, key_id)
        fields = await self._database.hash(name)
        return KeyState.from_hash(tenant, key_id, checked(self._mac_key, name, fields)) if fields else None

    async def list(self, tenant: str) -> Sequence[KeyState]:
        """All keys of a tenant, half-made ones too, oldest first."""
        found = [await self.find(tenant, key_id) for key_id in await self._database.ranked(_byexp(tenant))]
        return sorted((state for state in found if state), key=lambda state: (state.created_at, state.key_id))

    async def tenants(self) -> Sequence[str]:
        return sorted(await self._database.members(TENANTS))

    async def wrapped(self, tenant: str, key_id: str, version: int) -> Wrapped:
        """One version of the secret, still wrapped. Its absence is `SecretKeyIntegrity`: the metadata promise it."""
        name = _secret(tenant, key_id, version)
        return Wrapped.from_hash(checked(self._mac_key, name, await self._database.hash(name)))

    async def create(self, state: KeyState, wrapped: Wrapped) -> KeyState | None:
        """Write a new key, durably; None where the id was ever used before."""
        await self._database.run("add_member", [TENANTS], [state.tenant])
        tenant, key_id = state.tenant, state.key_id
        keys = [
            _key(tenant, key_id),
            _secret(tenant, key_id, state.version),
            _tomb(tenant, key_id),
            _byexp(tenant),
            _kekuse(tenant, wrapped),
        ]
        metadata, secret = self._metadata(state, 1), self._wrapped(state, wrapped)
        args: list[str | int] = [key_id, state.version, _score(state), len(metadata), *metadata, *secret]
        return replace(state, rev=1) if await self._database.commit("create_key", keys, args) else None

    async def change(self, before: KeyState, after: KeyState) -> KeyState:
        """Put `after` in the place of `before`, durably. Raises `SecretKeyConflict` if the key is no longer as read."""
        metadata = self._metadata(after, before.rev + 1)
        keys = [_key(after.tenant, after.key_id), _byexp(after.tenant)]
        args: list[str | int] = [before.rev, after.key_id, _score(after), *metadata]
        if not await self._database.commit("change_key", keys, args):
            raise SecretKeyConflict
        return replace(after, rev=before.rev + 1)

    async def put_next(self, state: KeyState, wrapped: Wrapped) -> None:
        """Write the secret of the version after the newest. It counts for nothing until `change` raises the version."""
        tenant, key_id, version = state.tenant, state.key_id, state.version + 1
        keys = [_key(tenant, key_id), _secret(tenant, key_id, version), _kekuse(tenant, wrapped)]
        secret = self._wrapped(replace(state, version=version), wrapped)
        if not await self._database.commit("put_secret", keys, [state.rev, f"{key_id}/{version}", *secret]):
            raise SecretKeyConflict

    async def destroy(self, state: KeyState, now: float, *, tombstone: bool = True) -> None:
        """Delete the key with every version and let a tombstone stand in its place, durably; then have the
        append-only file rewritten without it. Raises `SecretKeyConflict` if the key is no longer as read.

        Without tombstone: for a key that was never given out.
        """
        tenant, key_id = state.tenant, state.key_id
        secrets, uses = [], []
        for version in range(1, state.version + 2):  # one more: a rotation may have died before it was finished
            secrets.append(_secret(tenant, key_id, version))
            fields = await self._database.hash(secrets[-1])
            uses.append(f"kc:{{{tenant}}}:kekuse:{fields.get('kek_id')}:{fields.get('kek_version')}")
        digest = hashlib.sha256(canonical(state.to_hash(state.rev))).hexdigest()
        note = canonical({"destroyed_at": int(now), "digest": digest}).decode() if tombstone else ""
        keys = [_key(tenant, key_id), _tomb(tenant, key_id), _byexp(tenant), *secrets, *uses]
        if not await self._database.commit("destroy_key", keys, [state.rev, key_id, note, len(secrets)]):
            raise SecretKeyConflict
        await self._database.rewrite_log()

    async def claim(self, tenant: str, claim: str, digest: str, key_id: str, ttl_s: float) -> tuple[str, str]:
        """Reserve `key_id` for an idempotency key. Returns (digest, key id) of whoever came first."""
        name = f"kc:{{{_checked_tenant(tenant)}}}:idem:{claim}"
        value = json.dumps([digest, key_id])
        first = await self._database.run("claim", [name], [value, int(ttl_s * 1000)])
        found = json.loads(first or value)
        return str(found[0]), str(found[1])

    async def default(self, tenant: str) -> str | None:
        """The id of the key that serves requests which name none."""
        fields = await self._default_fields(tenant)
        return fields.get("key_id")

    async def set_default(self, tenant: str, key_id: str) -> None:
        """Raises `SecretKeyConflict` where another process does the same at the same time."""
        rev = (await self._default_fields(tenant)).get("rev", "")
        name = _default(tenant)
        fields = with_mac(self._mac_key, name, {"key_id": key_id, "rev": str(int(rev or 0) + 1)})
        if not await self._database.commit("replace_hash", [name], [rev, *_flat(fields)]):
            raise SecretKeyConflict

    async def _default_fields(self, tenant: str) -> dict[str, str]:
        name = _default(tenant)
        fields = await self._database.hash(name)
        return checked(self._mac_key, name, fields) if fields else {}

    def _metadata(self, state: KeyState, rev: int) -> Sequence[str]:
        return _flat(with_mac(self._mac_key, _key(state.tenant, state.key_id), state.to_hash(rev)))

    def _wrapped(self, state: KeyState, wrapped: Wrapped) -> Sequence[str]:
        return _flat(with_mac(self._mac_key, _secret(state.tenant, state.key_id, state.version), wrapped.to_hash()))


def key_name(tenant: str, key_id: str) -> str:
    """The Redis name of a key's metadata, for scripts that compare its `rev`."""
    return _key(tenant, key_id)


def _checked_tenant(tenant: str) -> str:
    if not TENANT.fullmatch(tenant):
        raise ValueError("a tenant's name is 1 to 64 characters of a-z, 0-9 and -")
    return tenant


def _key(tenant: str, key_id: str) -> str:
    return f"kc:{{{_checked_tenant(tenant)}}}:key:{key_id}"


def _secret(tenant: str, key_id: str, version: int) -> str:
    return f"kc:{{{_checked_tenant(tenant)}}}:sec:{key_id}:{version}"


def _tomb(tenant: str, key_id: str) -> str:
    return f"kc:{{{_checked_tenant(tenant)}}}:tomb:{key_id}"


def _byexp(tenant: str) -> str:
    return f"kc:{{{_checked_tenant(tenant)}}}:byexp"


def _default(tenant: str) -> str:
    return f"kc:{{{_checked_tenant(tenant)}}}:default"


def _kekuse(tenant: str, wrapped: Wrapped) -> str:
    return f"kc:{{{_checked_tenant(tenant)}}}:kekuse:{wrapped.kek.kek_id}:{wrapped.kek.version}"


def _score(state: KeyState) -> str:
    return "+inf" if state.not_after is None else repr(state.not_after)


def _optional(number: float | None) -> str:
    return "" if number is None else repr(number)


def _flat(fields: Mapping[str, str]) -> Sequence[str]:
    return [part for item in fields.items() for part in item]
