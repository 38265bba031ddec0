"""A whole local installation: real processes, two real Redis servers, the diagnostic service behind the gateway."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "deploy.local", "--service", "tests.diagnostic.service:service"]


class Installation:
    """Tenfold on this machine, in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}",
            "TENFOLD_HOME": str(home),
            "TENFOLD_PORT": "0",
            "TENFOLD_DRAIN_S": "6",
            "TENFOLD_TRAINER_IDLE_S": "1",
            "TENFOLD_TORCH_THREADS": "1",
        }
        self.output = home.parent / "output"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                COMMAND,
                env=self.environment,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.until(lambda: "is ready at" in self.said())

    def said(self) -> str:
        return self.output.read_text()

    def until(self, condition: Callable[[], bool], within_s: float = 120) -> None:
        end = time.monotonic() + within_s
        while not condition():
            assert self.process
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGINT) -> int:
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(60)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def client(self, role: str) -> httpx.Client:
        url = self.said().partition("is ready at ")[2].split()[0]
        key = (self.home / "keys" / role).read_text().strip()
        return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def keys(self) -> list[str]:
        return [(self.home / "keys" / role).read_text() for role in ("app", "officer", "custodian")]

    def session(self) -> list[int]:
        """Process ids of everything that runs in the session of the installation."""
        assert self.process
        return [
            pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _session(pid) == self.process.pid
        ]

    def server(self, role: str) -> str:
        """How a Redis server appears in a list of processes."""
        url = (self.home / "secrets" / f"tenfold_{role}_url").read_text()
        return url.rpartition("@")[2].removesuffix("/0")

    def pid_of(self, words: str) -> int:
        (found,) = [pid for pid in self.session() if words in _command(pid)]
        return found


def _session(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[3]) if fields[0] != "Z" else None


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    made = Installation(tmp_path / "home")
    try:
        yield made
    finally:
        if made.process and made.process.poll() is None:
            made.kill()
        shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One that is started once, for tests that leave it as it is."""
    made = Installation(tmp_path_factory.mktemp("installation") / "home")
    try:
        made.start()
        yield made
    finally:
        made.kill()


class TestFirstStart:
    def test_it_says_where_it_is_and_where_the_keys_are_but_not_the_keys(self, shared: Installation) -> None:
        said = shared.said()
        assert "Tenfold is ready at http://127.0.0.1:" in said
        for role in ("app", "officer", "custodian"):
            path = shared.home / "keys" / role
            assert str(path) in said
            assert path.read_text().strip() not in said
            assert path.stat().st_mode & 0o777 == 0o600

    def test_each_key_has_its_role(self, shared: Installation) -> None:
        with shared.client("app") as app, shared.client("custodian") as custodian:
            assert app.get("/v1/methods").status_code == 200
            assert app.post("/v1/keys", json={}).json()["code"] == "scope_missing"
            (key,) = custodian.get("/v1/keys").json()["keys"]
            assert key["label"] == "default"

    def test_calls_are_answered_by_the_worker(self, shared: Installation) -> None:
        with shared.client("app") as app:
            answer = app.post("/v1/diagnostic/noop", json={"text": "hello"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["result"]["text"] == "hello"

    def test_all_processes_stay_in_the_session(self, shared: Installation) -> None:
        commands = [_command(pid) for pid in shared.session()]
        for words in ("deploy.local", "deploy.run gateway", "deploy.run worker", shared.server("custody")):
            assert [command for command in commands if words in command], words
        assert len(commands) == 5, commands

    def test_no_list_of_processes_shows_a_secret(self, shared: Installation) -> None:
        secrets = [path.read_text().strip() for path in (shared.home / "secrets").glob("*[dtr]") if path.is_file()]
        secrets = [secret for secret in secrets if len(secret) >= 32]
        assert len(secrets) >= 4
        for pid in shared.session():
            shown = Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
            assert not [secret for secret in secrets if secret in shown]

    def test_a_training_starts_a_trainer_that_ends_when_it_is_idle(self, shared: Installation) -> None:
        with shared.client("app") as app:
            job = app.post("/v1/diagnostic/train", json={"name": "tally", "steps": 3}).json()
            shared.until(lambda: app.get(job["url"]).json()["state"] == "succeeded")
        shared.until(lambda: not [pid for pid in shared.session() if "trainer" in _command(pid)])

    def test_a_second_one_on_the_same_folder_is_refused(self, shared: Installation) -> None:
        answer = subprocess.run(
            COMMAND, env=shared.environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
        )
        assert answer.returncode == 1
        assert f"Tenfold runs already on {shared.home} (process {shared.process.pid})" in answer.stderr  # type: ignore[union-attr]

    def test_a_taken_port_is_refused_before_anything_starts(self, shared: Installation, tmp_path: Path) -> None:
        with shared.client("app") as app:
            environment = shared.environment | {"TENFOLD_PORT": str(app.base_url.port), "TENFOLD_HOME": str(tmp_path)}
        answer = subprocess.run(
            COMMAND, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
        )
        assert answer.returncode == 1
        assert "cannot be used: Address already in use. Choose another: TENFOLD_PORT=8181." in answer.stderr
        assert not list(tmp_path.iterdir())

    def test_a_killed_worker_and_a_killed_store_come_back(self, shared: Installation) -> None:
        with shared.client("app") as app, shared.client("custodian") as custodian:
            before = custodian.get("/v1/keys").json()
            os.kill(shared.pid_of("deploy.run worker"), signal.SIGKILL)
            os.kill(shared.pid_of(shared.server("custody")), signal.SIGKILL)
            shared.until(lambda: shared.said().count("was ended by SIGKILL") == 2)
            shared.until(lambda: app.get("/readyz").status_code == 200)
            assert custodian.get("/v1/keys").json() == before
            answer = app.post("/v1/diagnostic/noop", json={"text": "again"}, headers={"Prefer": "wait=60"})
            assert answer.status_code == 200, answer.text


class TestEnd:
    def test_a_drain_finishes_the_running_job_and_a_restart_keeps_everything(self, installation: Installation) -> None:
        installation.start()
        keys = installation.keys()
        with installation.client("app") as app, installation.client("custodian") as custodian:
            default = custodian.get("/v1/keys").json()
            job = app.post("/v1/diagnostic/sleep", json={"seconds": 2}, headers={"Prefer": "respond-async"}).json()
            installation.until(lambda: app.get(job["url"]).json()["state"] == "running")
        assert installation.stop(signal.SIGTERM) == 0
        assert installation.said().endswith("Stopped.\n")
        assert "was killed" not in installation.said()
        assert installation.session() == []

        installation.start()
        assert installation.keys() == keys
        with installation.client("app") as app, installation.client("custodian") as custodian:
            assert custodian.get("/v1/keys").json() == default
            record = app.get(job["url"]).json()
            assert (record["state"], record["attempt"]) == ("succeeded", 1)

        installation.kill()
        end = time.monotonic() + 5
        while installation.session():
            assert time.monotonic() < end, [_command(pid) for pid in installation.session()]
            time.sleep(0.05)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
