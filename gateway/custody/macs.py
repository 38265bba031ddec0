"""Redis hashes that nobody but the gateway can write: every field is under a MAC, and so is the name of the hash.

The state of a key is as sensitive as its ciphertext: whoever can write to Redis must not be able to enable a disabled
key, to lengthen its life or to put one hash in another's place (key-custody.md, section 3.1).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from shared.keyderivation import length_prefix
from shared.problems import SecretKeyIntegrity
from shared.secretbytes import SecretBytes

FIELD = "mac"


def with_mac(key: SecretBytes, name: str, fields: Mapping[str, str]) -> dict[str, str]:
    """The fields of the hash called `name`, with their MAC."""
    return {**fields, FIELD: _mac(key, name, fields)}


def checked(key: SecretBytes, name: str, fields: Mapping[str, str]) -> dict[str, str]:
    """The fields without their MAC. Raises `SecretKeyIntegrity` where one was altered, added or taken away."""
    bare = {field: value for field, value in fields.items() if field != FIELD}
    if not hmac.compare_digest(_mac(key, name, bare).encode(), fields.get(FIELD, "").encode()):
        raise SecretKeyIntegrity
    return bare


def _mac(key: SecretBytes, name: str, fields: Mapping[str, str]) -> str:
    flat = [part for field in sorted(fields) for part in (field, fields[field])]
    return hmac.digest(key.octets, length_prefix("kc-hash/v1", name, *flat), hashlib.sha256).hex()
