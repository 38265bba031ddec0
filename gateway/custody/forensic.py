"""Data keys of pictures whose originals are kept, encrypted, in a sidecar (key-custody.md, section 6.1).

A key for every picture, drawn here and kept nowhere: the sidecar carries it, wrapped under a key that is derived from
the tenant's secret. Whoever holds the sidecar cannot open it without custody, and custody cannot once that secret is
destroyed.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from shared.keyderivation import NONCE_BYTES, Octets, WrongKey, be32, forensic_kek, length_prefix, unwrap, wrap
from shared.leases import DEK_BYTES
from shared.problems import SidecarInvalid
from shared.secretbytes import SecretBytes

_LABEL = "kc-forensic-dek/v1"


@dataclass(frozen=True)
class DekName:
    """What a data key is for. Wrapped for one record, it does not open for another."""

    tenant: str
    key_id: str
    key_version: int
    record_id: str

    @property
    def aad(self) -> bytes:
        return length_prefix(_LABEL, self.tenant, self.key_id, be32(self.key_version), self.record_id)


def new_dek(secret: Octets, name: DekName) -> tuple[SecretBytes, bytes]:
    """A fresh data key, and the same wrapped: nonce, ciphertext and tag."""
    dek, nonce = SecretBytes(secrets.token_bytes(DEK_BYTES)), secrets.token_bytes(NONCE_BYTES)
    with SecretBytes(forensic_kek(secret, tenant=name.tenant, key_id=name.key_id)) as kek:
        return dek, nonce + wrap(kek.octets, nonce, dek.octets, name.aad)


def opened_dek(secret: Octets, name: DekName, wrapped: bytes) -> SecretBytes:
    """The data key that was wrapped under this name. Raises `SidecarInvalid`, which does not say why."""
    with SecretBytes(forensic_kek(secret, tenant=name.tenant, key_id=name.key_id)) as kek:
        try:
            return SecretBytes(unwrap(kek.octets, wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], name.aad))
        except WrongKey:
            raise SidecarInvalid from None
