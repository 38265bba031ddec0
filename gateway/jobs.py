"""Jobs, as their tenant sees them: `/v1/jobs`."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict

from gateway.auth import Caller
from gateway.drain import Drain
from gateway.parts import Here
from gateway.principals import Principal
from shared import ids
from shared.jobs import JobEvent, JobRecord
from shared.problems import JobNotFound

MAX_PAGE = 200
RECONNECT_MS = 1000  # by then another gateway listens, or this one again

JobId = Annotated[str, Path(examples=["job_01k9z6w3m8q4t5v7x2y0r1s3d4"])]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


class Job(BaseModel):
    """A job as its tenant sees it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    method: str
    operation: str
    state: str
    """queued, running, succeeded, failed, cancelling, cancelled or expired."""
    stage: str | None
    """What is being done, in the method's own words."""
    progress: dict[str, Any] | None
    """`step` and `of`, with numbers worth watching."""
    units: dict[str, Any] | None
    """`done` and `of`, for a job over many things."""
    attempt: int
    seed: int | None
    guard: dict[str, Any] | None
    """Of a job that asked for a guard: its `model`, and once it has answered `p_value`, `alpha` and `is_ood`."""
    created_at: str
    started_at: str | None
    finished_at: str | None
    deadline: str | None
    result: dict[str, Any] | None
    """What the operation answers, once the job succeeded."""
    error: dict[str, Any] | None
    """The problem, once the job failed."""
    url: str


class JobPage(BaseModel):
    """Jobs, newest first."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    jobs: list[Job]
    next: str | None
    """Give it as `before` to read on; null: there are no more."""


async def visible_job(job_id: JobId, caller: Caller, here: Here) -> JobRecord:
    """The record, if the caller may know of it. Raises `JobNotFound`, whether it is another's or nobody's."""
    if re.fullmatch(ids.pattern("job"), job_id):
        record = await here.runtime.jobs.find(job_id, here.catalogue.methods)
        if _sees(caller, record):
            return record
    raise JobNotFound(f"There is no job {job_id}.")


def _sees(caller: Principal, record: JobRecord) -> bool:
    return record.visible_to(caller.tenant, caller.id, caller.scopes)


Visible = Annotated[JobRecord, Depends(visible_job)]


@router.get("")
async def list_jobs(
    caller: Caller,
    here: Here,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    before: Annotated[str | None, Query(pattern=ids.pattern("job"))] = None,
) -> JobPage:
    """The tenant's jobs, newest first, as far as the API key may see them."""
    page: list[JobRecord] = []
    while found := await here.runtime.jobs.list(here.catalogue.methods, caller.tenant, before=before, limit=limit):
        page += [record for record in found if _sees(caller, record)]
        before = found[-1].id
        if len(page) >= limit:
            page = page[:limit]
            return JobPage(jobs=[_job(record) for record in page], next=page[-1].id)
    return JobPage(jobs=[_job(record) for record in page], next=None)


@router.get("/{job_id}")
async def read_job(record: Visible) -> Job:
    """The record of a job. A job that failed is found, too: `state` says so and `error` why."""
    return _job(record)


@router.post("/{job_id}/cancel", status_code=202)
async def cancel_job(record: Visible, here: Here) -> Job:
    """Ask for a job to be stopped.

    A queued job is `cancelled` at once. A running one is `cancelling` until its worker confirms: until then the device
    is still busy. Cancelling a finished job changes nothing and answers with its record.
    """
    return _job(await here.runtime.jobs.request_cancel(record))


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def follow_job(
    record: Visible,
    here: Here,
    last_event_id: Annotated[
        str | None, Header(pattern=r"^\d{1,20}-\d{1,20}$", description="Name of the last event seen; the next follow.")
    ] = None,
) -> AsyncIterator[ServerSentEvent]:
    """What happens to a job, as server-sent events: `state`, `progress` and `unit`, up to a terminal state.

    The stream starts at the job's beginning, or after `Last-Event-ID`. `event: reconnect` asks to connect again, with
    the last name seen: this gateway is about to end.
    """
    events = here.runtime.jobs.events(record.method, record.id, last_event_id or "0-0")
    async for event in _until_drained(events, here.drain):
        if event is None:
            yield ServerSentEvent(event="reconnect", data={}, retry=RECONNECT_MS)
            return
        yield ServerSentEvent(event=event.kind, id=event.id, data=event.data)


async def _until_drained(events: AsyncIterator[JobEvent | None], drain: Drain) -> AsyncIterator[JobEvent | None]:
    """Events as they come; None and the end as soon as the drain begins."""
    draining = asyncio.ensure_future(drain.wait())
    following: asyncio.Future[JobEvent | None] | None = None
    try:
        while True:
            following = asyncio.ensure_future(anext(events))
            await asyncio.wait((draining, following), return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                yield None
                return
            try:
                event = following.result()
            except StopAsyncIteration:
                return
            if event is not None:  # None: nothing new yet
                yield event
    finally:
        for task in (draining, following):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                    await task


def _job(record: JobRecord) -> Job:
    return Job.model_validate(record.public())
