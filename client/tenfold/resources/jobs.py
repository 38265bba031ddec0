"""`client.jobs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenfold import _constants as bounds
from tenfold import _waiting
from tenfold._effects import Plan, Stream
from tenfold._exchange import deadline, exchange, pages, post, quoted, read
from tenfold._surface import AsyncCalls, Calls, async_iterating, awaited, blocking, iterating
from tenfold.types import Job, JobEvent

if TYPE_CHECKING:
    from tenfold._context import Context


def get(context: Context[Any], job_id: str) -> Plan[Job]:
    """The record of a job as it is now, whatever became of it. Raises `NotFound`."""
    return _waiting.read_job(context, job_id)


def list_(context: Context[Any]) -> Stream[Job]:
    """The tenant's jobs, newest first. Further pages are asked for as they are reached: stop when you have enough."""
    return pages(context, "/v1/jobs", "jobs", "before", Job)


def wait(context: Context[Any], job_id: str, *, wait_s: float = bounds.WAIT_S) -> Plan[Job]:
    """The record of a job once it has succeeded.

    Raises the job's own `Problem` if it failed, was cancelled or expired, and `TimedOut` after `wait_s` seconds, or up
    to 15 s later where nothing happens: the job goes on then.
    """
    return _waiting.finished(context, job_id, until=deadline(context, wait_s))


def stream(
    context: Context[Any], job_id: str, *, after: str = "", wait_s: float = bounds.STREAM_WAIT_S
) -> Stream[JobEvent]:
    """What happens to a job, as it happens, from its beginning to its end.

    A connection that is cut is opened again, and nothing is missed. The iterator ends with the job, whatever became of
    it.

    after   the `id` of an event seen before: go on behind it
    wait_s  seconds until `TimedOut`; by default longer than any job may take
    """
    return _waiting.events(context, job_id, until=deadline(context, wait_s), after=after)


def cancel(context: Context[Any], job_id: str) -> Plan[Job]:
    """Ask for a job to be stopped, and return its record.

    A queued job is `cancelled` at once. A running one is `cancelling` until its worker confirms. A finished one stays
    as it is.
    """
    answer = yield from exchange(context, post(f"/v1/jobs/{quoted(job_id)}/cancel"))
    return read(context, answer, Job)


class Jobs(Calls):
    """The tenant's jobs."""

    get = blocking(get)
    list = iterating(list_)
    wait = blocking(wait)
    stream = iterating(stream)
    cancel = blocking(cancel)


class AsyncJobs(AsyncCalls):
    """The tenant's jobs."""

    get = awaited(get)
    list = async_iterating(list_)
    wait = awaited(wait)
    stream = async_iterating(stream)
    cancel = awaited(cancel)
