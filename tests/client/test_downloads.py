"""Reading a stored file in pieces."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold import ConnectionFailed, NotFound, ServerFault, TimedOut, Unavailable
from tenfold._downloads import digest_in, download
from tenfold.problems import Problem
from tests.client.walking import Reply, Walk

FILE = "file_01k9z6w3m8q4t5v7x2y0r1s3d4"
CONTENT = bytes(range(200))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ETAG = f'"{SHA256}"'
CUT = ConnectionFailed("cut")


def whole(*pieces: bytes | float | Problem, **headers: str) -> Reply:
    return Reply(200, {"etag": ETAG, "content-length": str(len(CONTENT)), **headers}, pieces)


def part(start: int, *pieces: bytes | Problem) -> Reply:
    return Reply(206, {"etag": ETAG, "content-range": f"bytes {start}-199/200"}, pieces)


def downloaded(*replies: Reply | Problem, **known: Any) -> tuple[Walk, bytes]:
    walk = Walk()
    walk.through(download(walk.context, FILE, **known), *replies)
    return walk, b"".join(walk.items)


def test_the_bytes_come_as_they_are() -> None:
    walk, content = downloaded(whole(CONTENT[:50], CONTENT[50:]), size=200, sha256=SHA256)
    assert content == CONTENT
    assert "Range" not in walk.requests[0].headers


@given(cuts=st.lists(st.integers(1, 199), unique=True, max_size=4).map(sorted), with_ranges=st.booleans())
def test_a_cut_connection_is_resumed_and_no_byte_comes_twice(cuts: list[int], with_ranges: bool) -> None:
    ends = [*cuts, 200]
    replies = []
    for start, end in zip([0, *cuts], ends, strict=True):
        after = [CUT] if end < 200 else []
        resumes = with_ranges and start > 0
        replies.append(part(start, CONTENT[start:end], *after) if resumes else whole(CONTENT[:end], *after))
    walk, content = downloaded(*replies, size=200, sha256=SHA256)
    assert content == CONTENT
    assert [request.headers.get("Range") for request in walk.requests[1:]] == [f"bytes={cut}-" for cut in cuts]
    assert all(request.headers["If-Range"] == ETAG for request in walk.requests[1:])


def test_a_poor_line_may_break_more_often_than_there_are_retries_as_long_as_bytes_come() -> None:
    replies = [whole(CONTENT[:1], CUT), *(part(n, CONTENT[n : n + 1], CUT) for n in range(1, 199)), part(199, b"\xc7")]
    assert downloaded(*replies, size=200, sha256=SHA256)[1] == CONTENT


def test_a_line_that_brings_nothing_is_given_up() -> None:
    with pytest.raises(ConnectionFailed):
        downloaded(whole(CONTENT[:1], CUT), CUT, CUT)


def test_a_line_that_stands_still_is_opened_again_at_once() -> None:
    walk, content = downloaded(whole(CONTENT[:1], TimedOut("silent")), part(1, CONTENT[1:]))
    assert content == CONTENT
    assert walk.pauses == [0.0]


def test_a_line_that_stands_still_for_good_is_given_up() -> None:
    silent = TimedOut("silent")
    with pytest.raises(TimedOut):
        downloaded(silent, silent, silent)


def test_an_answer_that_ends_early_without_an_error_is_resumed() -> None:
    assert downloaded(whole(CONTENT[:7]), part(7, CONTENT[7:]))[1] == CONTENT


def test_a_cut_behind_the_last_byte_is_no_loss() -> None:
    beyond = Reply.of({"code": "range_not_satisfiable", "detail": "The file has 200 bytes."}, 416)
    assert downloaded(whole(CONTENT, CUT), beyond)[1] == CONTENT


def test_a_server_that_is_busy_is_asked_again() -> None:
    busy = Reply.of({"code": "service_unavailable", "detail": "Busy."}, 503)
    assert downloaded(busy, whole(CONTENT))[1] == CONTENT
    with pytest.raises(Unavailable):
        downloaded(busy, busy, busy)


def test_a_file_that_is_gone_is_not_found() -> None:
    with pytest.raises(NotFound):
        downloaded(Reply.of({"code": "file_not_found", "detail": "There is no such file."}, 404))


@pytest.mark.parametrize(
    ("reply", "known"),
    [
        (whole(CONTENT[:-1] + b"!"), {"sha256": SHA256}),
        (whole(CONTENT[:-1] + b"!"), {}),  # the entity tag says what it should be
        (Reply(200, {}, [CONTENT[:-1] + b"!"]), {"sha256": SHA256}),
        (whole(CONTENT + b"!"), {"size": 200}),
    ],
)
def test_bytes_that_are_not_the_files_end_in_a_fault(reply: Reply, known: dict[str, Any]) -> None:
    with pytest.raises(ServerFault) as raised:
        downloaded(reply, **known)
    assert raised.value.code == "download_damaged"


def test_another_part_than_was_asked_for_is_a_fault() -> None:
    with pytest.raises(ServerFault, match="another part"):
        downloaded(whole(CONTENT[:9], CUT), part(4, CONTENT[4:]))


@pytest.mark.parametrize("content_range", ["", "bytes", "bytes */200", "lines 9-199/200"])
def test_a_part_of_unknown_place_is_a_fault(content_range: str) -> None:
    with pytest.raises(ServerFault, match="another part"):
        downloaded(whole(CONTENT[:9], CUT), Reply(206, {"content-range": content_range}, [CONTENT[9:]]))


def test_a_file_of_unknown_size_and_digest_ends_where_it_ends() -> None:
    assert downloaded(Reply(200, {}, [CONTENT]))[1] == CONTENT
    assert (
        downloaded(whole(CONTENT[:9], CUT), Reply(206, {"content-range": "bytes 9-199/*"}, [CONTENT[9:]]))[1] == CONTENT
    )


def test_a_weak_entity_tag_does_not_guard_a_range() -> None:
    walk, _ = downloaded(whole(CONTENT[:9], CUT, etag='W/"x"'), part(9, CONTENT[9:]))
    assert "If-Range" not in walk.requests[1].headers


@pytest.mark.parametrize("etag", [None, "", '"abc"', f'W/"{SHA256}"', f'"{SHA256.upper()}"'])
def test_other_entity_tags_are_no_digest(etag: str | None) -> None:
    assert digest_in(etag) is None
