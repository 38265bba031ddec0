"""The keys of custody itself: for MACs, for the audit chain, for signatures.

Each is 32 random bytes, wrapped under the key-encryption key like any tenant's secret, and kept in custody Redis beside
them: so they come along with every backup, and whoever restores Redis without its key-encryption key has nothing. They
are made once, when custody is empty, and never replaced silently: a root that is missing while tenants exist is damage.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.custody.database import Database
from gateway.custody.envelope import Envelope, SecretName, Wrapped
from gateway.custody.macs import checked, with_mac
from shared.problems import SecretKeyConflict, SecretKeyIntegrity
from shared.secretbytes import SecretBytes

Purpose = Literal["metadata", "audit", "tenant-ref", "lease", "signing"]
TENANTS = "kc:{root}:tenants"
SECRET_BYTES = 32


@dataclass(frozen=True)
class SigningKey:
    """An Ed25519 key. The newest one signs; all of them verify, for as long as records live."""

    kid: str
    created_at: int  # seconds since the epoch
    private: Ed25519PrivateKey
    public: Ed25519PublicKey

    @classmethod
    def from_seed(cls, seed: SecretBytes, created_at: int) -> Self:
        private = Ed25519PrivateKey.from_private_bytes(seed.octets)
        raw = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        kid = f"rk_{hashlib.sha256(raw).hexdigest()[:16]}"
        return cls(kid, created_at, private, private.public_key())

    def sign(self, message: bytes) -> str:
        return base64.urlsafe_b64encode(self.private.sign(message)).decode().rstrip("=")

    def verifies(self, message: bytes, signature: str) -> bool:
        try:
            octets = base64.b64decode(signature + "=" * (-len(signature) % 4), altchars=b"-_", validate=True)
            self.public.verify(octets, message)
        except (ValueError, InvalidSignature):
            return False
        return True

    def to_public(self) -> dict[str, Any]:
        """The entry of the published key list: a JSON Web Key (RFC 8037) and since when it signs."""
        raw = self.public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "alg": "EdDSA",
            "use": "sig",
            "kid": self.kid,
            "x": base64.urlsafe_b64encode(raw).decode().rstrip("="),
            "created_at": self.created_at,
        }


@dataclass(frozen=True)
class Roots:
    """All of them, in memory for as long as the process lives."""

    metadata: SecretBytes
    audit: SecretBytes
    tenant_ref: SecretBytes
    lease: SecretBytes
    signing: tuple[SigningKey, ...]  # oldest first

    @classmethod
    async def open(cls, database: Database, envelope: Envelope, now: float) -> Self:
        """Unwrap them, or make them where custody is empty.

        Raises `KekUnavailable`, and `SecretKeyIntegrity` where one is missing, altered, or wrapped under another key.
        """
        keeper = _Keeper(database, envelope, now)
        metadata, _ = await keeper.find_or_make("metadata", None)
        audit, _ = await keeper.find_or_make("audit", metadata)
        tenant_ref, _ = await keeper.find_or_make("tenant-ref", metadata)
        lease, _ = await keeper.find_or_make("lease", metadata)
        first, created_at = await keeper.find_or_make("signing", metadata)
        signing = [SigningKey.from_seed(first, created_at)]
        while found := await keeper.find("signing", len(signing) + 1, metadata):
            signing.append(SigningKey.from_seed(*found))
        return cls(metadata, audit, tenant_ref, lease, tuple(signing))

    def wipe(self) -> None:
        for secret in (self.metadata, self.audit, self.tenant_ref, self.lease):
            secret.wipe()

    async def add_signing_key(self, database: Database, envelope: Envelope, now: float) -> SigningKey:
        """Make the next signing key. Processes that run already sign with the one before until they start anew."""
        version = len(self.signing) + 1
        seed, created_at = await _Keeper(database, envelope, now).make("signing", version, self.metadata)
        return SigningKey.from_seed(seed, created_at)


class _Keeper:
    def __init__(self, database: Database, envelope: Envelope, now: float) -> None:
        self._database = database
        self._envelope = envelope
        self._now = now

    async def find_or_make(self, purpose: Purpose, mac_key: SecretBytes | None) -> tuple[SecretBytes, int]:
        if found := await self.find(purpose, 1, mac_key):
            return found
        if await self._database.members(TENANTS):
            raise SecretKeyIntegrity(
                f"Custody has tenants, but its root `{purpose}` is gone. Restore Redis from a backup."
            )
        try:
            return await self.make(purpose, 1, mac_key)
        except SecretKeyConflict:  # another process was faster
            found = await self.find(purpose, 1, mac_key)
            if found is None:
                raise
            return found

    async def find(self, purpose: Purpose, version: int, mac_key: SecretBytes | None) -> tuple[SecretBytes, int] | None:
        """The secret and when it was made; None where it never was."""
        name = _name(purpose, version)
        fields = await self._database.hash(name)
        if not fields:
            return None
        wrapped = {field: value for field, value in fields.items() if field not in ("created_at", "mac")}
        secret = await self._envelope.unwrap(_secret_name(purpose, version), Wrapped.from_hash(wrapped))
        return secret, int(checked(mac_key or secret, name, fields)["created_at"])

    async def make(self, purpose: Purpose, version: int, mac_key: SecretBytes | None) -> tuple[SecretBytes, int]:
        secret = SecretBytes(secrets.token_bytes(SECRET_BYTES))
        wrapped = await self._envelope.wrap(_secret_name(purpose, version), secret)
        name = _name(purpose, version)
        fields = {**wrapped.to_hash(), "created_at": str(int(self._now))}
        written = with_mac(mac_key or secret, name, fields)
        if not await self._database.commit("create_hash", [name], _flat(written)):
            raise SecretKeyConflict
        return secret, int(self._now)


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [part for item in fields.items() for part in item]


def _name(purpose: Purpose, version: int) -> str:
    return f"kc:{{root}}:{purpose}:{version}"


def _secret_name(purpose: Purpose, version: int) -> SecretName:
    return SecretName(f"root/{purpose}", "", purpose, version)
