from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.custody.canonical import canonical

calmly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy
INTEGERS = st.integers(-(2**53) + 1, 2**53 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@calmly
@given(VALUES)
def test_it_is_json_that_says_the_same(value: Any) -> None:
    assert json.loads(canonical(value)) == value


@calmly
@given(st.dictionaries(TEXT, INTEGERS, min_size=2))
def test_the_order_of_fields_does_not_matter(value: dict[str, int]) -> None:
    assert canonical(value) == canonical(dict(reversed(value.items())))


def test_the_example_of_rfc_8785_without_its_fractions() -> None:
    value = {
        "numbers": [333333333, 4, 0, -1],
        "string": '\u20ac$\u000f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    expected = (
        r'{"literals":[null,true,false],"numbers":[333333333,4,0,-1],"string":"€$\u000f\nA' + r"""'B\"\\\\\"/"}"""
    )
    assert canonical(value).decode() == expected


def test_names_sort_by_utf_16_code_units_as_in_rfc_8785() -> None:
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    expected = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(json.loads(canonical(dict.fromkeys(names, 0)))) == expected


@pytest.mark.parametrize(
    "value", [1.5, 1.0, float("nan"), 2**53, -(2**53), b"bytes", {1: 2}, "\ud800", {"\ud800": 1}, {1}]
)
def test_what_two_readers_could_read_differently_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        canonical([value])
