"""A whole installation as real processes that one may kill one by one: two Redis servers, gateway, workers, trainers.

`embedded` mounts the methods' APIs in the gateway's process, as `make up` does; `apart` gives each API a process of its
own, as containers do. What a killed process is started again by is the caller, who plays the supervisor.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import httpx
import redis

from deploy.local.home import Home
from shared.jobs import prefix
from tests.redis_server import RedisServer, free_port

ROOT = Path(__file__).parent.parent
DIAGNOSTIC = {"diagnostic": "tests.diagnostic.service:service"}
MAIN_JOB = {"ifadit": "services.ifadit.service:service"}
ROLES = ("app", "officer", "custodian")
UP_WITHIN_S = 90.0


class Fleet:
    """One installation in a folder. As a context manager it starts everything and kills everything at its end.

    methods   where their services are, by name
    settings  `TENFOLD_*` of all processes
    trainer   start a trainer, too
    """

    def __init__(
        self,
        folder: Path,
        methods: Mapping[str, str],
        *,
        layout: Literal["embedded", "apart"] = "embedded",
        trainer: bool = False,
        python: str = sys.executable,
        **settings: str,
    ) -> None:
        self.methods = dict(methods)
        self.home = Home(folder / "home")
        self.servers = {
            "broker": RedisServer(folder / "broker", appendfsync="everysec", options=["aof-load-truncated yes"]),
            "custody": RedisServer(folder / "custody"),
        }
        self.port = free_port()
        self.ports = {method: free_port() for method in methods} if layout == "apart" else {}
        self.names = [
            "gateway",
            "worker",
            *(["trainer"] if trainer else []),
            *(f"api-{method}" for method in self.ports),
        ]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.logs = folder / "logs"
        self._python = python
        self._settings = {"TENFOLD_TRAINER_IDLE_S": "86400", "TENFOLD_TORCH_THREADS": "1", **settings}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def key(self, role: str) -> str:
        """The API key of one of the three principals that every local installation has."""
        return (self.home.keys / role).read_text().strip()

    def headers(self, role: str = "app") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key(role)}"}

    def new_key(self, role: str) -> str:
        """The API key of another principal of the tenant, made as an operator makes it."""
        command = ["-m", "deploy.admin.main", "keys", "create", "--tenant", "local", "--role", role]
        return self._run(command).strip()

    def _run(self, arguments: Iterable[str]) -> str:
        done = subprocess.run(
            [self._python, *arguments], env=self._environment(), cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr}")
        return done.stdout

    # life

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        self.home.prepare()
        for name, server in self.servers.items():
            server.start()
            self.home.note(f"tenfold_{name}_url", server.url)
        door = self.home.door_socket()
        self.home.note("tenfold_door_url", f"unix://{door}" if door else f"http://127.0.0.1:{free_port()}")
        self._run(["-m", "deploy.local.bootstrap"])
        for name in self.names:
            self.start(name)
        self.until(self.is_ready, UP_WITHIN_S)
        self.until(self.has_workers, UP_WITHIN_S)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        for server in self.servers.values():
            server.kill()

    def start(self, name: str) -> None:
        """Start a process or a Redis server. Returns at once for a process: it may take seconds to be ready."""
        if name in self.servers:
            self.servers[name].start()
            return
        services = [word for place in self._served_by(name) for word in ("--service", place)]
        address = ["--port", str(self.ports[name.removeprefix("api-")])] if name.startswith("api-") else []
        with (self.logs / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [self._python, "-m", "deploy.run", name.partition("-")[0], *services, *address],
                env=self._environment(),
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def _served_by(self, name: str) -> list[str]:
        return [self.methods[name[4:]]] if name.startswith("api-") else list(self.methods.values())

    def _environment(self) -> dict[str, str]:
        services = ",".join(f"{method}=http://127.0.0.1:{port}" for method, port in self.ports.items())
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "TENFOLD_HOME": str(self.home.folder),
            "TENFOLD_SECRETS_DIR": str(self.home.secrets),
            "TENFOLD_PORT": str(self.port),
            "TENFOLD_SERVICES": services,
            **self._settings,
        }

    def kill(self, name: str) -> None:
        """SIGKILL: no goodbye, no acknowledgement, nothing flushed."""
        if name in self.servers:
            self.servers[name].kill()
            return
        self.processes[name].kill()
        self.processes[name].wait()

    def terminate(self, name: str, within_s: float = 30) -> int:
        """SIGTERM, and the exit status."""
        self.processes[name].send_signal(signal.SIGTERM)
        return self.processes[name].wait(within_s)

    def ended(self) -> list[str]:
        """Processes that ended by themselves or were killed."""
        return [name for name, process in self.processes.items() if process.poll() is not None]

    def pids(self) -> dict[str, int]:
        """Every process of the installation that runs, by name."""
        ours = {name: process.pid for name, process in self.processes.items() if process.poll() is None}
        return ours | {f"{name}-redis": pid for name, server in self.servers.items() if (pid := server.pid)}

    # looking

    def broker(self) -> redis.Redis:
        """A client of the broker; the caller closes it."""
        return redis.Redis.from_url(self.servers["broker"].url, decode_responses=True)

    def readiness(self) -> dict[str, Any] | None:
        """What `/readyz` says, or None where nobody answers. `status` is the HTTP status."""
        try:
            response = httpx.get(f"{self.url}/readyz", timeout=10)
        except httpx.TransportError:
            return None
        return {**response.json(), "status": response.status_code}

    def is_ready(self) -> bool:
        if gone := self.ended():
            raise RuntimeError(f"{gone[0]} ended: {(self.logs / f'{gone[0]}.log').read_text()[-3000:]}")
        return (self.readiness() or {}).get("status") == 200

    def has_workers(self) -> bool:
        with self.broker() as broker:
            return all(broker.zcard(f"{prefix(method)}workers") for method in self.methods)

    def until(self, condition: Callable[[], bool], within_s: float) -> None:
        """Look every 50 ms until `condition` holds. Raises `AssertionError` where it does not in time."""
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within_s} s: {condition}")
            time.sleep(0.05)
