"""The diagnostic service's processes: `python -m tests.diagnostic.serve api PORT | worker | trainer`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from shared import telemetry, tracing
from shared.settings import ServiceSettings, WorkerSettings, load
from tests.diagnostic.service import service


def api(port: int) -> int:
    import uvicorn

    from shared.api import create_app
    from shared.runtime import Runtime

    settings = load(ServiceSettings)
    telemetry.configure(settings.log_level, settings.log_format)
    runtime = Runtime(settings, [service.name])

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with runtime:
            runtime.start_janitor()
            yield

    app = create_app(service, runtime)
    app.router.lifespan_context = lifespan
    uvicorn.run(app, port=port, log_level="warning", timeout_graceful_shutdown=3)
    return 0


def work(*, train: bool) -> int:
    from shared.worker import serve

    settings = load(WorkerSettings)
    telemetry.configure(settings.log_level, settings.log_format)
    return serve([service], settings, train=train)


if __name__ == "__main__":
    with tracing.exported(f"diagnostic-{sys.argv[1]}"):
        match sys.argv[1:]:
            case ["api", port]:
                sys.exit(api(int(port)))
            case [kind]:
                sys.exit(work(train=kind == "trainer"))
