"""The internal door: what workers ask of custody, on a port or socket of its own."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request

from gateway import failures
from gateway.custody.door import BODY_LIMIT_BYTES, door_router
from gateway.custody.service import Custody
from gateway.edge import Edge
from gateway.guarding import Guarding, guard_router
from gateway.metrics import Metrics
from shared.http import OWN_TELEMETRY


def create_door(custody: Custody, metrics: Metrics | None = None, guarding: Guarding | None = None) -> FastAPI:
    """The application behind `TENFOLD_DOOR_URL`. Never reachable from outside; every call is signed all the same.

    metrics   the gateway's, which shows them at its own `/metrics`
    guarding  without it nothing is guarded
    """

    def custody_of(_: Request) -> Custody:
        return custody

    app = FastAPI(
        title="Tenfold, internal door", openapi_url=None, docs_url=None, redoc_url=None, telemetry=OWN_TELEMETRY
    )
    app.router.redirect_slashes = False
    failures.install(app, BODY_LIMIT_BYTES)
    app.add_middleware(Edge, body_limit_bytes=BODY_LIMIT_BYTES, metrics=metrics or Metrics())
    app.include_router(door_router(custody_of))
    if guarding is not None:
        app.include_router(guard_router(guarding, custody.internal_secret))

    @app.get("/healthz")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    return app
