"""Whether the process runs, whether it can take work, and its counters. No API key needed."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError

from gateway.parts import Here, Parts
from shared import census, metrics
from shared.problems import Problem, ServiceUnavailable

CHECK_S = 3.0  # a part that takes longer to say that it lives does not

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def live() -> dict[str, str]:
    """The process runs."""
    return {"status": "live"}


@router.get("/readyz")
async def ready(here: Here) -> dict[str, Any]:
    """This gateway can take requests. A method that is down is named and does not count: the others work."""
    checks = {"gateway": "draining" if here.drain.has_begun else "ok"}
    parts = await asyncio.gather(_broker(here), _custody(here), _files(here))
    checks |= zip(("broker", "custody", "files"), parts, strict=True)
    unavailable = list(here.catalogue.unavailable)
    if set(checks.values()) != {"ok"}:
        raise ServiceUnavailable("This gateway takes no requests.", checks=checks, unavailable_methods=unavailable)
    return {"status": "ready", "checks": checks, "unavailable_methods": unavailable}


@router.get("/metrics", response_class=Response)
async def series(here: Here) -> Response:
    """Counters in Prometheus' text format: of this gateway, its custody, the services in it, and the job store."""
    try:
        jobs = await census.taken(here.runtime.redis, here.catalogue.methods)
    except Problem:
        jobs = []  # the broker is down, which readiness says
    registries = (here.metrics.registry, here.custody.series.registry, here.runtime.series.registry)
    return Response(metrics.page(*registries, metrics.JobSeries(jobs)), media_type=CONTENT_TYPE_LATEST)


async def _broker(here: Parts) -> str:
    try:
        async with asyncio.timeout(CHECK_S):
            await here.runtime.ping()
    except (RedisError, OSError, TimeoutError):
        return "failed"
    return "ok"


async def _files(here: Parts) -> str:
    try:
        async with asyncio.timeout(CHECK_S):
            await here.runtime.check_files()
    except (Problem, TimeoutError):
        return "failed"
    return "ok"


async def _custody(here: Parts) -> str:
    try:
        async with asyncio.timeout(CHECK_S):
            facts = await here.custody.ready()  # for operators (`tenfold-admin`); everybody hears the sum
    except (Problem, TimeoutError):
        return "failed"
    return "failed" if "down" in facts.values() else "ok"
