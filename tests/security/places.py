"""Every place of a running installation where a secret might have ended up, as octets with a name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from tests.gateway.custody.leaks import files_under
from tests.redis_server import RedisServer

Place = tuple[str, bytes]

_READ: Mapping[bytes, Callable[[Any, bytes], Any]] = {
    b"string": lambda client, key: client.get(key),
    b"hash": lambda client, key: client.hgetall(key),
    b"list": lambda client, key: client.lrange(key, 0, -1),
    b"set": lambda client, key: client.smembers(key),
    b"zset": lambda client, key: client.zrange(key, 0, -1),
    b"stream": lambda client, key: client.xrange(key),
}


@contextmanager
def copy_of(folder: Path, into: Path) -> Iterator[RedisServer]:
    """A server on a copy of another's append-only files, taken while that one runs. This one may be administered."""
    shutil.copytree(folder / "appendonlydir", into / "appendonlydir")
    with RedisServer(into, options=["aof-load-truncated yes", "rdbcompression no"]) as server:
        yield server


def dump(server: RedisServer, name: str) -> Iterator[Place]:
    """The octets of its RDB and append-only files, and every key with its value."""
    with redis.Redis.from_url(server.url) as client:
        client.save()
        for key in client.scan_iter(count=1000):
            yield f"{name}: {key!r}", key + b"\0" + _flat(_READ[client.type(key)](client, key))
    for path in sorted(server.folder.rglob("*")):
        if path.suffix in (".rdb", ".aof"):
            yield f"{name}: {path.name}", path.read_bytes()


def _flat(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    return b"\0".join(_flat(item) for item in value or ())


def files(home: Path) -> Iterator[Place]:
    """Logs, stored files, models and the audit trail; not the folders that are there to hold secrets."""
    for folder in ("log", "files", "models", "audit", "run"):
        for name, octets in files_under(home / folder):
            yield f"{folder}/{name}", octets


def processes(home: Path) -> Iterator[Place]:
    """What the list of processes shows of those that belong to this home: command lines and environments."""
    for pid in pids(home):
        for name in ("cmdline", "environ"):
            yield f"{name} of a process", Path(f"/proc/{pid}/{name}").read_bytes()


def pids(home: Path, word: str = "") -> list[int]:
    """Processes of ours that were told of this home and whose command line holds `word`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
        except OSError:
            continue  # another user's, or gone
        if str(home).encode() in environment + command and word.encode() in command:
            found.append(int(folder.name))
    return found
