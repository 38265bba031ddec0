"""Calling any operation: the request and what becomes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tenfold import Box, ConnectionFailed, InvalidInput, Result, ServerFault, StoredFile, TimedOut
from tenfold import _constants as bounds
from tenfold._effects import Part, Request
from tenfold._inputs import Upload
from tenfold._operations import call, call_for, operation_request, submit
from tests.client.walking import Reply, Walk

JOB = "job_01k9z6w3m8q4t5v7x2y0r1s3d4"
STORED = StoredFile(file="file_1", media_type="image/png", bytes=3)


def record(state: str, status: int = 200, **more: Any) -> Reply:
    return Reply.of({"id": JOB, "method": "ifadit", "operation": "verify", "state": state, **more}, status)


def built(fields: dict[str, Any] | None = None, files: dict[str, Any] | None = None, **more: Any) -> Request:
    options = {"key": None, "wait_s": 300, "idempotency_key": None, **more}
    return operation_request("ifadit", "anonymize", fields, files, context=Walk().context, **options)


def texts(request: Request) -> list[tuple[str, bytes]]:
    return [(part.name, part.value) for part in request.parts if isinstance(part.value, bytes)]


class TestRequest:
    def test_a_picture_makes_it_multipart_its_fields_first(self) -> None:
        request = built({"linkage": "per_key", "allow_modified": True, "steps": 3}, {"image": b"..."})
        assert texts(request) == [("linkage", b"per_key"), ("allow_modified", b"true"), ("steps", b"3")]
        assert isinstance(request.parts[-1].value, Upload)
        assert request.body is None

    def test_without_files_it_is_json(self) -> None:
        request = built({"steps": 3, "faces": [Box(x=1, y=2, width=3, height=4)]})
        assert json.loads(request.body or b"") == {"steps": 3, "faces": [{"x": 1, "y": 2, "width": 3, "height": 4}]}
        assert request.parts == ()

    def test_files_that_the_service_has_are_named_in_json(self) -> None:
        request = built({"purpose": "why"}, {"image": STORED, "record": None, "others": [STORED, STORED]})
        name = {"file": "file_1"}
        assert json.loads(request.body or b"") == {"purpose": "why", "image": name, "others": [name, name]}

    def test_a_file_that_is_named_may_stand_beside_one_that_is_sent(self) -> None:
        request = built({}, {"image": STORED, "record": b"{}"})
        assert request.parts[0] == Part("image", b'{"file":"file_1"}')
        assert isinstance(request.parts[1].value, Upload)

    def test_a_list_of_files_repeats_its_part(self) -> None:
        request = built({}, {"images": [b"1", b"2", STORED]})
        assert [part.name for part in request.parts] == ["images"] * 3

    @pytest.mark.parametrize(
        ("value", "parts"),
        [
            (["a", "b"], [b"a", b"b"]),
            ([1, 2.5, True], [b"1", b"2.5", b"true"]),
            ([], [b"[]"]),  # no part at all would be no list at all, which may mean another thing
            ([{"x": 1}, {"x": 2}], [b'[{"x":1},{"x":2}]']),
            ({"a": {"b": None}}, [b'{"a":{"b":null}}']),
            ("ünïcode", ["ünïcode".encode()]),
            (1e-7, [b"1e-07"]),
        ],
    )
    def test_what_is_nested_is_json_and_what_is_plain_is_text(self, value: Any, parts: list[bytes]) -> None:
        assert texts(built({"field": value}, {"image": b"..."})) == [("field", part) for part in parts]

    def test_a_name_cannot_be_a_field_and_a_file(self) -> None:
        with pytest.raises(ValueError, match="image"):
            built({"image": "x"}, {"image": b"..."})

    def test_the_secret_key_is_a_query_parameter(self) -> None:
        assert built(key="key_1").query == {"key": "key_1"}
        assert built().query == {}

    @pytest.mark.parametrize(
        ("wait_s", "prefer", "silence_s"),
        [(300, "wait=20", 50), (20, "wait=20", 50), (1.5, "wait=1.5", 31.5), (0, "respond-async", 30)],
    )
    def test_a_request_is_held_no_longer_than_proxies_bear(self, wait_s: float, prefer: str, silence_s: float) -> None:
        request = built(wait_s=wait_s)
        assert request.headers["Prefer"] == prefer
        assert request.silence_s == silence_s

    def test_it_is_safe_to_repeat(self) -> None:
        assert built().is_repeatable
        assert built(idempotency_key="mine").headers["Idempotency-Key"] == "mine"

    def test_names_are_quoted(self) -> None:
        request = operation_request(
            "a/b", "c?d", None, None, key=None, wait_s=0, idempotency_key=None, context=Walk().context
        )
        assert request.path == "/v1/a%2Fb/c%3Fd"


class TestCall:
    def test_an_answer_in_time_is_the_job(self) -> None:
        walk = Walk()
        job = walk.through(call(walk.context, "ifadit", "verify"), record("succeeded", result={"cosine": 0.5}))
        assert job.result == {"cosine": 0.5}

    def test_a_job_that_goes_on_is_followed_to_its_end(self) -> None:
        walk = Walk()
        done = b'event: state\ndata: {"state": "succeeded"}\nid: 1\n\n'
        job = walk.through(
            call(walk.context, "ifadit", "verify"),
            record("queued", 202),
            Reply(200, {"content-type": "text/event-stream"}, [done]),
            record("succeeded", result={"cosine": 0.5}),
        )
        assert job.state == "succeeded"
        assert [request.path for request in walk.requests] == [
            "/v1/ifadit/verify",
            f"/v1/jobs/{JOB}/events",
            f"/v1/jobs/{JOB}",
        ]

    def test_past_the_wait_the_exception_names_the_job(self) -> None:
        walk = Walk()
        with pytest.raises(TimedOut) as raised:
            walk.through(
                call(walk.context, "ifadit", "verify", wait_s=25),
                Reply(202, {}, record("queued").pieces, takes_s=20),
                Reply(200, {"content-type": "text/event-stream"}, [5.0, TimedOut("silent")]),
            )
        assert raised.value.job_id == JOB
        assert walk.time == 1025

    def test_a_job_that_fails_while_it_is_waited_for_is_not_sent_again(self) -> None:
        walk = Walk()
        failed = Reply.of({"code": "no_face", "status": 422, "detail": "No face.", "job_id": JOB}, 422)
        with pytest.raises(InvalidInput) as raised:
            walk.through(call(walk.context, "ifadit", "verify"), failed)
        assert (raised.value.code, raised.value.job_id) == ("no_face", JOB)

    def test_a_finished_record_without_success_raises_too(self) -> None:
        walk = Walk()
        error = {"code": "no_face", "status": 422, "detail": "No face."}
        with pytest.raises(InvalidInput):
            walk.through(call(walk.context, "ifadit", "verify"), record("failed", error=error))

    def test_a_cut_connection_is_the_same_job_once_more(self) -> None:
        walk = Walk()
        walk.through(call(walk.context, "ifadit", "verify"), ConnectionFailed("cut"), record("succeeded", result={}))
        assert walk.requests[0].headers["Idempotency-Key"] == walk.requests[1].headers["Idempotency-Key"]

    @pytest.mark.parametrize("wait_s", [-1, float("nan"), float("inf")])
    def test_a_wait_without_an_end_is_refused(self, wait_s: float) -> None:
        walk = Walk()
        with pytest.raises(ValueError, match="wait_s"):
            walk.through(call(walk.context, "ifadit", "verify", wait_s=wait_s))

    def test_a_submitted_job_is_not_waited_for(self) -> None:
        walk = Walk()
        job = walk.through(submit(walk.context, "ifadit", "verify", {"a": 1}), record("queued", 202))
        assert job.state == "queued"
        assert walk.requests[0].headers["Prefer"] == "respond-async"


class Verified(Result):
    cosine: float


class TestResult:
    def test_it_is_an_object_that_knows_its_job(self) -> None:
        walk = Walk()
        plan = call_for(
            walk.context, "ifadit", "verify", Verified, {}, {}, key=None, wait_s=bounds.WAIT_S, idempotency_key=None
        )
        result = walk.through(plan, record("succeeded", result={"cosine": 0.5}))
        assert (result.cosine, result.job_id) == (0.5, JOB)

    def test_one_that_cannot_be_read_is_a_fault_that_names_the_job(self) -> None:
        walk = Walk()
        plan = call_for(walk.context, "ifadit", "verify", Verified, {}, {}, key=None, wait_s=1, idempotency_key=None)
        with pytest.raises(ServerFault, match="cosine") as raised:
            walk.through(plan, record("succeeded", result={"cosine": "confidential"}))
        assert raised.value.job_id == JOB
        assert "confidential" not in str(raised.value)
