"""Following a job to its end."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tenfold import Conflict, ConnectionFailed, NotFound, ServerFault, TimedOut, Unavailable
from tenfold import _constants as bounds
from tenfold._waiting import events, finished
from tests.client.walking import Reply, Walk

JOB = "job_01k9z6w3m8q4t5v7x2y0r1s3d4"
CUT = ConnectionFailed("cut")


def record(state: str, **more: Any) -> Reply:
    return Reply.of({"id": JOB, "method": "ifadit", "operation": "anonymize", "state": state, **more})


def event(name: str, kind: str, **data: Any) -> bytes:
    return f"id: {name}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def stream(*pieces: bytes | float | ConnectionFailed | TimedOut) -> Reply:
    return Reply(200, {"content-type": "text/event-stream; charset=utf-8"}, pieces)


RUNNING = event("1-0", "state", state="running", stage="aligning")
STEP = event("2-0", "progress", step=3, of=15)
DONE = event("3-0", "state", state="succeeded")


def kinds(walk: Walk) -> list[str]:
    return [item.kind for item in walk.items]


class TestEvents:
    def test_they_come_up_to_the_last_one(self) -> None:
        walk = Walk()
        walk.through(events(walk.context, JOB, until=math.inf), stream(RUNNING, b": ping\n\n", STEP + DONE + STEP))
        assert [(item.id, item.kind) for item in walk.items] == [
            ("1-0", "state"),
            ("2-0", "progress"),
            ("3-0", "state"),
        ]
        assert walk.items[1].data == {"step": 3, "of": 15}
        assert [item.is_last for item in walk.items] == [False, False, True]

    def test_a_stream_that_is_cut_goes_on_behind_the_last_event(self) -> None:
        walk = Walk()
        walk.through(events(walk.context, JOB, until=math.inf), stream(RUNNING, STEP[:9], CUT), stream(STEP, DONE))
        assert kinds(walk) == ["state", "progress", "state"]
        assert [request.headers.get("Last-Event-ID") for request in walk.requests] == [None, "1-0"]

    def test_a_server_that_drains_is_left_and_asked_again(self) -> None:
        walk = Walk()
        drain = b"event: reconnect\ndata: {}\n\n"
        walk.through(events(walk.context, JOB, until=math.inf), stream(RUNNING + drain + b": more\n"), stream(DONE))
        assert kinds(walk) == ["state", "state"]
        assert walk.requests[1].headers["Last-Event-ID"] == "1-0"

    def test_they_begin_behind_the_event_that_the_caller_has_seen(self) -> None:
        walk = Walk()
        walk.through(events(walk.context, JOB, until=math.inf, after="2-0"), stream(DONE))
        assert walk.requests[0].headers["Last-Event-ID"] == "2-0"

    def test_streams_that_bring_nothing_give_way_to_looking_at_the_record(self) -> None:
        walk = Walk()
        silent = stream(b": ping\n\n", TimedOut("silent"))
        looks = record("queued"), record("running", progress={"step": 1, "of": 2}), record("succeeded")
        walk.through(
            events(walk.context, JOB, until=math.inf), silent, silent, CUT, looks[0], looks[0], looks[1], looks[2]
        )
        assert [item.data for item in walk.items] == [
            {"state": "queued", "stage": None},
            {"step": 1, "of": 2},
            {"state": "running", "stage": None},
            {"state": "succeeded", "stage": None},
        ]
        assert walk.items[-1].is_last

    def test_a_stream_that_brought_something_does_not_count_as_one_that_did_not(self) -> None:
        walk = Walk()
        steps = [stream(event(f"{n}-0", "progress", step=n, of=9), CUT) for n in range(9)]
        walk.through(events(walk.context, JOB, until=math.inf), *steps, stream(DONE))
        assert len(walk.items) == 10

    @pytest.mark.parametrize(
        "answer",
        [
            Reply.of({"code": "route_not_found", "detail": "There is nothing here."}, 404),
            Reply.of({"jobs": []}),
            Reply(200, {"content-type": "text/html"}, [b"<html>"]),
        ],
    )
    def test_a_server_without_a_stream_is_polled_at_once(self, answer: Reply) -> None:
        walk = Walk()
        walk.through(events(walk.context, JOB, until=math.inf), answer, record("succeeded"))
        assert walk.items[-1].is_last

    def test_a_job_that_is_not_there_is_not_waited_for(self) -> None:
        walk = Walk()
        gone = Reply.of({"code": "job_not_found", "detail": "There is no such job."}, 404)
        with pytest.raises(NotFound):
            walk.through(events(walk.context, JOB, until=math.inf), gone, gone)

    def test_what_is_no_event_of_ours_is_not_handed_out(self) -> None:
        walk = Walk()
        broken = stream(b"id: 1\nevent: state\ndata: {\n\n"), stream(b"id: 1\nevent: state\ndata: []\n\n")
        walk.through(events(walk.context, JOB, until=math.inf), *broken, broken[0], record("failed"))
        assert [item.data["state"] for item in walk.items] == ["failed"]

    def test_pauses_between_looks_grow_up_to_a_bound(self) -> None:
        walk = Walk(draw=0.0)
        none = Reply.of({"code": "route_not_found", "detail": "There is nothing here."}, 404)
        walk.through(events(walk.context, JOB, until=math.inf), none, *[record("running")] * 20, record("succeeded"))
        assert walk.pauses == sorted(walk.pauses)
        assert walk.pauses[0] == bounds.POLL_FIRST_S
        assert walk.pauses[-1] == bounds.POLL_CAP_S


class TestLimit:
    def test_no_line_is_held_silent_for_longer_than_the_limit(self) -> None:
        walk = Walk()
        with pytest.raises(TimedOut) as raised:
            walk.through(events(walk.context, JOB, until=walk.time + 10), stream(RUNNING, 10.0, TimedOut("silent")))
        assert walk.requests[0].silence_s == 10
        assert raised.value.job_id == JOB

    def test_without_a_limit_the_server_still_has_to_give_signs_of_life(self) -> None:
        walk = Walk()
        walk.through(events(walk.context, JOB, until=math.inf), stream(DONE))
        assert walk.requests[0].silence_s == bounds.EVENTS_SILENCE_S

    def test_a_chatty_stream_ends_at_the_limit(self) -> None:
        walk = Walk()
        with pytest.raises(TimedOut):
            walk.through(events(walk.context, JOB, until=walk.time + 10), stream(*(STEP, 3.0) * 9))
        assert len(walk.items) == 5

    def test_looking_at_the_record_ends_at_the_limit_to_the_second(self) -> None:
        walk = Walk()
        began = walk.time
        none = Reply.of({"code": "route_not_found", "detail": "There is nothing here."}, 404)
        with pytest.raises(TimedOut):
            walk.through(events(walk.context, JOB, until=began + 2), none, *[record("running")] * 5)
        assert walk.time == began + 2

    def test_a_record_that_does_not_come_is_looked_for_again(self) -> None:
        walk = Walk()
        none = Reply.of({"code": "route_not_found", "detail": "There is nothing here."}, 404)
        walk.through(events(walk.context, JOB, until=math.inf), none, TimedOut("silent"), record("succeeded"))
        assert walk.items[-1].is_last


class TestFinished:
    def test_the_record_is_read_once_more_at_the_end(self) -> None:
        walk = Walk()
        job = walk.through(
            finished(walk.context, JOB, until=math.inf), stream(DONE), record("succeeded", result={"image": 1})
        )
        assert job.result == {"image": 1}

    def test_a_job_that_failed_raises_its_own_problem(self) -> None:
        walk = Walk()
        error = {"code": "no_worker", "status": 503, "detail": "No worker.", "request_id": "req_1", "hint": 7}
        failed = stream(event("3-0", "state", state="failed"))
        with pytest.raises(Unavailable, match="No worker") as raised:
            walk.through(finished(walk.context, JOB, until=math.inf), failed, record("failed", error=error))
        assert raised.value.job_id == JOB
        assert raised.value.request_id == "req_1"
        assert raised.value.extras["hint"] == 7

    @pytest.mark.parametrize("state", ["cancelled", "expired", "failed"])
    def test_no_job_ends_without_a_result_and_without_a_problem(self, state: str) -> None:
        walk = Walk()
        ended = stream(event("3-0", "state", state=state))
        with pytest.raises(Conflict) as raised:
            walk.through(finished(walk.context, JOB, until=math.inf), ended, record(state))
        assert raised.value.code == f"job_{state}"

    def test_an_unknown_state_is_a_fault_of_the_server(self) -> None:
        walk = Walk()
        with pytest.raises(ServerFault):
            walk.through(finished(walk.context, JOB, until=math.inf), stream(DONE), record("sleeping"))
