"""One text for one value: the subset of RFC 8785 that records and audit entries are made of.

Strings, integers up to 2^53 - 1, true, false, null, lists and objects. No floats: two implementations that print
0.1 + 0.2 differently would disagree about a signature. Numbers with a fraction travel as strings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LARGEST_INTEGER = 2**53 - 1  # beyond it a JSON reader may round (RFC 8785, appendix D)


def canonical(value: Any) -> bytes:
    """The UTF-8 text of `value`. Raises `ValueError` for what is outside the subset."""
    return _text(value).encode()


def _text(value: Any) -> str:
    match value:
        case None | bool():
            return json.dumps(value)
        case int():
            if abs(value) > LARGEST_INTEGER:
                raise ValueError("an integer is beyond 2^53 - 1")
            return str(value)
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("a string has a lone surrogate") from None
            return json.dumps(value, ensure_ascii=False)
        case list() | tuple():
            return f"[{','.join(map(_text, value))}]"
        case Mapping():
            if not all(isinstance(name, str) for name in value):
                raise ValueError("a name is not a string")
            names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
            return "{" + ",".join(f"{_text(name)}:{_text(value[name])}" for name in names) + "}"
        case float():
            raise ValueError("a number with a fraction must travel as a string")
        case _:
            raise ValueError(f"{type(value).__name__} has no canonical form")
