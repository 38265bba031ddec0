"""Everything on one machine: two Redis servers, the gateway with all methods mounted, a worker, trainers on demand.

All processes run under one user id, so this protects no secret from a compromised worker;
for that there are containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import redis.asyncio
from pydantic import RedisDsn
from redis.exceptions import RedisError

from deploy.local import samples
from deploy.local.home import Home, HomeInUse, KekLost
from deploy.local.redisserver import NoRedisServer, RedisServer, Role, find_binary, free_port, named, started
from deploy.local.settings import LocalSettings
from deploy.local.supervisor import Program, ProgramFailed, Supervisor, ending
from deploy.local.terminal import Interrupt
from shared.jobs import prefix

_HOST = "127.0.0.1"
_READY_ANSWER_S = 2.0
_QUEUE_LOOK_S = 1.0
_TRAINER_PAUSE_S = 10.0  # after one that fell: its job is put back by the janitor meanwhile
_PUT_BACK_S = 10.0  # what a worker needs after its drain to put back what is not done


class PortTaken(Exception):
    """Something else listens on the port."""


REFUSALS = (PortTaken, HomeInUse, KekLost, NoRedisServer, samples.SamplesMissing, ProgramFailed)
"""What keeps an installation from running, in words for the person who started it."""


@dataclass(frozen=True)
class Running:
    """An installation that is ready."""

    home: Home
    url: str
    supervisor: Supervisor


@contextlib.asynccontextmanager
async def running(
    settings: LocalSettings,
    *,
    say: Callable[[str, str], None],
    echo: Callable[[str, str], None] | None,
    interrupt: Interrupt,
    methods: Mapping[str, str],
) -> AsyncIterator[Running]:
    """Start everything, yield when calls can be answered, drain and end everything afterwards.

    methods  where their services are, by name

    Raises one of `REFUSALS`.
    """
    home = Home(settings.home)
    port = settings.port or free_port()
    _check_port(port)
    with home.locked() as lock:
        home.prepare()
        samples.lay(home.samples)
        servers = _servers(settings, home)
        _note_addresses(home, servers, port)
        programs = _Programs(settings, home, port, methods)
        supervisor = Supervisor(home.log, say=say, echo=echo, inherited=[lock])
        interrupt.harder = supervisor.kill
        async with contextlib.AsyncExitStack() as stack:
            broker = redis.asyncio.Redis.from_url(servers["broker"].url)
            stack.push_async_callback(broker.aclose)
            await stack.enter_async_context(supervisor)
            await supervisor.start(*(server.program for server in servers.values() if server.program))
            await asyncio.gather(supervisor.start(programs.worker(broker)), _open_doors(supervisor, programs))
            trainers = asyncio.create_task(_train_on_demand(supervisor, programs.trainer(), methods, broker, say))
            try:
                yield Running(home, f"http://{_HOST}:{port}", supervisor)
            finally:
                trainers.cancel()
                await asyncio.gather(trainers, return_exceptions=True)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise PortTaken(
                f"Port {port} of {_HOST} cannot be used: {error.strerror}. Choose another: TENFOLD_PORT=8181."
            ) from None


def _servers(settings: LocalSettings, home: Home) -> dict[Role, RedisServer]:
    given: dict[Role, RedisDsn | None] = {"broker": settings.broker_url, "custody": settings.custody_url}
    return {role: named(role, str(url)) if url else started(role, home, find_binary()) for role, url in given.items()}


def _note_addresses(home: Home, servers: dict[Role, RedisServer], port: int) -> None:
    door = home.door_socket()
    home.note("tenfold_broker_url", servers["broker"].url)
    home.note("tenfold_custody_url", servers["custody"].url)
    home.note("tenfold_door_url", f"unix://{door}" if door else f"http://{_HOST}:{free_port()}")
    home.note("tenfold_port", str(port))


async def _open_doors(supervisor: Supervisor, programs: _Programs) -> None:
    await supervisor.run_to_success(programs.bootstrap())
    await supervisor.start(programs.gateway())


@dataclass(frozen=True)
class _Programs:
    """The processes that are ours."""

    settings: LocalSettings
    home: Home
    port: int
    methods: Mapping[str, str]

    def gateway(self) -> Program:
        return Program(
            "gateway",
            self._command("gateway"),
            environment=self._environment(),
            ready=partial(_says_ready, self.port),
            stop_within_s=_PUT_BACK_S,
            stop_order=1,  # its internal door stays open for workers that finish
            told_first=True,
        )

    def worker(self, broker: redis.asyncio.Redis) -> Program:
        return Program(
            "worker",
            self._command("worker"),
            environment=self._environment(),
            ready=partial(_reports_work, broker, list(self.methods), time.time()),
            stop_within_s=self.settings.drain_s + _PUT_BACK_S,
        )

    def trainer(self) -> Program:
        return Program(
            "trainer",
            self._command("trainer"),
            environment=self._environment() | self._trainers_port(),
            stop_within_s=self.settings.drain_s + _PUT_BACK_S,
        )

    def bootstrap(self) -> Program:
        return Program("bootstrap", [sys.executable, "-m", "deploy.local.bootstrap"], environment=self._environment())

    def _trainers_port(self) -> dict[str, str]:
        port = self.settings.metrics_port
        return {} if port is None else {"TENFOLD_METRICS_PORT": str(port + 1)}

    def _command(self, process: str) -> list[str]:
        services = [word for place in self.methods.values() for word in ("--service", place)]
        return [sys.executable, "-m", "deploy.run", process, *services]

    def _environment(self) -> dict[str, str]:
        """Addresses and secrets lie in files, so that no list of processes shows them."""
        return {
            "TENFOLD_HOME": str(self.home.folder),
            "TENFOLD_SECRETS_DIR": str(self.home.secrets),
            "TENFOLD_PORT": str(self.port),
            "TENFOLD_LOG_FORMAT": self.settings.log_format,
            "PYTHONUNBUFFERED": "1",
        }


async def _says_ready(port: int) -> bool:
    """Whether `GET /readyz` answers 200."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_READY_ANSWER_S):
            reader, writer = await asyncio.open_connection(_HOST, port)
            try:
                writer.write(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
    return False


async def _reports_work(broker: redis.asyncio.Redis, methods: Sequence[str], since: float) -> bool:
    """Whether a worker of every method has reported after `since`, seconds since the epoch."""
    with contextlib.suppress(RedisError):
        async with broker.pipeline(transaction=False) as pipe:
            for method in methods:
                pipe.zcount(f"{prefix(method)}workers", since * 1000, "+inf")
            return all(await pipe.execute())
    return False


async def _train_on_demand(
    supervisor: Supervisor,
    trainer: Program,
    methods: Iterable[str],
    broker: redis.asyncio.Redis,
    say: Callable[[str, str], None],
) -> None:
    """Run a trainer whenever a training waits. It serves all methods, one training at a time, and ends when idle."""
    queues = [f"{method}.train" for method in methods]
    while True:
        try:
            async with broker.pipeline(transaction=False) as pipe:
                for queue in queues:
                    pipe.llen(queue)
                waiting = sum(await pipe.execute())
        except RedisError:
            waiting = 0  # the broker restarts
        if waiting and (code := await supervisor.run(trainer)) != 0:
            say("trainer", f"{ending(code)}; the next one may start in {_TRAINER_PAUSE_S:.0f} s")
            await asyncio.sleep(_TRAINER_PAUSE_S)
        await asyncio.sleep(_QUEUE_LOOK_S)
