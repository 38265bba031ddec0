"""The whole product on this machine, as `make up` starts it, in a home of its own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import skimage.data
from PIL import Image

from tests.redis_server import free_port

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Installation:
    """A running installation: HTTP with an API key, its home folder, its processes."""

    http: httpx.Client
    home: Path
    process: subprocess.Popen[bytes]
    officers: Iterator[str]
    """API keys of officers that have recovered nothing yet: ten recoveries a minute are the limit of each."""
    officer: str = ""

    def headers(self, role: str) -> dict[str, str]:
        key = self.officer if role == "officer" and self.officer else (self.home / "keys" / role).read_text().strip()
        return {"Authorization": f"Bearer {key}"}

    def post(
        self, path: str, role: str = "app", headers: dict[str, str] | None = None, **kwargs: Any
    ) -> httpx.Response:
        return self.http.post(path, headers=self.headers(role) | (headers or {}), **kwargs)

    def get(self, path: str, role: str = "app", **kwargs: Any) -> httpx.Response:
        return self.http.get(path, headers=self.headers(role), **kwargs)

    def anonymize(self, photograph: bytes, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return self.post("/v1/ifadit/anonymize", headers=headers, files={"image": ("p.png", photograph)}, data=fields)

    def recover(self, picture: bytes, role: str = "officer", **kwargs: Any) -> httpx.Response:
        data = {"purpose": "a test", **kwargs.pop("data", {})}
        files = {"image": ("a.png", picture), **kwargs.pop("files", {})}
        return self.post("/v1/ifadit/recover", role, data=data, files=files, **kwargs)

    def download(self, file: dict[str, Any], role: str = "app") -> bytes:
        response = self.get(file["url"], role)
        assert response.status_code == 200, response.text
        return response.content

    def files(self) -> set[str]:
        return {path.name for path in (self.home / "files").rglob("file_*") if path.is_file()}

    def left_behind(self, before: set[str], *results: dict[str, Any]) -> set[str]:
        """Files that came since and are none of the results. A job's inputs go just after its end is written down."""
        kept = {result["file"] + suffix for result in results for suffix in ("", ".json")}
        deadline = time.monotonic() + 3
        while (left := self.files() - before - kept) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left


@contextlib.contextmanager
def installation(folder: Path, *services: str, **settings: str) -> Iterator[Installation]:
    """Everything, in a home under `folder`. `services` are places; without any, the shipped methods are served."""
    home, port = folder / "tenfold", free_port()
    log = (folder / "up.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.local", *(word for place in services for word in ("--service", place))],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}",
            "TENFOLD_HOME": str(home),
            "TENFOLD_PORT": str(port),
            "TENFOLD_TORCH_THREADS": "1",
            **settings,
        },
        stdout=log,
        stderr=log,
    )
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
    here = Installation(http, home, process, iter(()))
    try:
        _until_served(here, folder / "up.log")
        yield here
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()
            http.close()
            log.close()


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installation(tmp_path_factory.mktemp("home")) as here:
        here.officers = iter(new_officers(here, 15))
        yield here


def _until_served(here: Installation, log: Path) -> None:
    """Wait for the gateway and for a worker behind it."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and here.process.poll() is None:
        try:
            if here.get("/v1/methods/ifadit").json()["live"]["workers"]:
                return
        except (httpx.TransportError, KeyError, FileNotFoundError, ValueError):
            pass
        time.sleep(0.1)
    raise RuntimeError(f"not up:\n{log.read_text()[-4000:]}")


def new_officers(here: Installation, count: int) -> list[str]:
    """API keys of new officers, made as an operator makes them."""
    command = [sys.executable, "-m", "deploy.admin.main", "keys", "create", "--tenant", "local", "--role", "officer"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TENFOLD_HOME": str(here.home)}
    return [
        subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
        for _ in range(count)
    ]


@pytest.fixture(scope="module", autouse=True)
def officer_of_the_module(installed: Installation) -> None:
    """The limit of one officer is soon reached by the tests of all modules."""
    installed.officer = next(installed.officers)


@pytest.fixture
def new_officer(installed: Installation) -> Iterator[None]:
    """Another officer for this test alone."""
    before = installed.officer
    installed.officer = next(installed.officers)
    yield
    installed.officer = before


@pytest.fixture(scope="session")
def astronaut() -> bytes:
    """A photograph with one face."""
    return png(skimage.data.astronaut())


def png(pixels: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", **options)
    return stream.getvalue()


@pytest.fixture(scope="session")
def anonymized(installed: Installation, astronaut: bytes) -> dict[str, Any]:
    """The finished job of one anonymization."""
    response = installed.anonymize(astronaut)
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    return job
