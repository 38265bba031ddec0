"""The signed record of an anonymized picture: which key and which weights made it (key-custody.md, section 6).

A record holds neither a secret nor anything about who is in the picture. It is no permission either: recovering takes
an officer, a lease and an active key, whatever the record says.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gateway.custody.canonical import canonical
from gateway.custody.roots import Roots
from shared.problems import RecordInvalid

VERSION = 1
KDF = "ifadit-hkdf-v1"
SIGNATURE_ALG = "Ed25519"

_FIELDS = frozenset(
    {"v", "record_id", "tenant_ref", "key_id", "key_version", "kdf", "key_scheme", "model_id", "model_digest"}
    | {"linkage", "created_at", "image", "faces", "sig"}
)
_NONCE = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HOUR_S = 3600


@dataclass(frozen=True)
class Record:
    """A record whose signature is good. `nonces` are those of its anonymized faces, in order."""

    record_id: str
    own_tenant: bool
    key_id: str
    key_version: int
    key_scheme: str
    model_id: str
    model_digest: str
    linkage: str
    nonces: tuple[bytes, ...]
    is_forensic: bool


class Records:
    """Signs records and reads them back."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._keys = {key.kid: key for key in roots.signing}

    def record_id(self, lease_id: str, unit: int, attempt: int) -> str:
        """A name that only this gateway can tell from a random one, and the same for the same draft."""
        digest = self._hmac("kc-record-id/v1", f"{lease_id}/{unit}/{attempt}")
        return f"rec_{digest[:26]}"

    def tenant_ref(self, tenant: str) -> str:
        """What a record calls its tenant: a published record does not name it."""
        return self._hmac("kc-tenant-ref/v1", tenant)

    def sign(
        self, draft: Mapping[str, Any], *, record_id: str, tenant: str, key_id: str, key_version: int, opened_at: float
    ) -> dict[str, Any]:
        """The record of a draft. The same arguments give the same record, to the byte.

        opened_at  when the lease was opened; the record says the hour, because times of pictures are personal data
        """
        hour = datetime.fromtimestamp(opened_at // _HOUR_S * _HOUR_S, UTC)
        record = {
            **draft,
            "v": VERSION,
            "record_id": record_id,
            "tenant_ref": self.tenant_ref(tenant),
            "key_id": key_id,
            "key_version": key_version,
            "kdf": KDF,
            "created_at": f"{hour:%Y-%m-%dT%H:00:00Z}",
        }
        key = self._roots.signing[-1]
        return {**record, "sig": {"alg": SIGNATURE_ALG, "kid": key.kid, "value": key.sign(canonical(record))}}

    def read(self, record: Mapping[str, Any], tenant: str) -> Record:
        """Check form and signature. Raises `RecordInvalid`, which does not say what was wrong."""
        try:
            if set(record) != _FIELDS or record["v"] != VERSION or record["kdf"] != KDF:
                raise RecordInvalid
            signature = record["sig"]
            if set(signature) != {"alg", "kid", "value"} or signature["alg"] != SIGNATURE_ALG:
                raise RecordInvalid
            signed = {name: value for name, value in record.items() if name != "sig"}
            if not self._keys[signature["kid"]].verifies(canonical(signed), signature["value"]):
                raise RecordInvalid
            return Record(
                record_id=str(record["record_id"]),
                own_tenant=hmac.compare_digest(str(record["tenant_ref"]), self.tenant_ref(tenant)),
                key_id=str(record["key_id"]),
                key_version=int(record["key_version"]),
                key_scheme=str(record["key_scheme"]),
                model_id=str(record["model_id"]),
                model_digest=str(record["model_digest"]),
                linkage=str(record["linkage"]),
                nonces=tuple(map(bytes.fromhex, nonces_of(record["faces"]))),
                is_forensic=is_forensic(record["faces"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            raise RecordInvalid from None

    def public_keys(self) -> list[dict[str, Any]]:
        """The keys that verify records, oldest first."""
        return [key.to_public() for key in self._roots.signing]

    def _hmac(self, label: str, text: str) -> str:
        message = f"{label}\0{text}".encode()
        return hmac.digest(self._roots.tenant_ref.octets, message, hashlib.sha256).hex()


def nonces_of(faces: Sequence[Mapping[str, Any]]) -> list[str]:
    """The nonces of the faces that were anonymized; a face that was made unrecognizable for good has none."""
    return [face["nonce"] for face in faces if "nonce" in face]


def is_forensic(faces: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a sidecar holds the originals of the faces that were anonymized.

    Raises `ValueError` unless it holds all or none of them, and the digest of each stands in its entry.
    """
    anonymized = [face for face in faces if "nonce" in face]
    modes = {face.get("mode") == "forensic" for face in faces if "nonce" in face or face.get("mode") == "forensic"}
    if len(modes) > 1 or not all(("sidecar" in face) == (True in modes) for face in anonymized):
        raise ValueError("a sidecar holds the originals of all faces or of none")
    if True in modes and not all(_DIGEST.fullmatch(face["sidecar"]) for face in anonymized):
        raise ValueError("the digest of an original is 32 bytes in lower-case hex")
    return True in modes


def check_nonces(nonces: Sequence[str], linkage: str | None = None) -> None:
    """Raise `ValueError` unless the nonces are all empty, or all different ones of 16 bytes in lower-case hex.

    linkage  `per_key` demands the first, `per_image` the second, None allows both
    """
    is_linked = not any(nonces)
    if not is_linked and (not all(map(_NONCE.fullmatch, nonces)) or len(set(nonces)) < len(nonces)):
        raise ValueError("nonces are 16 random bytes in lower-case hex, each used once; or all empty, to link pictures")
    if nonces and linkage is not None and is_linked != (linkage == "per_key"):
        raise ValueError("empty nonces go with linkage per_key, random ones with per_image")
