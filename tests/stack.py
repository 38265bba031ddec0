"""Real processes of one service: its API, its worker, its trainer, on a real Redis server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import redis

from shared import ids
from shared.context import HEADER, CallContext
from tests.redis_server import RedisServer, free_port

SECRET = "a secret of the test installation, 32+"
ROOT = Path(__file__).parent.parent
TERMINAL = {"succeeded", "failed", "cancelled", "expired"}


class Stack:
    """The diagnostic service as an installation runs it. Processes are started by need and killed at the end."""

    def __init__(self, server: RedisServer, home: Path, **settings: str) -> None:
        self.redis = redis.Redis.from_url(server.url, decode_responses=True)
        self.home = home
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.log = home / "log"
        home.mkdir(parents=True, exist_ok=True)
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}",
            "OMP_NUM_THREADS": "1",
            "TENFOLD_BROKER_URL": server.url,
            "TENFOLD_HOME": str(home),
            "TENFOLD_INTERNAL_SECRET": SECRET,
            "TENFOLD_DEVICE": "cpu",
            "TENFOLD_TORCH_THREADS": "1",
            "TENFOLD_DRAIN_S": "5",
            **settings,
        }
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=360)

    # processes

    def start(self, kind: str, **settings: str) -> None:
        """Start `api`, `worker`, `worker2` or `trainer` and wait until it serves."""
        arguments = [kind.rstrip("2"), *([str(self.port)] if kind == "api" else [])]
        with self.log.open("ab") as log:
            self.processes[kind] = subprocess.Popen(
                [sys.executable, "-m", "tests.diagnostic.serve", *arguments],
                env=self.env | settings,
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        before = self.worker_names()
        self.until(lambda: self._serves(kind, before), within_s=120)

    def _serves(self, kind: str, before: set[str]) -> bool:
        if self.processes[kind].poll() is not None:
            raise RuntimeError(f"{kind} ended at start:\n{self.log.read_text()[-4000:]}")
        if kind != "api":
            return bool(self.worker_names() - before)
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def worker_names(self) -> set[str]:
        names: Any = self.redis.zrange("tf:diagnostic:workers", 0, -1)
        return set(names)

    def kill(self, kind: str) -> None:
        """SIGKILL."""
        self.processes[kind].kill()
        self.processes[kind].wait()

    def terminate(self, kind: str, within_s: float = 30) -> int:
        """SIGTERM, and its exit status."""
        self.processes[kind].send_signal(signal.SIGTERM)
        return self.processes[kind].wait(within_s)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.http.close()
        self.redis.close()

    # calls

    def signed(
        self,
        operation: str,
        tenant: str = "acme",
        principal: str = "prn_1",
        scopes: tuple[str, ...] = ("use",),
        lasts_s: float = 600,
        accept: str = "image/png",
    ) -> dict[str, str]:
        """Headers of a call as the gateway signs it, for a picture as the answer."""
        context = CallContext(
            tenant=tenant,
            principal=principal,
            scopes=scopes,
            method="diagnostic",
            operation=operation,
            job_id=ids.ordered_id("job"),
            request_id=ids.ordered_id("req"),
            expires_at=time.time() + lasts_s,
        )
        return {HEADER: context.signed(SECRET), "Accept": accept}

    def call(
        self,
        operation: str,
        json: Mapping[str, Any] | None = None,
        *,
        tenant: str = "acme",
        principal: str = "prn_1",
        scopes: tuple[str, ...] = ("use",),
        lasts_s: float = 600,
        headers: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> httpx.Response:
        """A call as the gateway signs it."""
        signed = self.signed(operation, tenant, principal, scopes, lasts_s, "*/*") | dict(headers or {})
        if json is not None:
            kwargs["json"] = json
        return self.http.post(f"/v1/diagnostic/{operation}", headers=signed, **kwargs)

    def submit(self, operation: str, json: Mapping[str, Any] | None = None, **kwargs: Any) -> str:
        """A call that does not wait: the job's name."""
        response = self.call(operation, json, headers={"Prefer": "respond-async"}, **kwargs)
        assert response.status_code == 202, response.text
        job_id: str = response.json()["id"]
        return job_id

    def record(self, job_id: str) -> dict[str, str]:
        fields: Any = self.redis.hgetall(f"tf:diagnostic:job:{job_id}")
        return dict(fields)

    def cancel(self, job_id: str) -> None:
        """As the gateway asks for it."""
        import asyncio

        import redis.asyncio

        from shared.jobs import JobRecord, Jobs

        async def ask() -> None:
            async with redis.asyncio.Redis.from_url(self.env["TENFOLD_BROKER_URL"], decode_responses=True) as client:
                await Jobs(client).request_cancel(JobRecord(job_id, "diagnostic", {}))

        asyncio.run(ask())

    def wait_for(self, job_id: str, state: str, within_s: float = 30) -> dict[str, str]:
        """The record once it is in `state`; fails at once when it ended in another."""

        def there() -> bool:
            now = self.record(job_id).get("state")
            if now in TERMINAL and now != state:
                raise AssertionError(f"{job_id} is {now}, not {state}: {self.record(job_id)}")
            return now == state

        self.until(there, within_s)
        return self.record(job_id)

    def until(self, condition: Any, within_s: float = 30) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within_s} s; log:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.02)

    def files(self) -> list[Path]:
        """Every file that lies in the store."""
        return [path for path in (self.home / "files").rglob("*") if path.is_file()]
