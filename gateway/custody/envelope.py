"""A secret and the words around it: wrapped under a key-encryption key and bound to what it is for.

The associated data name purpose, tenant, key, version, key-encryption key and algorithm, each with its length before
it. A ciphertext that was moved to another place does not open (key-custody.md, section 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from gateway.custody.kek import ALG, KekProvider, KekVersion
from shared.keyderivation import record_aad
from shared.problems import SecretKeyIntegrity
from shared.secretbytes import SecretBytes

METHOD_SECRET = "method-secret"  # noqa: S105  the purpose of the secrets that tenants' pictures depend on


@dataclass(frozen=True)
class SecretName:
    """What a secret is: no secret itself."""

    purpose: str
    tenant: str
    key_id: str
    version: int


@dataclass(frozen=True)
class Wrapped:
    """A wrapped secret as Redis keeps it."""

    alg: str
    kek: KekVersion
    nonce: bytes
    ciphertext: bytes

    def to_hash(self) -> dict[str, str]:
        """The fields of the Redis hash, in text."""
        return {
            "v": "1",
            "alg": self.alg,
            "kek_id": self.kek.kek_id,
            "kek_version": str(self.kek.version),
            "nonce": self.nonce.hex(),
            "ct": self.ciphertext.hex(),
        }

    @classmethod
    def from_hash(cls, fields: Mapping[str, str]) -> Self:
        """Read the hash back. Raises `SecretKeyIntegrity` where it does not have exactly the fields of `to_hash`."""
        try:
            wrapped = cls(
                fields["alg"],
                KekVersion(fields["kek_id"], int(fields["kek_version"])),
                bytes.fromhex(fields["nonce"]),
                bytes.fromhex(fields["ct"]),
            )
        except (KeyError, ValueError):
            raise SecretKeyIntegrity from None
        if wrapped.to_hash() != dict(fields):
            raise SecretKeyIntegrity
        return wrapped


class Envelope:
    """Wraps and unwraps by name."""

    def __init__(self, provider: KekProvider) -> None:
        self._provider = provider

    async def wrap(self, name: SecretName, secret: SecretBytes) -> Wrapped:
        """Encrypt under the provider's newest key. Raises `KekUnavailable`."""
        kek = await self._provider.primary()
        nonce, ciphertext = await self._provider.wrap(kek, secret, _aad(name, kek, ALG))
        return Wrapped(ALG, kek, nonce, ciphertext)

    async def unwrap(self, name: SecretName, wrapped: Wrapped) -> SecretBytes:
        """Decrypt. Raises `KekUnavailable`, and `SecretKeyIntegrity` for anything that is not what was wrapped.

        There is one algorithm; what the hash calls it is in the associated data, so another name does not open.
        """
        return await self._provider.unwrap(
            wrapped.kek, wrapped.nonce, wrapped.ciphertext, _aad(name, wrapped.kek, wrapped.alg)
        )

    async def check(self) -> None:
        """Wrap, unwrap and tamper once. Raises `KekUnavailable`, and `SecretKeyIntegrity` where tampering passes."""
        name = SecretName("self-test", "self-test", "self-test", 1)
        with SecretBytes(b"self-test" + bytes(23)) as secret:
            wrapped = await self.wrap(name, secret)
            with await self.unwrap(name, wrapped) as again:
                if again != secret:
                    raise SecretKeyIntegrity
        try:
            (await self.unwrap(SecretName("self-test", "self-test", "self-test", 2), wrapped)).wipe()
        except SecretKeyIntegrity:
            return
        raise SecretKeyIntegrity("The key-encryption key's provider ignores associated data.")


def _aad(name: SecretName, kek: KekVersion, alg: str) -> bytes:
    return record_aad(
        purpose=name.purpose,
        tenant=name.tenant,
        key_id=name.key_id,
        key_version=name.version,
        kek_id=kek.kek_id,
        kek_version=kek.version,
        algorithm=alg,
    )
