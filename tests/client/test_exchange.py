"""One request and its answer; lists in pages."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tenfold import Box, ConnectionFailed, Facts, NotFound, RateLimited, ServerFault, TimedOut, Unavailable
from tenfold import _constants as bounds
from tenfold._exchange import delete, exchange, get, json_bytes, pages, post, quoted, read, repeatable, send
from tests.client.walking import Reply, Walk

BUSY = Reply.of({"code": "queue_full", "detail": "The queue is full."}, 503)


class Thing(Facts):
    name: str


class TestExchange:
    def test_an_answer_ends_it(self) -> None:
        walk = Walk()
        answer = walk.through(exchange(walk.context, get("/v1/jobs")), Reply.of({"jobs": []}))
        assert json.loads(answer.body) == {"jobs": []}
        assert walk.pauses == []

    def test_what_passes_is_sent_again_under_the_same_idempotency_key(self) -> None:
        walk = Walk()
        walk.through(exchange(walk.context, post("/v1/keys")), BUSY, ConnectionFailed("cut"), Reply.of({}))
        first, second, third = walk.requests
        assert first == second == third
        assert len(walk.pauses) == 2

    def test_after_the_last_try_its_problem_is_raised(self) -> None:
        walk = Walk(max_retries=1)
        with pytest.raises(Unavailable, match="The queue is full") as raised:
            walk.through(exchange(walk.context, get("/")), BUSY, BUSY)
        assert raised.value.code == "queue_full"

    def test_a_post_without_an_idempotency_key_is_sent_once(self) -> None:
        walk = Walk()
        request = post("/v1/keys")
        del request.headers["Idempotency-Key"]  # type: ignore[attr-defined]
        with pytest.raises(Unavailable):
            walk.through(exchange(walk.context, request), BUSY)

    def test_retry_after_is_read_from_the_header(self) -> None:
        walk = Walk(draw=0.0)
        limited = Reply.of({"code": "rate_limited", "detail": "Too many."}, 429, retry_after="7")
        walk.through(exchange(walk.context, get("/")), limited, Reply.of({}))
        assert walk.pauses == [7.0]

    def test_no_pause_goes_beyond_the_limit(self) -> None:
        walk = Walk(draw=0.0)
        limited = Reply.of({"code": "rate_limited", "detail": "Too many."}, 429, retry_after="7")
        with pytest.raises(RateLimited):
            walk.through(exchange(walk.context, get("/"), until=walk.time + 6.9), limited)
        assert walk.pauses == []

    def test_a_deletion_whose_answer_was_lost_has_been_done(self) -> None:
        walk = Walk()
        gone = Reply.of({"code": "file_not_found", "detail": "There is no such file."}, 404)
        assert walk.through(exchange(walk.context, delete("/v1/files/f")), ConnectionFailed("cut"), gone).status == 204

    def test_a_deletion_of_nothing_is_not(self) -> None:
        walk = Walk()
        gone = Reply.of({"code": "file_not_found", "detail": "There is no such file."}, 404)
        with pytest.raises(NotFound):
            walk.through(exchange(walk.context, delete("/v1/files/f")), gone)

    def test_a_body_that_is_cut_is_asked_for_again(self) -> None:
        walk = Walk()
        cut = Reply(200, {}, [b'{"jo', ConnectionFailed("cut")])
        assert walk.through(exchange(walk.context, get("/")), cut, Reply.of(1)).body == b"1"

    def test_a_redirect_is_not_followed(self) -> None:
        walk = Walk()
        with pytest.raises(ServerFault, match=r"https://elsewhere\.test/") as raised:
            walk.through(exchange(walk.context, get("/")), Reply(307, {"location": "https://elsewhere.test/"}))
        assert raised.value.code == "unexpected_redirect"

    def test_an_answer_beyond_all_measure_is_refused(self) -> None:
        walk = Walk()
        piece = bytes(2**20)
        endless = Reply(200, {}, [piece] * (bounds.ANSWER_LIMIT_BYTES // len(piece) + 1))
        with pytest.raises(ServerFault, match="bytes"):
            walk.through(send(walk.context, get("/")), endless)

    def test_a_trickle_has_to_end_as_well(self) -> None:
        walk = Walk(timeout_s=10)
        trickle = Reply(200, {}, [b".", 4.0, b".", 4.0, b".", 4.0, b"."])
        with pytest.raises(TimedOut):
            walk.through(send(walk.context, get("/")), trickle)


class TestPages:
    def test_the_next_page_is_asked_for_where_the_last_one_ended(self) -> None:
        walk = Walk()
        first = Reply.of({"things": [{"name": "a"}, {"name": "b"}], "next": "b"})
        walk.through(
            pages(walk.context, "/v1/things", "things", "before", Thing),
            first,
            Reply.of({"things": [{"name": "c"}], "next": None}),
        )
        assert [thing.name for thing in walk.items] == ["a", "b", "c"]
        assert [request.query for request in walk.requests] == [
            {"limit": str(bounds.PAGE_SIZE)},
            {"limit": str(bounds.PAGE_SIZE), "before": "b"},
        ]

    def test_a_page_is_asked_for_only_when_it_is_reached(self) -> None:
        walk = Walk()
        plan = pages(walk.context, "/v1/things", "things", "before", Thing)
        next(plan)
        plan.send(Reply.of(None))
        plan.close()
        assert walk.requests == []

    def test_a_list_that_goes_in_circles_ends(self) -> None:
        walk = Walk()
        page = Reply.of({"things": [], "next": "b"})
        with pytest.raises(ServerFault, match="itself"):
            walk.through(pages(walk.context, "/v1/things", "things", "before", Thing), page, page)

    @pytest.mark.parametrize("body", [[], {}, {"things": 1}, {"things": [{}]}, None])
    def test_what_is_no_list_is_a_fault_of_the_server(self, body: object) -> None:
        walk = Walk()
        with pytest.raises(ServerFault):
            walk.through(pages(walk.context, "/v1/things", "things", "before", Thing), Reply.of(body))


class TestReading:
    def test_fields_of_a_newer_service_are_kept(self) -> None:
        walk = Walk()
        answer = walk.through(send(walk.context, get("/")), Reply.of({"name": "a", "color": "red"}))
        assert read(walk.context, answer, Thing).color == "red"  # type: ignore[attr-defined]

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[", b"[" * 100_000, b"\xff", b'{"name": 1}', b"null"])
    def test_what_is_no_answer_of_ours_is_a_fault_that_names_the_request(self, body: bytes) -> None:
        walk = Walk()
        answer = walk.through(send(walk.context, get("/")), Reply(200, {"x-request-id": "req_1"}, [body]))
        with pytest.raises(ServerFault) as raised:
            read(walk.context, answer, Thing)
        assert raised.value.request_id == "req_1"

    def test_a_fault_does_not_repeat_what_was_answered(self) -> None:
        walk = Walk()
        answer = walk.through(send(walk.context, get("/")), Reply.of({"name": ["confidential"]}))
        with pytest.raises(ServerFault) as raised:
            read(walk.context, answer, Thing)
        assert "confidential" not in str(raised.value)


class TestBuilding:
    @given(st.text(min_size=1).filter(lambda text: text not in (".", "..") and max(text) < "\ud800"))
    def test_a_name_stays_in_its_place_in_the_path(self, name: str) -> None:
        assert not set(quoted(name)) & set("/?#\\% ") - {"%"}

    @pytest.mark.parametrize("name", ["", ".", ".."])
    def test_a_name_that_is_a_path_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="no name"):
            quoted(name)

    def test_what_is_none_is_left_out(self) -> None:
        assert get("/", {"after": None, "limit": 3}).query == {"limit": "3"}
        assert post("/", {"label": None, "default": False}).body == b'{"default":false}'

    def test_every_post_has_its_own_idempotency_key(self) -> None:
        assert post("/").headers["Idempotency-Key"] != post("/").headers["Idempotency-Key"]
        assert post("/", idempotency_key="mine").headers["Idempotency-Key"] == "mine"

    @pytest.mark.parametrize("key", ["", "a" * 256, "ä", "a\nb"])
    def test_an_idempotency_key_that_no_server_takes_is_refused_here(self, key: str) -> None:
        with pytest.raises(ValueError, match="idempotency_key"):
            repeatable(key)

    def test_fields_may_be_models_and_numbers_of_numpy(self) -> None:
        class Whole(BaseModel):
            box: Box
            label: str | None = None

        fields = {"whole": Whole(box=Box(x=1, y=2, width=3, height=4)), "score": np.float32(0.5), "count": np.int64(3)}
        assert json.loads(json_bytes(fields)) == {
            "whole": {"box": {"x": 1, "y": 2, "width": 3, "height": 4}},
            "score": 0.5,
            "count": 3,
        }

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_what_is_no_json_is_refused(self, value: float) -> None:
        with pytest.raises(ValueError, match="JSON"):
            json_bytes({"score": value})

    def test_what_cannot_be_sent_is_a_type_error(self) -> None:
        with pytest.raises(TypeError, match="object cannot be sent"):
            json_bytes({"thing": object()})
