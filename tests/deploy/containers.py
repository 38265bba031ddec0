"""docker-compose.yml without Docker: every service as a local process, as its container would run it.

A service gets a root of its own (a folder in which its secrets, volumes and /tmp lie where the file puts them), an
address of its own on loopback (so that ports stay), its environment and nothing else, and the user that the file names
where this process may choose one. Host names are those of services that share a network. What a local process cannot
show: the image, the read-only root file system (the user may write nowhere but into its volumes and /tmp, which comes
to the same where the tests run as root), limits that the kernel enforces, and that networks keep apart.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.redis_server import server_binary

ROOT = Path(__file__).parents[2]
_PLACES = ("/run/secrets", "/state", "/data", "/tmp", "/project")  # noqa: S108 - inside containers
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


@dataclass
class Programs:
    """How the commands of the images are run here: from this checkout, or from environments made for the purpose.

    bins  image: the folder of its virtual environment's programs
    """

    bins: Mapping[str, Path] = field(default_factory=dict)

    def command(self, image: str, words: list[str], address: str) -> list[str]:
        first, *rest = words
        if first == "valkey-server":
            return [str(server_binary()), *rest]
        if first == "valkey-cli":
            own = [found] if (found := shutil.which(first)) else [sys.executable, "-m", "tests.deploy.valkey_cli"]
            return [*own, "-h", address, *rest]
        if image in self.bins:
            return [str(self.bins[image] / first), *rest]
        return [sys.executable, *(["-m", "deploy.admin.main"] if first == "tenfold-admin" else []), *rest]

    def environment(self, image: str) -> dict[str, str]:
        inside = {} if image in self.bins else {"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"}
        return {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **inside}


class Service:
    """One service of the file, in its own root."""

    def __init__(self, name: str, text: Mapping[str, Any], stack: Containers, number: int) -> None:
        self.name, self.stack, self._text = name, stack, text
        self.address = f"{stack.network}.{number}"
        self.root = stack.folder / "roots" / name
        self.process: subprocess.Popen[bytes] | None = None
        self.log = stack.folder / f"{name}.log"

    @cached_property
    def text(self) -> dict[str, Any]:
        """What the file says, its variables replaced."""
        filled: dict[str, Any] = json.loads(
            _VARIABLE.sub(
                lambda found: self.stack.variables.get(found[1]) or found[2] or "", json.dumps(dict(self._text))
            )
        )
        return filled

    @property
    def networks(self) -> set[str]:
        return set(self.text.get("networks", ()))

    @property
    def command(self) -> list[str]:
        return [*self.text.get("entrypoint", ()), *self.text["command"]]

    @property
    def needs(self) -> list[str]:
        return list(self.text.get("depends_on", {}))

    def environment(self, **more: str) -> dict[str, str]:
        here = {name: self.local(value) for name, value in (self.text.get("environment", {}) | more).items()}
        return self.stack.programs.environment(self.text["image"]) | here

    def local(self, text: str) -> str:
        """A word of the command, the environment or a secret, with paths and addresses as they are here."""
        if text.startswith(_PLACES):
            return f"{self.root}{text}"
        text = text.replace("0.0.0.0", self.address).replace("127.0.0.1", self.address)  # noqa: S104
        return re.sub(r"(?<=[/@])[a-z0-9-]+(?=:\d+(?:[/,]|$))", lambda found: self._address_of(found[0]), text)

    def _address_of(self, host: str) -> str:
        other = self.stack.services[host]
        assert other.networks & self.networks, f"{self.name} shares no network with {host}"
        return other.address

    def lay(self) -> None:
        """Make its root: what the file mounts, and nothing more."""
        temporary = self.root / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        temporary.chmod(0o1777)
        for volume in self.text.get("volumes", ()):
            target = self.root / volume["target"].lstrip("/")
            source = self.stack.folder / volume["source"]
            assert source.is_dir(), f"{self.name} mounts {source}, which setup did not make"
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_symlink():
                target.symlink_to(source)
        for secret in self.text.get("secrets", ()):
            names = secret if isinstance(secret, dict) else {"source": secret, "target": secret}
            self._mount(self.stack.secret(names["source"]), self.root / "run/secrets" / names["target"])

    def _mount(self, source: Path, target: Path) -> None:
        facts = source.stat()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        secret = source.read_text()
        target.write_text(self.local(secret) if secret.startswith("redis://") else secret)
        target.chmod(facts.st_mode & 0o777)
        os.chown(target, facts.st_uid, facts.st_gid)

    def start(self, **environment: str) -> None:
        self.lay()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(self.command),
                env=self.environment(**environment),
                cwd=self.stack.folder / "app",
                stdout=log,
                stderr=log,
            )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """What `docker compose exec` does."""
        return subprocess.run(
            self._command(list(words)),
            env=self.environment(),
            cwd=self.stack.folder / "app",
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def _command(self, words: list[str]) -> list[str]:
        local = [self.local(word) for word in words]
        return [*self._as_user(), *self.stack.programs.command(self.text["image"], local, self.address)]

    def _as_user(self) -> list[str]:
        """Words that make the command run as the container's user, who may read what it likes (Python may lie in a
        folder of root's own here) and write where that user may."""
        if os.geteuid() != 0 or self.text["user"].startswith("0:"):
            return []
        user, group = self.text["user"].split(":")
        capabilities = [f"--{kind}-caps=-all,+dac_read_search" for kind in ("inh", "ambient")]
        return ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *capabilities]

    def is_healthy(self) -> bool:
        """What the file's health check says."""
        kind, *words = self.text["healthcheck"]["test"]
        assert kind == "CMD"
        return self.run(*words).returncode == 0

    def until_healthy(self, within_s: float = 600) -> None:
        end = time.monotonic() + within_s
        while not self.is_healthy():
            assert self.process
            assert self.process.poll() is None, f"{self.name} ended:\n{self.said()}"
            assert time.monotonic() < end, f"{self.name} is not healthy:\n{self.said()}"
            time.sleep(0.3)

    def said(self) -> str:
        return self.log.read_text()[-4000:]

    def stop(self, within_s: float = 600) -> int:
        """SIGTERM, and its exit status. Compose would wait for `stop_grace_period`; here others may hold the cores."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def most_memory_bytes(self) -> int:
        """The largest resident size so far."""
        return 1024 * self._fact("VmHWM")

    def threads(self) -> int:
        return self._fact("Threads")

    def _fact(self, name: str) -> int:
        assert self.process
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]


class Containers:
    """All services of one file. `folder` stands for the folder that the file lies in."""

    def __init__(self, folder: Path, text: str, programs: Programs | None = None) -> None:
        self.folder, self.programs = folder, programs or Programs()
        self.network = f"127.{100 + secrets.randbelow(100)}.{secrets.randbelow(256)}"
        self._file = yaml.safe_load(text)
        self.variables: dict[str, str] = {}
        self.services = {
            name: Service(name, service, self, number)
            for number, (name, service) in enumerate(self._file["services"].items(), 1)
        }
        folder.chmod(0o755)
        (folder / "app").mkdir()

    def secret(self, name: str) -> Path:
        return self.folder / str(self._file["secrets"][name]["file"])

    def set_up(self) -> None:
        """`docker compose run --rm setup`, and read `.env` as compose does."""
        setup = self.services["setup"]
        setup.lay()
        done = setup.run(*setup.command)
        assert done.returncode == 0, done.stderr
        lines = (self.folder / ".env").read_text().splitlines()
        self.variables = dict(line.split("=", 1) for line in lines if line)
        for service in self.services.values():
            service.__dict__.pop("text", None)

    def active(self) -> list[Service]:
        """The services that `docker compose up` starts: those without a profile, and those of the chosen ones."""
        chosen = set(self.variables.get("COMPOSE_PROFILES", "").split(","))
        return [
            one for one in self.services.values() if not one.text.get("profiles") or chosen & {*one.text["profiles"]}
        ]

    def up(self, services: Iterable[Service] | None = None) -> None:
        """`docker compose up --wait`: each service once those that it depends on are healthy."""
        waiting = list(self.active() if services is None else services)
        healthy = {name for name, one in self.services.items() if one.process}
        while waiting:
            able = [one for one in waiting if healthy.issuperset(one.needs)]
            assert able, f"these wait for services that are not started: {[one.name for one in waiting]}"
            for one in able:
                one.start()
            for one in able:
                one.until_healthy()
                healthy.add(one.name)
            waiting = [one for one in waiting if one not in able]

    def down(self) -> dict[str, int]:
        """`docker compose stop`: whatever depends on another first. Exit statuses by service."""
        running = {name: one for name, one in self.services.items() if one.process and one.process.poll() is None}
        statuses: dict[str, int] = {}
        while running:
            needed = {name for one in running.values() for name in one.needs}
            for name in [name for name in running if name not in needed]:
                statuses[name] = running.pop(name).stop()
        return statuses

    def kill(self) -> None:
        for one in self.services.values():
            if one.process and one.process.poll() is None:
                one.process.kill()
                one.process.wait()
