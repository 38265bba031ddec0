"""The folder that holds all state of a local installation, and what is generated there once.

keys/       API keys of the tenant `local`, one a role            secrets/   what processes read at start
kek.json    the key-encryption key: without it no picture can be recovered, so back it up, apart from redis/
redis/      the append-only files of broker and custody           files/ models/ audit/ samples/ log/ run/
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

_LONGEST_SOCKET_PATH_BYTES = 100  # the kernel's limit is 107
_LOCK_WAIT_S = 1.5  # children of an instance that was killed are gone by then


class HomeInUse(Exception):
    """Another instance runs on this folder."""


class KekLost(Exception):
    """There are wrapped secrets, but not the key that they were wrapped with."""


class Home:
    """Paths of one installation. All are absolute; whatever holds a secret is readable by its owner alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.keys = self.folder / "keys"
        self.secrets = self.folder / "secrets"
        self.kek = self.folder / "kek.json"
        self.redis = self.folder / "redis"
        self.samples = self.folder / "samples"
        self.log = self.folder / "log"
        self.run = self.folder / "run"

    def prepare(self) -> None:
        """Make the folders, the secrets and the key-encryption key that are not there yet.

        Raises `KekLost` rather than put a new key-encryption key beside secrets that it cannot open.
        """
        for folder in (self.folder, self.keys, self.secrets, self.redis, self.samples, self.log, self.run):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        for name in ("tenfold_internal_secret", "tenfold_api_key_pepper"):
            write_once(self.secrets / name, secrets.token_urlsafe(32))
        if not self.kek.exists() and (self.redis / "custody" / "appendonlydir").exists():
            raise KekLost(
                f"{self.kek} is missing, and {self.redis / 'custody'} holds secrets that only it can open. Put it back "
                "from a backup; or, if nothing has to be recovered any more, remove that folder."
            )
        kek = base64.b64encode(secrets.token_bytes(32)).decode()
        write_once(self.kek, json.dumps({"1": kek}) + "\n")
        self.note("tenfold_home", str(self.folder))
        self.note("tenfold_kek_path", str(self.kek))

    def note(self, name: str, value: str) -> None:
        """Keep a setting where `TENFOLD_SECRETS_DIR` finds it, for `tenfold-admin` in another terminal."""
        write_private(self.secrets / name, value, 0o600)

    def password(self, name: str) -> str:
        """The password of a Redis server that is started here; the same at every start."""
        path = self.secrets / f"{name}_password"
        write_once(path, secrets.token_hex(32))
        return path.read_text().strip()

    def door_socket(self) -> Path | None:
        """Where the internal door listens; None if the path is longer than a socket's may be."""
        path = self.run / "door.sock"
        return path if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH_BYTES else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the folder for one instance; yields the lock's descriptor. Raises `HomeInUse`.

        Children inherit the descriptor: the folder stays locked until the last of them is gone, so that no two Redis
        servers ever write the same files.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / "lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _wait_for_lock(descriptor, path)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            yield descriptor
        finally:
            os.close(descriptor)


def write_once(path: Path, text: str) -> None:
    """Write a file of mode 0400 unless it exists."""
    if not path.exists():
        write_private(path, text, 0o400)


def write_private(path: Path, text: str, mode: int) -> None:
    """Write a file that only its owner can read, at no moment half written or open to others."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _wait_for_lock(descriptor: int, path: Path) -> None:
    until = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = path.read_text().strip()
            if time.monotonic() > until:
                raise HomeInUse(
                    f"Tenfold runs already on {path.parent} (process {owner}). "
                    "Stop it, or name another folder: TENFOLD_HOME=FOLDER."
                ) from None
            time.sleep(0.1)
        else:
            return
