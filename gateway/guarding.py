"""Guards: the gateway makes the job of a guard for a job that asks for one, parks that, and wakes it on the answer.

Only the gateway can: in the broker no method reaches another's jobs. A worker asks at the internal door with the call
that was signed for its job, so it can have nothing looked at but for a principal that asked for it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import structlog
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from gateway.custody.door import signed
from gateway.custody.service import Custody
from shared import guard, ids
from shared.context import CallContext
from shared.files import StoredFile
from shared.guard import MAX_VIEWS, Guard
from shared.jobs import GUARDING, JobRecord, NewJob, queues
from shared.problems import CallNotSigned, InvalidRequest, NoWorker, Problem, QueueFull
from shared.runtime import Runtime

RESULT_TTL_S = 15 * 60.0  # the job that asked keeps what counts
ATTEMPTS = 2

log = structlog.get_logger()


class Guarding:
    """Close it at the end: what is parked then is woken by the janitor of another gateway, or of the next one."""

    def __init__(self, runtime: Runtime, custody: Custody) -> None:
        self._runtime = runtime
        self._custody = custody
        self._waiting: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait for no answer any more."""
        while waiting := set(self._waiting):
            for task in waiting:
                task.cancel()  # again and again: redis-py swallows one that arrives while it connects
            await asyncio.wait(waiting, timeout=0.1)

    async def open(self, context: CallContext) -> CallContext:
        """The call of a guard's job that is to come, with a lease of its own for what it will be shown."""
        record, _ = await self._asking(context)
        principal = await self._custody.principals.find(context.principal)
        if principal is None:
            raise CallNotSigned("The principal is gone.")
        job_id = ids.ordered_id("job")
        lease = await self._custody.open_lease(
            principal,
            job_id=job_id,
            method=GUARDING,
            operation=guard.OPERATION,
            kind="guard",
            key_id=None,
            expires_at=context.expires_at,
            request_id=context.request_id,
        )
        log.info("guard.opened", job_id=record.id, guard_job=job_id)
        return self._call(context, job_id, lease)

    async def ask(
        self, context: CallContext, fence: str, files: Sequence[str], own: bool, ticket: CallContext | None
    ) -> bool:
        """Make the guard's job and park the one that asks. False if that is not the start of it that runs."""
        record, wanted = await self._asking(context)
        call = ticket or self._call(context, ids.ordered_id("job"), None)
        stored = [await run_in_threadpool(self._runtime.files.stat, name) for name in files]
        for one in stored:
            if not (_is_a_view(one, call) if own else _is_an_input(one, record, context)):
                raise InvalidRequest(f"{one.id} is nothing that this job can have looked at.")
        job = self._job(record, wanted, call, stored, own)
        outcome, value = await self._runtime.jobs.create(job)
        if outcome == "no_worker":
            raise NoWorker(f"No worker serves {GUARDING} at the moment.", retry_after_s=5)
        if outcome == "full":
            raise QueueFull(f"{job.queue_limit} jobs of {GUARDING} wait already.", retry_after_s=float(value))
        if outcome != "created":
            raise CallNotSigned("The ticket was used before.")
        asked = wanted.shown(job.id, len(files))
        if not await self._runtime.jobs.park(record, fence, asked.text()):
            await self._runtime.jobs.request_cancel(JobRecord(job.id, GUARDING, {}))
            return False
        task = asyncio.create_task(self._wake(record, asked, job.deadline_s), name=f"guard of {record.id}")
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return True

    async def _asking(self, context: CallContext) -> tuple[JobRecord, Guard]:
        """The job of a call, and the guard that it is to be shown to. Raises `JobNotFound`, `CallNotSigned`."""
        record = await self._runtime.jobs.get(context.method, context.job_id)
        wanted = Guard.of(record)
        if (record.tenant, record.principal) != (context.tenant, context.principal):
            raise CallNotSigned("The job is another's.")
        if wanted is None or not wanted.is_open:
            raise CallNotSigned("The job has no guard that is to be asked.")
        return record, wanted

    def _call(self, context: CallContext, job_id: str, lease: str | None) -> CallContext:
        return replace(context, method=GUARDING, operation=guard.OPERATION, job_id=job_id, lease=lease)

    def _job(
        self, record: JobRecord, wanted: Guard, call: CallContext, files: Sequence[StoredFile], own: bool
    ) -> NewJob:
        request = {"images": [_facts(file) for file in files], "model": wanted.model}
        fields = {
            "operation": guard.OPERATION,
            "principal": record.principal,
            "request_id": call.request_id,
            "request": json.dumps(request),
            "model": wanted.model,
            "attempts": str(ATTEMPTS),
            "call": call.signed(self._custody.internal_secret) if call.lease else "",
            "lease": call.lease or "",
            "scope": record.scope or "",
            "own_files": json.dumps([file.id for file in files] if own else []),
            "ttl_ms": str(int(1000 * RESULT_TTL_S)),
        }
        if (traceparent := record.fields.get("traceparent")) is not None:
            fields["traceparent"] = traceparent
        return NewJob(
            id=call.job_id,
            method=GUARDING,
            queue=queues(GUARDING)["guard"],
            tenant=record.tenant,
            fields=fields,
            deadline_s=max(1.0, int(record.fields["deadline"]) / 1000 - time.time()),
            queue_limit=self._runtime.settings.queue_limit,
            needs_worker=True,
        )

    async def _wake(self, record: JobRecord, asked: Guard, within_s: float) -> None:
        try:
            await self._runtime.wait(GUARDING, asked.job or "", within_s)
            await guard.wake(self._runtime.jobs, record.method, record.id, asked)
        except Problem as problem:  # of the broker: the janitor tries again
            log.warning("guard.not_woken", job_id=record.id, code=problem.code)


def _is_a_view(file: StoredFile, call: CallContext) -> bool:
    owner = file.owner
    return (owner.tenant, owner.scope, owner.lease) == (call.tenant, "runtime", call.lease)


def _is_an_input(file: StoredFile, record: JobRecord, context: CallContext) -> bool:
    is_named = f'"{file.id}"' in record.fields["request"]
    return is_named and file.owner.lease is None and file.visible_to(context.tenant, context.principal, context.scopes)


def _facts(file: StoredFile) -> dict[str, Any]:
    names = ("media_type", "bytes", "sha256", "width", "height")
    return {"file": file.id, **{name: getattr(file, name) for name in names}}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    context: str


class _Ask(_Body):
    fence: str
    files: list[str] = Field(min_length=1, max_length=MAX_VIEWS)
    own: bool
    ticket: str | None


def guard_router(guarding: Guarding, secret: str) -> APIRouter:
    """`/internal/guard/…`, signed as everything at the door."""
    router = APIRouter(include_in_schema=False)

    @router.post("/internal/guard/open")
    async def open_guard(request: Request) -> dict[str, str | None]:
        context, _ = await signed(request, _Body, secret, time.time())
        call = await guarding.open(context)
        return {"context": call.signed(secret), "lease": call.lease}

    @router.post("/internal/guard/ask")
    async def ask_guard(request: Request) -> dict[str, bool]:
        context, body = await signed(request, _Ask, secret, time.time())
        ticket = None
        if body.ticket is not None:
            ticket = CallContext.verified(body.ticket, secret)
            if replace(ticket, job_id=context.job_id, lease=context.lease) != replace(
                context, method=GUARDING, operation=guard.OPERATION
            ):
                raise CallNotSigned("The ticket is another job's.")
        return {"parked": await guarding.ask(context, body.fence, body.files, body.own, ticket)}

    return router
