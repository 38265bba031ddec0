"""What can go wrong, as the caller sees it."""

from __future__ import annotations

import json
import pickle
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tenfold
from tenfold import Problem
from tenfold._http import translated
from tenfold.problems import class_of, problem_of, problem_of_body

BODY = {
    "type": "/problems/image_too_large",
    "code": "image_too_large",
    "status": 413,
    "title": "The picture is too large.",
    "detail": "The picture is 4000 x 3000 px.",
    "limit_px": 1024,
    "request_id": "req_01k9",
}


def test_a_problem_says_what_the_answer_said() -> None:
    problem = problem_of(413, json.dumps(BODY).encode())
    assert isinstance(problem, tenfold.InvalidInput)
    assert (problem.code, problem.status, problem.request_id) == ("image_too_large", 413, "req_01k9")
    assert problem.detail == "The picture is 4000 x 3000 px."
    assert problem.extras == {"limit_px": 1024}
    assert str(problem) == "The picture is 4000 x 3000 px. (image_too_large, request req_01k9)"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, tenfold.InvalidInput),
        (401, tenfold.AuthenticationFailed),
        (403, tenfold.NotAllowed),
        (404, tenfold.NotFound),
        (409, tenfold.Conflict),
        (410, tenfold.NotFound),
        (413, tenfold.InvalidInput),
        (415, tenfold.InvalidInput),
        (422, tenfold.InvalidInput),
        (429, tenfold.RateLimited),
        (500, tenfold.ServerFault),
        (502, tenfold.Unavailable),
        (503, tenfold.Unavailable),
        (504, tenfold.Unavailable),
        (507, tenfold.ServerFault),
    ],
)
def test_each_reaction_has_its_class(status: int, kind: type[Problem]) -> None:
    assert class_of(status) is kind


@given(status=st.integers(300, 599), body=st.binary() | st.from_type(type(None)).map(lambda _: b'{"code": 1}'))
def test_any_body_makes_a_problem(status: int, body: bytes) -> None:
    problem = problem_of(status, body, request_id="req_1")
    assert problem.status == status
    assert problem.code == f"http_{status}"
    assert problem.request_id == "req_1"


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=3)


@given(st.dictionaries(st.sampled_from([*BODY, "retry_after_s", "job_id"]), JSON))
def test_any_object_makes_a_problem(body: dict[str, Any]) -> None:
    problem = problem_of_body(body)
    assert isinstance(problem.detail, str)
    assert isinstance(problem.status, int)
    assert problem.retry_after_s is None or problem.retry_after_s >= 0 or isinstance(body["retry_after_s"], int)


def test_it_survives_a_process_pool() -> None:
    problem = problem_of(413, json.dumps(BODY).encode(), retry_after_s=2.0)
    again = pickle.loads(pickle.dumps(problem))  # noqa: S301 - our own
    assert type(again) is type(problem)
    assert vars(again) == vars(problem)
    assert str(again) == str(problem)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (httpx.ConnectError("refused"), tenfold.ConnectionFailed),
        (httpx.ConnectTimeout("slow"), tenfold.ConnectionFailed),
        (httpx.PoolTimeout("busy"), tenfold.ConnectionFailed),
        (httpx.ReadError("cut"), tenfold.ConnectionFailed),
        (httpx.RemoteProtocolError("cut"), tenfold.ConnectionFailed),
        (httpx.ReadTimeout("silent"), tenfold.TimedOut),
        (httpx.WriteTimeout("silent"), tenfold.TimedOut),
        (httpx.DecodingError("gzip"), tenfold.ServerFault),
    ],
)
def test_failures_of_httpx_become_ours(raised: Exception, kind: type[Problem]) -> None:
    with pytest.raises(kind) as caught, translated("http://tenfold.test"):
        raise raised
    assert "http://tenfold.test" in caught.value.detail
    assert caught.value.__cause__ is raised


def test_no_exception_of_httpx_about_a_request_is_left_out() -> None:
    for name in httpx.__all__:
        kind = getattr(httpx, name)
        if isinstance(kind, type) and issubclass(kind, httpx.RequestError | httpx.InvalidURL):
            with pytest.raises((Problem, ValueError)), translated("http://tenfold.test"):
                raise kind("why")


def test_a_mistake_of_our_own_stays_what_it_is() -> None:
    with pytest.raises(httpx.StreamConsumed), translated("http://tenfold.test"):
        raise httpx.StreamConsumed
