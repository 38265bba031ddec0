"""The public door: everything that a caller reaches."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

import httpx
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import ASGIApp

from gateway import failures, files, health, jobs, methods, models, openapi, pages
from gateway.auth import principal_of
from gateway.catalogue import Catalogue
from gateway.custody.routes import keys_router
from gateway.custody.service import Custody
from gateway.drain import Drain
from gateway.edge import Edge
from gateway.idempotency import FirstAnswers
from gateway.metrics import Metrics
from gateway.parts import Parts
from gateway.routing import OWN_PATHS, OperationRoute, Operations
from gateway.throttle import Throttle
from gateway.upkeep import custody_swept
from gateway.upstream import Mounted, Remote, Upstream
from shared.http import OWN_TELEMETRY
from shared.runtime import Runtime
from shared.settings import GatewaySettings

_LIMITS = httpx.Limits(max_connections=200, max_keepalive_connections=100)


def create_gateway(
    settings: GatewaySettings, custody: Custody, runtime: Runtime, mounted: Mapping[str, ASGIApp]
) -> FastAPI:
    """The gateway's application. `custody` and `runtime` are open, and outlive it.

    mounted  the services in this process, by method; those that `settings.services` names are reached over HTTP.
             A method may be in one of the two.

    `app.state.parts.drain.begin()` is called when the process is told to end, before the server stops.
    """
    client = httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(limits=_LIMITS, retries=1), follow_redirects=False, trust_env=False
    )
    upstreams: dict[str, Upstream] = {method: Mounted(method, service) for method, service in mounted.items()}
    for method, url in service_urls(settings.services).items():
        if method in upstreams:
            raise ValueError(f"TENFOLD_SERVICES names {method}, which is mounted in this process")
        upstreams[method] = Remote(method, url, client, settings.upstream_timeout_s)
    if taken := OWN_PATHS & upstreams.keys():
        raise ValueError(f"no method may be named {', '.join(sorted(taken))}: these are the gateway's own paths")
    catalogue, metrics = Catalogue(upstreams), Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client, catalogue.kept_fresh(), custody_swept(custody):
            yield

    app = FastAPI(
        title="Tenfold",
        description="Ten published vision methods behind one gateway.",
        version="1",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
        telemetry=OWN_TELEMETRY,
    )
    app.router.redirect_slashes = False
    throttle = Throttle(runtime.redis, settings.limits, settings.patience_s, metrics)
    app.state.custody = custody
    app.state.parts = Parts(
        settings=settings,
        custody=custody,
        runtime=runtime,
        catalogue=catalogue,
        drain=Drain(),
        metrics=metrics,
        first_answers=FirstAnswers(runtime.redis),
        throttle=throttle,
        own_openapi=lambda: openapi.own(app.openapi()),
    )
    failures.install(app, settings.body_limit_bytes)
    app.add_middleware(
        Edge,
        body_limit_bytes=settings.body_limit_bytes,
        limits_bytes={("POST", files.router.prefix): settings.upload_limit_bytes},
        metrics=metrics,
    )

    def custody_of(_: Request) -> Custody:
        return custody

    for router in (health.router, methods.router, jobs.router, files.router, models.router, pages.router):
        app.include_router(router)
    app.include_router(keys_router(custody_of, principal_of))
    secret = settings.internal_secret.get_secret_value()
    app.router.routes.append(OperationRoute(Operations(catalogue, custody, throttle, metrics, secret)))
    return app


def service_urls(services: str) -> dict[str, str]:
    """`TENFOLD_SERVICES` as method and address. Raises `ValueError` for what is no `method=http://host:port`."""
    urls: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in services.split(","))):
        method, _, url = entry.partition("=")
        if not method or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValueError(f"TENFOLD_SERVICES: {entry!r} is not method=http://host:port")
        if method in urls:
            raise ValueError(f"TENFOLD_SERVICES names {method} twice")
        urls[method] = url.rstrip("/")
    return urls


def _operation_id(route: APIRoute) -> str:
    return route.name
