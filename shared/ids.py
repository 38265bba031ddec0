"""Names of things: a prefix that says what it is, and 26 characters of Crockford's base 32."""

from __future__ import annotations

import re
import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
ID_BODY = r"[0-9a-hjkmnp-tv-z]{26}"


def _base32(value: int) -> str:
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def ordered_id(prefix: str) -> str:
    """A name that sorts by time of birth (a ULID: 48 bits of milliseconds, 80 random bits)."""
    return f"{prefix}_{_base32((time.time_ns() // 1_000_000) << 80 | secrets.randbits(80))}"


def born_at(name: str) -> float:
    """When an ordered name was made, in seconds since the epoch. Raises `ValueError` for what is no name."""
    body = name.rpartition("_")[2]
    if not re.fullmatch(ID_BODY, body):
        raise ValueError(f"{name!r} is no ordered name")
    value = 0
    for character in body:
        value = value << 5 | _ALPHABET.index(character)
    return (value >> 80) / 1000


def random_id(prefix: str) -> str:
    """A name that tells nothing, not even its age: 128 random bits."""
    return f"{prefix}_{_base32(secrets.randbits(128))}"


def pattern(prefix: str) -> str:
    """The regular expression that every name with this prefix matches."""
    return f"^{prefix}_{ID_BODY}$"
