"""A whole gateway for tests: real custody, real job records, real files; the services as the test needs them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp

from gateway.app import create_gateway
from gateway.custody.kek import InsecureFileKek
from gateway.custody.service import Custody
from gateway.principals import Principal, Role
from shared.runtime import Runtime
from shared.settings import GatewaySettings
from tests.gateway.echo import SECRET
from tests.gateway.serving import served
from tests.redis_server import RedisServer

Mounted = Mapping[str, ASGIApp] | Callable[[Runtime], Mapping[str, ASGIApp]]


class House:
    """An open gateway and the means to call it as anybody."""

    def __init__(self, settings: GatewaySettings, custody: Custody, runtime: Runtime, app: FastAPI) -> None:
        self.settings = settings
        self.custody = custody
        self.runtime = runtime
        self.app = app
        self.clients = contextlib.AsyncExitStack()
        self._known: dict[tuple[str, str, int], tuple[Principal, str]] = {}
        self._apis: dict[str | None, httpx.AsyncClient] = {}

    async def principal(self, role: Role = "app", tenant: str = "acme", number: int = 1) -> tuple[Principal, str]:
        """One of a tenant's principals of a role, the same every time, and its API key."""
        name = (role, tenant, number)
        if name not in self._known:
            self._known[name] = await self.custody.principals.create(tenant, role)
        return self._known[name]

    async def api(self, role: Role = "app", tenant: str = "acme", number: int = 1) -> httpx.AsyncClient:
        """A client of that principal. Its answers come whole: `streaming` is for what does not."""
        return await self.client((await self.principal(role, tenant, number))[1])

    async def client(self, api_key: str | None = None) -> httpx.AsyncClient:
        """A client that shows this API key, or none."""
        if api_key not in self._apis:
            client = httpx.AsyncClient(
                transport=httpx.ASGITransport(app=self.app), **_options("http://gateway", api_key)
            )
            self._apis[api_key] = await self.clients.enter_async_context(client)
        return self._apis[api_key]

    @contextlib.asynccontextmanager
    async def streaming(self, role: Role = "app") -> AsyncIterator[httpx.AsyncClient]:
        """A client over a real connection."""
        _, api_key = await self.principal(role)
        async with served(self.app) as url, httpx.AsyncClient(**_options(url, api_key)) as client:
            yield client


def _options(url: str, api_key: str | None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": url, "headers": headers, "timeout": 30}


@contextlib.asynccontextmanager
async def house(server: RedisServer, home: Path, mounted: Mounted, **settings: Any) -> AsyncIterator[House]:
    """Open a gateway over `mounted` (or over what it makes of the runtime) and `settings.services`.

    Several may use one `home` and one server, one after the other or at the same time, as gateways do.
    """
    known = gateway_settings(server, home, **settings)
    if not known.kek_path.exists():
        InsecureFileKek.create(known.kek_path, environment="dev")
    custody = await Custody.connect(known)
    methods = {"echo", "diagnostic", *(entry.partition("=")[0] for entry in known.services.split(",") if entry)}
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(custody.close)
        runtime = Runtime(known, sorted(methods))
        stack.push_async_callback(runtime.redis.connection_pool.disconnect)
        await stack.enter_async_context(runtime)
        stack.push_async_callback(_quiet, runtime)
        app = create_gateway(known, custody, runtime, mounted(runtime) if callable(mounted) else mounted)
        await stack.enter_async_context(app.router.lifespan_context(app))
        house = House(known, custody, runtime, app)
        await stack.enter_async_context(house.clients)
        yield house


async def _quiet(runtime: Runtime) -> None:
    """End what the runtime does in the background, however often it must be told.

    redis-py swallows a cancellation that comes while it connects, and these houses are short-lived.
    """
    while running := [task for task in runtime._tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=0.1)


def gateway_settings(server: RedisServer, home: Path, **changes: Any) -> GatewaySettings:
    """Settings of a gateway whose broker and custody are one server."""
    known: dict[str, Any] = {
        "broker_url": server.url,
        "custody_url": server.url,
        "home": home,
        "internal_secret": SECRET,
        "api_key_pepper": "p" * 32,
        "kek_path": home / "kek.json",
    }
    return GatewaySettings(**{**known, **changes})
