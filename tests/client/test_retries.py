"""When a request is repeated, and after how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold import ConnectionFailed, Problem, TimedOut
from tenfold import _constants as bounds
from tenfold._retries import backoff, is_passing, pause_before_retry, retry_after_s
from tenfold.problems import class_of
from tests.client.walking import Walk

CHANCE = st.floats(0, 1)


def problem(status: int, **more: object) -> Problem:
    return class_of(status)("It did not work.", status=status, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_passes_is_tried_again(status: int) -> None:
    assert is_passing(problem(status))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 422, 500, 501, 507])
def test_what_lasts_is_not(status: int) -> None:
    assert not is_passing(problem(status))


def test_a_conflict_passes_only_if_the_server_says_when() -> None:
    assert is_passing(problem(409, retry_after_s=1.0))


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_job_that_failed_keeps_its_answer(status: int) -> None:
    assert not is_passing(problem(status, extras={"job_id": "job_1"}))


def test_a_connection_that_failed_is_tried_again_and_a_limit_that_passed_is_not() -> None:
    assert is_passing(ConnectionFailed("refused"))
    assert not is_passing(TimedOut("silent"))


def test_what_cannot_be_repeated_is_not() -> None:
    assert pause_before_retry(problem(503), is_repeatable=False, attempt=0, context=Walk().context) is None


@given(attempt=st.integers(0, 20), limit=st.integers(0, 10), draw=CHANCE)
def test_there_are_as_many_retries_as_were_chosen(attempt: int, limit: int, draw: float) -> None:
    context = Walk(draw=draw, max_retries=limit).context
    pause = pause_before_retry(problem(503), is_repeatable=True, attempt=attempt, context=context)
    assert (pause is None) == (attempt >= limit)


@given(attempt=st.integers(0, 60), draw=CHANCE)
def test_a_pause_is_bounded_and_drawn_from_zero_on(attempt: int, draw: float) -> None:
    longest = backoff(attempt, 1.0)
    assert 0 <= backoff(attempt, draw) <= longest <= bounds.BACKOFF_CAP_S
    assert backoff(attempt, draw) == pytest.approx(draw * longest)
    assert longest <= backoff(attempt + 1, 1.0)


@given(asked=st.floats(0, bounds.RETRY_AFTER_LIMIT_S), draw=CHANCE)
def test_retry_after_is_obeyed_with_a_spread(asked: float, draw: float) -> None:
    context = Walk(draw=draw).context
    pause = pause_before_retry(problem(429, retry_after_s=asked), is_repeatable=True, attempt=0, context=context)
    assert pause is not None
    assert asked <= pause <= asked * (1 + bounds.RETRY_AFTER_SPREAD)


@given(st.floats(bounds.RETRY_AFTER_LIMIT_S, 1e9, exclude_min=True))
def test_a_server_that_asks_for_too_much_is_not_waited_for(asked: float) -> None:
    context = Walk().context
    said = problem(503, retry_after_s=asked)
    assert pause_before_retry(said, is_repeatable=True, attempt=0, context=context) is None


class TestRetryAfter:
    @given(st.integers(0, 10**6))
    def test_seconds(self, seconds: int) -> None:
        assert retry_after_s(str(seconds)) == seconds

    @given(st.integers(-3600, 3600))
    def test_a_date(self, seconds: int) -> None:
        now = datetime(2026, 3, 1, 12, tzinfo=UTC)
        header = format_datetime(now + timedelta(seconds=seconds), usegmt=True)
        assert retry_after_s(header, now) == max(0, seconds)

    def test_a_date_without_a_zone_is_utc(self) -> None:
        now = datetime(2026, 3, 1, 12, tzinfo=UTC)
        assert retry_after_s("Sun, 01 Mar 2026 12:00:05 -0000", now) == 5

    @given(st.none() | st.text())
    def test_anything_else_is_no_answer_or_a_number_from_zero(self, text: str | None) -> None:
        seconds = retry_after_s(text)
        assert seconds is None or seconds >= 0

    @pytest.mark.parametrize("text", [None, "", "soon", "-1", "1e3", "nan", "inf", "٣"])
    def test_nonsense_is_none(self, text: str | None) -> None:
        assert retry_after_s(text) is None
