"""What custody computes with secrets, as pure functions: key derivation, wrapping, the audit chain.

Every tuple that enters a derivation or an authentication is length-prefixed, so that no two different tuples give the
same octets ("ab", "c" and "a", "bc"). Definitions: key-custody.md 1 and 8, ifadit.md 3.4. No function here stores,
logs or caches anything.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Octets = bytes | bytearray | memoryview
Algorithm = Literal["A256GCM", "A256GCMSIV"]

METHOD_KEY_LABEL: Final = "ifadit/method-key/v1"
FORENSIC_KEK_LABEL: Final = "ifadit/forensic-kek/v1"
RECORD_LABEL: Final = "kc-record/v1"
SECRET_BYTES: Final = 32
NONCE_BYTES: Final = 12
CHAIN_START: Final = bytes(32)
"""The code that the first audit entry continues."""

_CIPHERS: Final[dict[str, type[AESGCM | AESGCMSIV]]] = {"A256GCM": AESGCM, "A256GCMSIV": AESGCMSIV}


class WrongKey(ValueError):
    """A wrapped secret did not open: another key, another context or damage; which of them is not said."""


def be32(number: int) -> bytes:
    """Four octets, big-endian. Raises OverflowError outside 0 .. 2^32 - 1."""
    return number.to_bytes(4, "big")


def length_prefix(*parts: Octets | str) -> bytes:
    """The parts one after another, each after its length in octets as `be32`; text as UTF-8."""
    encoded = (part.encode() if isinstance(part, str) else bytes(part) for part in parts)
    return b"".join(be32(len(part)) + part for part in encoded)


def hkdf_info(*, tenant: str, key_id: str, model_id: str, image_nonce: Octets, dim: int) -> bytes:
    """What the key of one picture is bound to. The nonce is empty for `linkage=per_key`, else random per picture."""
    return length_prefix(METHOD_KEY_LABEL, tenant, key_id, model_id, image_nonce, be32(dim))


def method_key(secret: Octets, *, tenant: str, key_id: str, model_id: str, image_nonce: Octets, dim: int) -> bytearray:
    """The octets of the key of one face: HKDF-SHA256 of the method secret, salt of 32 zero octets.

    secret   32 octets
    dim      coordinates of the key vector; 4 * dim octets may be at most 255 * 32, so dim <= 2040
    returns  4 * dim octets in a buffer that the caller can wipe
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a method secret has {SECRET_BYTES} octets, not {len(secret)}")
    info = hkdf_info(tenant=tenant, key_id=key_id, model_id=model_id, image_nonce=image_nonce, dim=dim)
    derive = HKDF(algorithm=SHA256(), length=4 * dim, salt=bytes(32), info=info)
    return bytearray(derive.derive(secret))


def forensic_kek(secret: Octets, *, tenant: str, key_id: str) -> bytearray:
    """What wraps the data keys of forensic pictures: HKDF-SHA256 of the method secret (key-custody.md, 1 and 6.1).

    returns  32 octets in a buffer that the caller can wipe; they never leave custody
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a method secret has {SECRET_BYTES} octets, not {len(secret)}")
    info = length_prefix(FORENSIC_KEK_LABEL, tenant, key_id)
    derive = HKDF(algorithm=SHA256(), length=SECRET_BYTES, salt=bytes(32), info=info)
    return bytearray(derive.derive(secret))


def forensic_aad(*, record_id: str, face: int, pixel_sha256: str) -> bytes:
    """What the encrypted original of a face is bound to: its record, its place there, the anonymized pixels (hex)."""
    return length_prefix(record_id, be32(face), bytes.fromhex(pixel_sha256))


def record_aad(
    *, purpose: str, tenant: str, key_id: str, key_version: int, kek_id: str, kek_version: int, algorithm: str
) -> bytes:
    """What a wrapped secret is bound to: moved to another tenant, key, version or purpose it does not open."""
    return length_prefix(RECORD_LABEL, purpose, tenant, key_id, be32(key_version), kek_id, be32(kek_version), algorithm)


def wrap(kek: Octets, nonce: bytes, plaintext: Octets, aad: bytes, algorithm: Algorithm = "A256GCM") -> bytes:
    """Encrypt under a 32-octet key-encryption key: ciphertext and 16-octet tag.

    The nonce (12 octets) must be fresh and random at every call under the same key.
    """
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} octets, not {len(nonce)}")
    return _cipher(kek, algorithm).encrypt(nonce, plaintext, aad)


def unwrap(kek: Octets, nonce: bytes, wrapped: bytes, aad: bytes, algorithm: Algorithm = "A256GCM") -> bytearray:
    """The plaintext, in a buffer that the caller can wipe. Raises WrongKey, which does not say why."""
    if algorithm not in _CIPHERS:
        raise WrongKey("the wrapped secret does not open")
    cipher = _cipher(kek, algorithm)
    try:
        return bytearray(cipher.decrypt(nonce, wrapped, aad))
    except (InvalidTag, ValueError) as error:
        raise WrongKey("the wrapped secret does not open") from error


def _cipher(kek: Octets, algorithm: Algorithm) -> AESGCM | AESGCMSIV:
    if len(kek) != SECRET_BYTES:
        raise ValueError(f"a key-encryption key has {SECRET_BYTES} octets, not {len(kek)}")
    return _CIPHERS[algorithm](kek)


def chain_mac(audit_key: bytes | bytearray, previous: bytes, event: str) -> bytes:
    """The code of an audit entry: HMAC-SHA256 over the code of the entry before and the SHA-256 of the exact text."""
    return hmac.new(audit_key, previous + hashlib.sha256(event.encode()).digest(), hashlib.sha256).digest()
