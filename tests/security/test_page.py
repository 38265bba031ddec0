"""`docs/security.md` names tests: each must exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)*)`", PAGE)))


def test_the_page_names_many_tests() -> None:
    assert len(NAMED) > 30


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_the_page_names_exists(name: str) -> None:
    path, *parts = name.split("::")
    body = ast.parse((ROOT / path).read_text()).body
    for part in parts:
        found = [node for node in body if getattr(node, "name", None) == part]
        assert len(found) == 1, part
        body = getattr(found[0], "body", [])


@pytest.mark.parametrize("number", range(1, 29))
def test_every_threat_of_the_design_is_spoken_of(number: int) -> None:
    assert re.search(rf"\bT{number}\b", PAGE)
