"""Server-sent events, as the HTML standard defines them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold import ServerFault
from tenfold import _constants as bounds
from tenfold._events import EventParser, ServerEvent

LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])
TEXT = st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"), max_size=20)
EVENTS = st.lists(
    st.builds(ServerEvent, kind=TEXT.filter(bool), data=st.lists(TEXT, min_size=1, max_size=3).map("\n".join), id=TEXT),
    max_size=5,
)


def parsed(stream: bytes, *cuts: int) -> list[ServerEvent]:
    parser = EventParser()
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [event for a, b in pairwise(places) for event in parser.feed(stream[a:b])]


@given(events=EVENTS, end=LINE_ENDS, cuts=st.lists(st.integers(0, 10**6), max_size=10))
def test_events_come_out_as_they_went_in_however_the_bytes_are_cut(
    events: list[ServerEvent], end: str, cuts: list[int]
) -> None:
    lines = []
    for event in events:
        lines += [f"event: {event.kind}", *(f"data: {line}" for line in event.data.split("\n")), f"id: {event.id}", ""]
    # A space in front of a value belongs to the format: one is taken off, a second would stay.
    assert parsed("".join(line + end for line in lines).encode() + b": end\n", *cuts) == events


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_give_the_same_events_in_one_piece_and_in_many(stream: bytes, cuts: list[int]) -> None:
    assert parsed(stream, *cuts) == parsed(stream)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [("message", "a", "")]),
        (b"data:a\ndata\ndata:  b\n\n", [("message", "a\n\n b", "")]),
        (b"event: state\n\n", []),
        (b": ping\n\n", []),
        (b"\xef\xbb\xbfdata: a\n\n", [("message", "a", "")]),
        (b"id: 7\ndata: a\n\ndata: b\n\n", [("message", "a", "7"), ("message", "b", "7")]),
        (b"id: 7\n\nid\ndata: b\n\n", [("message", "b", "")]),
        (b"id: 7\nid: a\0b\ndata: a\n\n", [("message", "a", "7")]),
        (b"retry: 10\nnonsense: 1\ndata: a\n\n", [("message", "a", "")]),
        (b"data: a\n", []),
        (b"event: x\ndata: a\n\ndata: b\n\n", [("x", "a", ""), ("message", "b", "")]),
    ],
)
def test_the_examples_of_the_standard(stream: bytes, events: list[tuple[str, str, str]]) -> None:
    assert [(event.kind, event.data, event.id) for event in parsed(stream)] == events


@pytest.mark.parametrize("line", [b"data: " + b"a" * 1023 + b"\n", b"a" * 1024])
def test_an_event_beyond_all_measure_is_refused(line: bytes) -> None:
    parser = EventParser()
    for _ in range(bounds.EVENT_LIMIT_BYTES // len(line)):
        parser.feed(line)
    with pytest.raises(ServerFault):
        parser.feed(line)
