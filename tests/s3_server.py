"""A real S3-compatible server for tests: the one inside the package `moto`, as a child process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import httpx

from tests.redis_server import free_port

BUCKET = "tenfold-files"
_UP_WITHIN_S = 60.0


class S3Server:
    """Listens on a loopback port and keeps one bucket in memory. It can be frozen, and it can be killed."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._log = folder / "s3.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach the server, as it would any S3."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
        }

    def url(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}"

    def start(self) -> None:
        """Start it, with an empty bucket."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + _UP_WITHIN_S
        while not self._made_bucket():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the S3 server did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def _made_bucket(self) -> bool:
        try:
            answer = httpx.put(f"http://127.0.0.1:{self.port}/{BUCKET}", timeout=10)
        except httpx.TransportError:
            return False
        return answer.status_code == 200

    def freeze(self) -> None:
        """Take connections and never answer, until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self._process:
            self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: connections are refused, and what it held is gone."""
        if self._process:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
