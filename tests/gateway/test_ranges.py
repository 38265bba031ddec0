from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ranges import byte_range, matches
from shared.problems import RangeNotSatisfiable

sizes = st.integers(1, 10**12)


@given(size=sizes, data=st.data())
def test_a_range_inside_the_file_is_that_range(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first, size - 1))
    assert byte_range(f"bytes={first}-{last}", size) == (first, last + 1)


@given(size=sizes, first=st.integers(0, 10**12), beyond=st.integers(0, 10**6))
def test_a_range_over_the_end_stops_at_the_end(size: int, first: int, beyond: int) -> None:
    first = first % size
    assert byte_range(f"bytes={first}-", size) == (first, size)
    assert byte_range(f"bytes={first}-{size + beyond}", size) == (first, size)


@given(size=sizes, count=st.integers(1, 10**13))
def test_a_suffix_is_the_last_bytes(size: int, count: int) -> None:
    assert byte_range(f"bytes=-{count}", size) == (max(0, size - count), size)


@given(size=sizes, beyond=st.integers(0, 10**6))
def test_a_range_behind_the_end_is_refused_with_the_size(size: int, beyond: int) -> None:
    with pytest.raises(RangeNotSatisfiable) as raised:
        byte_range(f"bytes={size + beyond}-", size)
    assert raised.value.extras == {"bytes": size}


def test_the_last_no_bytes_are_refused() -> None:
    with pytest.raises(RangeNotSatisfiable):
        byte_range("bytes=-0", 10)


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes=", "bytes=-", "bytes=5-2", "bytes=0-1,4-5", "lines=1-2", "bytes=a-b", "bytes=1" + "0" * 30],
)
def test_what_asks_for_no_single_range_means_the_whole_file(header: str | None) -> None:
    assert byte_range(header, 10) is None


@pytest.mark.parametrize("header", ['"a"', 'W/"a"', '"b", "a"', "*", '"b" ,W/"a"'])
def test_an_entity_tag_is_found_among_others(header: str) -> None:
    assert matches(header, '"a"')


@pytest.mark.parametrize("header", [None, "", '"b"', "a", '"ab"'])
def test_another_entity_tag_does_not_match(header: str | None) -> None:
    assert not matches(header, '"a"')
