"""What the gateway does from time to time, beside answering."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from gateway.custody.service import Custody
from shared.problems import Problem

SWEEP_S = 60.0

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def custody_swept(custody: Custody, every_s: float = SWEEP_S) -> AsyncIterator[None]:
    """Let custody expire keys, end those whose time has come and make its checkpoints, until the block ends."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await custody.sweep()
            except Problem as problem:  # the next turn does what this one could not
                log.warning("custody.sweep_failed", code=problem.code, detail=problem.detail)

    task = asyncio.create_task(sweep())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
