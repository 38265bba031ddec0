"""What an installation in containers takes: all methods, and three of them, as processes with the commands, settings
and users of docker-compose.yml. Each method runs its part of `make demo` once, which is what a worker holds then."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.processes import cpu_s
from deploy.docker.compose import render
from deploy.local import samples
from deploy.local.exhibit import Exhibit, Visitors
from deploy.methods import METHODS, load_service
from tenfold import AsyncClient
from tests.deploy.containers import Containers, Service

FEW = 3
TIMEOUT_S = 600.0


def stacks() -> dict[str, Any]:
    """Seconds of CPU until every health check is green, and the largest resident sizes."""
    names = list(METHODS)
    return {"all": _measured(names), "three": _measured(names[:FEW])}


def _measured(methods: list[str]) -> dict[str, Any]:
    places = {METHODS[name]: load_service(METHODS[name]) for name in methods}
    with _up(render(places)) as containers:
        started = _sizes(containers.active())
        cpu = cpu_s(one.process.pid for one in containers.active() if one.process)
        shown = asyncio.run(_shown(containers, methods))
        served = _sizes(containers.active())
    return {
        "methods": methods,
        "cpu_s_to_start": round(cpu, 1),
        "started_mib": {**started, "all": sum(started.values())},
        "after_the_demo_mib": {**served, "all": sum(served.values())},
        "demo": shown,
    }


@contextlib.contextmanager
def _up(text: str) -> Iterator[Containers]:
    folder = Path(tempfile.mkdtemp(prefix="tenfold-stack-"))
    containers = Containers(folder, text)
    try:
        containers.set_up()
        containers.up()
        yield containers
    finally:
        containers.kill()
        shutil.rmtree(folder)


def _sizes(services: Iterable[Service]) -> dict[str, int]:
    return {one.name: round(one.most_memory_bytes() / 2**20) for one in services}


async def _shown(containers: Containers, methods: Iterable[str]) -> dict[str, bool]:
    """Whether each method's part of the demo passed its checks."""
    gateway = containers.services["gateway"]
    made = gateway.run("tenfold-admin", "tenants", "create", "bench")
    keys: Mapping[str, str] = dict(line.split("\t") for line in made.stdout.splitlines())
    samples.lay(containers.folder / "samples")
    url = f"http://{gateway.address}:8080"
    async with contextlib.AsyncExitStack() as stack:
        app, officer, custodian = [
            await stack.enter_async_context(AsyncClient(url, keys[role], timeout_s=TIMEOUT_S))
            for role in ("app", "officer", "custodian")
        ]
        visitors = Visitors(app, officer, custodian, containers.folder / "samples")
        passed = {}
        for method in methods:
            exhibit = Exhibit(method)
            await importlib.import_module(f"deploy.local.demos.{method.replace('-', '_')}").show(visitors, exhibit)
            passed[method] = exhibit.is_right
    return passed
