"""Who calls: principals with one role each, and the API keys that they show.

A principal has exactly one role for its whole life, and no two roles share the scopes that must be kept apart: nobody
who recovers pictures administers keys, and nobody who anonymizes recovers (architecture, section 5).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from gateway.custody.database import Database
from gateway.custody.macs import checked, with_mac
from gateway.custody.store import TENANT
from shared.ids import pattern, random_id
from shared.limits import Limits
from shared.problems import ApiKeyInvalid, Problem, SecretKeyIntegrity
from shared.secretbytes import SecretBytes

if TYPE_CHECKING:
    from gateway.custody.audit import AuditTrail

Role = Literal["app", "officer", "custodian"]
SCOPES: dict[Role, frozenset[str]] = {
    "app": frozenset({"use", "verify"}),
    "officer": frozenset({"recover", "verify", "audit"}),
    "custodian": frozenset({"keys"}),
}
LABEL_MAX_CHARACTERS = 200

_API_KEY = re.compile(r"tf_([0-9a-z]{8})_[A-Za-z0-9_-]{43}")
_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_PRINCIPAL = re.compile(pattern("prn"))
_ALL = "pr:{principals}:all"
_ACTIVE_KEYS = 2  # the one in use and its successor
_CACHE_S = 5.0  # a revocation made by another process is noticed after this long
_CACHE_SIZE = 1000


@dataclass(frozen=True)
class Principal:
    """Somebody with an API key, within one tenant."""

    id: str
    tenant: str
    role: Role
    scopes: frozenset[str]
    limits: tuple[tuple[str, int], ...] = ()
    """Those of `shared.limits.Limits` that are not the installation's for this one, by name."""


@dataclass(frozen=True)
class PrincipalRecord:
    """What is kept of a principal. `api_keys` are the public parts of its active keys (`tf_` and 8 characters)."""

    principal: Principal
    label: str
    created_at: float
    revoked_at: float | None
    api_keys: tuple[str, ...]


class PrincipalNotFound(Problem):
    """No principal of this name is known."""

    code, status, title = "principal_not_found", 404, "There is no such principal."


class PrincipalConflict(Problem):
    """The principal was changed in the meantime, or is revoked. List the principals and try again."""

    code, status, title = "principal_conflict", 409, "The principal is in another state."


class Principals:
    """API keys as HMACs under the pepper, in custody Redis under `pr:`.

    `actor` names who creates, rotates and revokes (for the audit trail): these calls come from an operator's command
    line, not over HTTP.
    """

    def __init__(
        self,
        database: Database,
        pepper: str,
        audit: AuditTrail,
        *,
        actor: str = "operator",
        now: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._audit = audit
        self._actor = actor
        self._now = now
        self._pepper = _derived(pepper, b"tenfold/api-key/v1")
        self._mac_key = _derived(pepper, b"tenfold/principal/v1")
        self._cache: OrderedDict[str, tuple[Principal, float]] = OrderedDict()

    async def create(
        self, tenant: str, role: Role, label: str = "", limits: Mapping[str, int] | None = None
    ) -> tuple[Principal, str]:
        """Add a principal. Returns it and its API key, which is shown this once.

        limits  those that shall not be the installation's, by their names in `shared.limits.Limits`

        Raises `ValueError` for a tenant that is not 1-64 of a-z, 0-9 and -, for an unknown role, for a label over 200
        characters, and for a limit that is unknown or negative.
        """
        if not TENANT.fullmatch(tenant):
            raise ValueError("a tenant's name is 1 to 64 characters of a-z, 0-9 and -")
        if role not in get_args(Role):
            raise ValueError(f"a principal has one of the roles {', '.join(get_args(Role))}")
        if len(label) > LABEL_MAX_CHARACTERS:
            raise ValueError(f"a label has at most {LABEL_MAX_CHARACTERS} characters")
        principal = Principal(random_id("prn"), tenant, role, SCOPES[role], _checked_limits(limits or {}))
        key_id, text = _new_api_key()
        await self._audit.append(
            "principal.create", tenant=tenant, actor=self._actor, subject=principal.id, role=role, decision="intended"
        )
        fields = {
            "tenant": tenant,
            "role": role,
            "label": label,
            "created_at": repr(self._now()),
            "revoked_at": "",
            "api_keys": json.dumps({key_id: self._digest(text)}),
            "limits": json.dumps(dict(principal.limits)),
            "rev": "1",
        }
        await self._write(principal.id, "", fields, new_key=key_id)
        return principal, text

    async def authenticate(self, api_key: str) -> Principal:
        """Whose API key this is. Raises `ApiKeyInvalid`, and `ServiceUnavailable` where custody Redis is away."""
        found = _API_KEY.fullmatch(api_key)
        if not found:
            raise ApiKeyInvalid
        digest = self._digest(api_key)
        cached, until = self._cache.get(digest, (None, 0.0))
        if cached and self._now() < until:
            return cached
        self._cache.pop(digest, None)
        principal_id = await self._database.text(_pointer(found[1]))
        record, digests, _ = await self._load(principal_id or "prn_none")
        if not hmac.compare_digest(digests.get(found[1], ""), digest) or record is None or record.revoked_at:
            raise ApiKeyInvalid
        self._cache[digest] = record.principal, self._now() + _CACHE_S
        if len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return record.principal

    async def find(self, principal_id: str) -> Principal | None:
        """The principal as it is now, past the cache; None where it is unknown or revoked."""
        record, _, _ = await self._load(principal_id)
        return None if record is None or record.revoked_at else record.principal

    async def list(self, tenant: str | None = None) -> list[PrincipalRecord]:
        """All principals, revoked ones too, oldest first. Raises `SecretKeyIntegrity` where one was tampered with."""
        records = []
        for principal_id in await self._database.members(_ALL):
            record, _, fields = await self._load(principal_id)
            if record is None and fields:
                raise SecretKeyIntegrity(f"The record of {principal_id} was altered.")
            if record and tenant in (None, record.principal.tenant):
                records.append(record)
        return sorted(records, key=lambda record: (record.created_at, record.principal.id))

    async def rotate(self, principal_id: str) -> str:
        """Add an API key and return it. The one in use stays valid; of two, the older one ends here."""
        record, digests, fields = await self._found(principal_id)
        await self._note("principal.rotate", record)
        key_id, text = _new_api_key()
        kept = dict(list(digests.items())[-(_ACTIVE_KEYS - 1) :])
        fields["api_keys"] = json.dumps({**kept, key_id: self._digest(text)})
        await self._write(principal_id, fields["rev"], fields, new_key=key_id, dropped=digests.keys() - kept.keys())
        return text

    async def limit(self, principal_id: str, changes: Mapping[str, int | None]) -> Principal:
        """Change what a principal may use: at once here, within 5 s in other processes. None: as the installation.

        Raises `ValueError` for a limit that is unknown or negative.
        """
        record, _, fields = await self._found(principal_id)
        changed = {**dict(record.principal.limits), **changes}
        limits = _checked_limits({name: value for name, value in changed.items() if value is not None})
        await self._note("principal.limit", record)
        fields["limits"] = json.dumps(dict(limits))
        await self._write(principal_id, fields["rev"], fields)
        return replace(record.principal, limits=limits)

    async def revoke_key(self, principal_id: str, key_id: str) -> None:
        """End one API key, named by its public part (`tf_` and 8 characters), at once; elsewhere within 5 s."""
        record, digests, fields = await self._found(principal_id)
        short = key_id.removeprefix("tf_")
        if short not in digests:
            raise PrincipalNotFound("The principal has no such API key.")
        await self._note("principal.revoke_key", record)
        del digests[short]
        fields["api_keys"] = json.dumps(digests)
        await self._write(principal_id, fields["rev"], fields, dropped={short})

    async def revoke(self, principal_id: str) -> None:
        """End a principal with all its API keys and open leases: at once here, within 5 s in other processes."""
        record, digests, fields = await self._found(principal_id)
        await self._note("principal.revoke", record)
        fields.update(revoked_at=repr(self._now()), api_keys="{}")
        await self._write(principal_id, fields["rev"], fields, dropped=set(digests))

    async def _found(self, principal_id: str) -> tuple[PrincipalRecord, dict[str, str], dict[str, str]]:
        record, digests, fields = await self._load(principal_id)
        if record is None:
            raise PrincipalNotFound
        if record.revoked_at:
            raise PrincipalConflict("The principal is revoked, which cannot be undone. Create another.")
        return record, digests, fields

    async def _load(self, principal_id: str) -> tuple[PrincipalRecord | None, dict[str, str], dict[str, str]]:
        """The record, the digests of its API keys (oldest first), the raw fields. A tampered record is no record."""
        name = _name(principal_id)
        fields = await self._database.hash(name)
        try:
            bare = checked(self._mac_key, name, fields)
        except SecretKeyIntegrity:
            return None, {}, fields
        role: Role = bare["role"]  # type: ignore[assignment]
        digests: dict[str, str] = json.loads(bare["api_keys"])
        record = PrincipalRecord(
            Principal(
                principal_id, bare["tenant"], role, SCOPES[role], tuple(json.loads(bare.get("limits", "{}")).items())
            ),
            bare["label"],
            float(bare["created_at"]),
            float(bare["revoked_at"]) if bare["revoked_at"] else None,
            tuple(f"tf_{key_id}" for key_id in digests),
        )
        return record, digests, bare

    async def _write(
        self,
        principal_id: str,
        rev: str,
        fields: dict[str, str],
        *,
        new_key: str = "",
        dropped: set[str] | frozenset[str] = frozenset(),
    ) -> None:
        name = _name(principal_id)
        written = with_mac(self._mac_key, name, {**fields, "rev": str(int(rev or 0) + 1)})
        flat = [part for item in written.items() for part in item]
        keys = [name, _ALL, *([_pointer(new_key)] if new_key else []), *map(_pointer, sorted(dropped))]
        if not await self._database.commit("principal", keys, [rev, principal_id, int(bool(new_key)), *flat]):
            raise PrincipalConflict
        self._cache.clear()

    async def _note(self, action: str, record: PrincipalRecord) -> None:
        principal = record.principal
        await self._audit.append(
            action,
            tenant=principal.tenant,
            actor=self._actor,
            subject=principal.id,
            role=principal.role,
            decision="intended",
        )

    def _digest(self, api_key: str) -> str:
        return hmac.digest(self._pepper.octets, api_key.encode(), hashlib.sha256).hex()


def _checked_limits(limits: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    for name, value in limits.items():
        if name not in Limits._fields:
            raise ValueError(f"{name!r} is no limit; there are {', '.join(Limits._fields)}")
        if value < 0:
            raise ValueError(f"{name} is a number of 0 (no limit) or more, not {value}")
    return tuple(sorted(limits.items()))


def _derived(pepper: str, label: bytes) -> SecretBytes:
    return SecretBytes(hmac.digest(pepper.encode(), label, hashlib.sha256))


def _new_api_key() -> tuple[str, str]:
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))
    return key_id, f"tf_{key_id}_{base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip('=')}"


def _name(principal_id: str) -> str:
    return f"pr:{{principals}}:id:{principal_id}"


def _pointer(key_id: str) -> str:
    return f"pr:{{principals}}:key:{key_id}"
