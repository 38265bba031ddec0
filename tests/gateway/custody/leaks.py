"""Looks for secrets where none may be: as they are, as text, and inside longer text."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

_ENOUGH = 12  # octets: a part this long does not turn up by chance


def shapes(secret: bytes) -> set[bytes]:
    """Every way in which a part of `secret` could be written down: raw, hex, and base64 at all three alignments."""
    found = {secret[:_ENOUGH], secret[-_ENOUGH:]}
    found |= {part.hex().encode() for part in list(found)} | {part.hex().upper().encode() for part in list(found)}
    for alignment in range(3):
        text = base64.b64encode(bytes(alignment) + secret)
        inner = text[4 : 4 + 4 * (_ENOUGH // 3)]  # characters that depend on octets of the secret alone
        found |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def leaks(secrets: dict[str, bytes], places: Iterator[tuple[str, bytes]]) -> list[str]:
    """Which secret stands in which place."""
    wanted = {shape: name for name, secret in secrets.items() for shape in shapes(secret)}
    return sorted(
        {f"{name} in {place}" for place, octets in places for shape, name in wanted.items() if shape in octets}
    )


def files_under(*folders: Path) -> Iterator[tuple[str, bytes]]:
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield path.name, path.read_bytes()
