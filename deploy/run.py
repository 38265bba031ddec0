"""One process of an installation: `python -m deploy.run gateway|api|worker|trainer [--service module:attribute …]`.

The services default to all in `deploy/methods.py`. Everything else comes from `TENFOLD_*` (`shared/settings.py`).
A SIGTERM or SIGINT drains the process; its exit status is 0 then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

import uvloop

from deploy.methods import METHODS, load_service
from shared import telemetry, tracing
from shared.service import Service
from shared.settings import GatewaySettings, ServiceSettings, WorkerSettings, load

API_DRAIN_S = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold keys and pictures
    try:
        services = [load_service(place) for place in arguments.service or METHODS.values()]
        name = f"tenfold-{services[0].name}" if arguments.process == "api" else f"tenfold-{arguments.process}"
        with tracing.exported(name):
            if arguments.process == "gateway":
                return _served(_gateway(load(GatewaySettings), services))
            if arguments.process == "api":
                return _served(_api(load(ServiceSettings), services, arguments.host, arguments.port))
            return _worker(load(WorkerSettings), services, train=arguments.process == "trainer")
    except ValueError as error:  # of settings: what is missing, misspelt, taken, or makes no sense
        sys.stderr.write(f"{error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.run", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("process", choices=("gateway", "api", "worker", "trainer"))
    parser.add_argument("--service", action="append", metavar="MODULE:ATTRIBUTE", help="default: all methods")
    parser.add_argument("--host", default="127.0.0.1", help="of an api; the gateway's is TENFOLD_HOST")
    parser.add_argument("--port", type=int, default=8000, help="of an api; the gateway's is TENFOLD_PORT")
    return parser


def _served(serving: Coroutine[Any, Any, int]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serving)


def _settle() -> None:
    """What is there now lives as long as the process: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


async def _gateway(settings: GatewaySettings, services: Sequence[Service]) -> int:
    """The public door and, on an address of its own, the internal one.

    The first signal closes the public door: calls in flight are answered, new ones refused. The internal door stays
    open for workers that finish their jobs, until a second signal or for `drain_s`.
    """
    from deploy.serving import Signals, server, tcp_socket, url_socket
    from gateway.app import create_gateway, service_urls
    from gateway.custody.service import Custody
    from gateway.door import create_door
    from gateway.guarding import Guarding
    from shared.api import create_app
    from shared.runtime import Runtime

    telemetry.configure(settings.log_level, settings.log_format)
    remote = service_urls(settings.services)
    here = [] if remote else services
    async with contextlib.AsyncExitStack() as stack:
        custody = await Custody.connect(settings)
        stack.push_async_callback(custody.close)
        runtime = await stack.enter_async_context(Runtime(settings, [*remote, *(one.name for one in here)]))
        runtime.start_janitor()
        guarding = Guarding(runtime, custody)
        stack.push_async_callback(guarding.close)
        app = create_gateway(settings, custody, runtime, {one.name: create_app(one, runtime) for one in here})
        door, public = (
            server(create_door(custody, app.state.parts.metrics, guarding), settings.drain_s),
            server(app, settings.drain_s),
        )
        door_socket = stack.enter_context(url_socket(settings.door_url))
        public_socket = stack.enter_context(tcp_socket(settings.host, settings.port))
        signals = await stack.enter_async_context(Signals.heard())
        _settle()
        serving = asyncio.gather(door.serve([door_socket]), public.serve([public_socket]))
        await signals.next_or_end_of(serving)
        app.state.parts.drain.begin()
        public.refuse_new_calls()
        await signals.next_or_end_of(serving, settings.drain_s)
        public.end()
        door.end()
        await serving
    return 0


async def _api(settings: ServiceSettings, services: Sequence[Service], host: str, port: int) -> int:
    """The API of one method, for a gateway elsewhere."""
    from deploy.serving import Signals, server, tcp_socket
    from shared.api import create_app
    from shared.runtime import Runtime

    telemetry.configure(settings.log_level, settings.log_format)
    if len(services) != 1:
        raise ValueError("an api process serves one method: name it with --service")
    # No janitor: it is the gateway's, which knows all methods, while this process may touch the keys of one.
    async with Runtime(settings, [services[0].name]) as runtime, Signals.heard() as signals:
        with tcp_socket(host, port) as listener:
            api = server(create_app(services[0], runtime), API_DRAIN_S)
            _settle()
            serving = asyncio.ensure_future(api.serve([listener]))
            await signals.next_or_end_of(serving)
            api.refuse_new_calls()
            await signals.next_or_end_of(serving)
            api.end()
            await serving
    return 0


def _worker(settings: WorkerSettings, services: Sequence[Service], *, train: bool) -> int:
    # OpenMP's threads spin while they wait for each other. On cores that somebody else uses too, that multiplies the
    # time: `make demo` took 206 s beside other work on two cores, and 29 s with this. It is read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from shared.worker import serve

    telemetry.configure(settings.log_level, settings.log_format)
    return serve(services, settings, train=train)


if __name__ == "__main__":
    sys.exit(main())
