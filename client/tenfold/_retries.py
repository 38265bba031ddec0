"""Whether to try again, and after how long."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from tenfold import _constants as bounds
from tenfold.problems import ConnectionFailed, Problem

if TYPE_CHECKING:
    from tenfold._context import Context

_PASSING = frozenset({429, 502, 503, 504})


def is_passing(problem: Problem) -> bool:
    """Whether the same request may well succeed a little later.

    The server's word counts: a job that failed keeps its answer however often it is asked for, and a 409 passes only if
    it says when (the same request is being worked on at this moment).
    """
    if isinstance(problem, ConnectionFailed):
        return True
    if problem.job_id is not None:
        return False
    return problem.status in _PASSING or (problem.status == 409 and problem.retry_after_s is not None)


def backoff(attempt: int, draw: float) -> float:
    """A pause drawn evenly from 0 to a limit that doubles with every attempt (0, 1, …): "full jitter"."""
    return draw * min(bounds.BACKOFF_CAP_S, bounds.BACKOFF_BASE_S * 2.0**attempt)


def pause_before_retry(problem: Problem, *, is_repeatable: bool, attempt: int, context: Context[Any]) -> float | None:
    """Seconds to let pass before the next try, or None if there is to be none.

    attempt  0 after the first try
    """
    if not is_repeatable or attempt >= context.options.max_retries or not is_passing(problem):
        return None
    asked = problem.retry_after_s
    if asked is None:
        return backoff(attempt, context.draw())
    if asked > bounds.RETRY_AFTER_LIMIT_S:
        return None
    return asked * (1 + bounds.RETRY_AFTER_SPREAD * context.draw())


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds from now that a `Retry-After` header names, as a number or as a date. None if it names none."""
    text = (value or "").strip()
    try:
        if text.isascii() and text.replace(".", "", 1).isdecimal():
            return float(text)
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())
