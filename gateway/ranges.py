"""Parts of a stored file and its freshness, as HTTP asks for them (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re

from shared.problems import RangeNotSatisfiable

_ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and stop of the one range that `header` asks for, or None for the whole file.

    Several ranges, and what cannot be parsed, mean the whole file: a server may always answer so. Raises
    `RangeNotSatisfiable` for a range that lies outside.
    """
    found = _ONE_RANGE.fullmatch((header or "").strip())
    if found is None or found.group(1) == found.group(2) == "":
        return None
    first, last = found.groups()
    if first == "":
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < int(first):
            return None
    if start >= stop:
        raise RangeNotSatisfiable(f"The file has {size} bytes.", bytes=size)
    return start, stop


def matches(header: str | None, etag: str) -> bool:
    """Whether `If-None-Match` names this entity tag."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags
