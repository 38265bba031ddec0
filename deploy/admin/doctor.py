"""`tenfold-admin doctor`: what of this installation works, and what does not."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import stat
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import redis
from redis.exceptions import NoPermissionError, RedisError

from deploy.admin.settings import AdminSettings, load
from deploy.methods import METHODS, load_service
from shared.problems import Problem

_DISTRIBUTION = "tenfold-server"
_TIMEOUT_S = 3.0
_OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """One line of the report. `note` is worth knowing and does not make the command fail."""

    verdict: Literal["ok", "note", "FAIL"]
    subject: str
    said: str


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    command = commands.add_parser(
        "doctor",
        help="examine this installation",
        description="Look at Python, packages, both Redis servers, the key-encryption key, the device and every model, "
        "which is loaded once. Exit status 1 if something fails.",
    )
    command.add_argument("--no-models", action="store_true", help="do not load models")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a line a finding; 1 if one failed."""
    settings = load()
    examinations: list[Callable[[AdminSettings], Iterator[Finding]]] = [
        _python,
        _redis_servers,
        _kek,
        _gateway,
        _device,
    ]
    if not arguments.no_models:
        examinations.append(_models)
    failed = False
    for examine in examinations:
        for finding in examine(settings):
            failed = failed or finding.verdict == "FAIL"
            sys.stdout.write(f"{finding.verdict:5} {finding.subject:16} {finding.said}\n")
            sys.stdout.flush()
    return 1 if failed else 0


def _python(_: AdminSettings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("ok" if sys.version_info >= _OLDEST_PYTHON else "FAIL", "python", f"{version} at {sys.executable}")
    try:
        wanted = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("note", "packages", f"{_DISTRIBUTION} is not installed; it runs from this folder")
        return
    wrong = [problem for line in wanted if (problem := _unmet(line))]
    for problem in wrong:
        yield Finding("FAIL", "packages", problem)
    if not wrong:
        version = importlib.metadata.version(_DISTRIBUTION)
        yield Finding("ok", "packages", f"{_DISTRIBUTION} {version} and everything that it needs")


def _unmet(line: str) -> str | None:
    """What is wrong with one requirement; None if nothing is, or if it belongs to an extra."""
    from packaging.requirements import Requirement

    requirement = Requirement(line)
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return None
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is missing; {requirement} is needed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} is installed; {requirement} is needed"
    return None


def _redis_servers(settings: AdminSettings) -> Iterator[Finding]:
    runs: set[str] = set()
    for role, url in (("broker", settings.broker_url), ("custody", settings.custody_url)):
        if url is None:
            yield Finding(
                "FAIL", f"{role} Redis", f"TENFOLD_{role.upper()}_URL is not set, and nothing was started here"
            )
            continue
        try:
            with redis.Redis.from_url(
                str(url), socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, decode_responses=True
            ) as client:
                facts: dict[str, Any] = client.info()
                yield from _facts(role, facts, administers=role == "custody" and _may_administer(client))
        except (RedisError, OSError) as error:
            yield Finding("FAIL", f"{role} Redis", f"{str(url).rpartition('@')[2]} does not answer: {error}")
            continue
        if facts["run_id"] in runs:
            verdict: Literal["note", "FAIL"] = "FAIL" if settings.environment != "dev" else "note"
            yield Finding(verdict, "custody Redis", "is the broker's server; custody needs its own")
        runs.add(facts["run_id"])


def _facts(role: str, facts: dict[str, Any], *, administers: bool) -> Iterator[Finding]:
    version = facts.get("valkey_version") or facts["redis_version"]
    used, limit = facts["used_memory"] / 2**20, facts["maxmemory"] / 2**20
    subject = f"{role} Redis"
    yield Finding(
        "ok", subject, f"version {version}, {used:.0f} of {limit:.0f} MiB used" if limit else f"version {version}"
    )
    if facts["aof_enabled"] and facts.get("aof_last_write_status") == "ok":
        yield Finding("ok", subject, "writes its append-only file")
    else:
        yield Finding("FAIL", subject, "has no append-only file, or cannot write it: what was acknowledged may be lost")
    policy = facts["maxmemory_policy"]
    yield Finding("ok" if policy == "noeviction" else "FAIL", subject, f"maxmemory-policy {policy}")
    if administers:
        yield Finding("note", subject, "lets the gateway's user change its settings; give it an ACL user of its own")


def _may_administer(client: redis.Redis) -> bool:
    try:
        client.config_get("appendfsync")
    except NoPermissionError:
        return False
    return True


def _kek(settings: AdminSettings) -> Iterator[Finding]:
    path = settings.kek_path
    if path is None:
        yield Finding("FAIL", "KEK", "TENFOLD_KEK_PATH is not set")
        return
    try:
        facts = path.stat()
        versions = sorted(map(int, json.loads(path.read_bytes())))
    except (OSError, ValueError) as error:
        yield Finding("FAIL", "KEK", f"{path} cannot be read: {error}")
        return
    mode = stat.S_IMODE(facts.st_mode)
    if mode != 0o400 or facts.st_uid != os.geteuid():
        yield Finding("FAIL", "KEK", f"{path} has mode {mode:04o}; it must be 0400 and yours")
        return
    where = f"{path} holds version {', '.join(map(str, versions))}"
    if settings.environment == "production":
        yield Finding("FAIL", "KEK", f"{where}; production refuses a key-encryption key in a file")
    else:
        yield Finding("ok", "KEK", f"{where}; back it up, apart from Redis")


def _gateway(settings: AdminSettings) -> Iterator[Finding]:
    url = f"http://{settings.host}:{settings.port}/readyz"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            state = json.loads(answer.read())
    except (OSError, ValueError) as error:
        yield Finding("note", "gateway", f"{url} says: {error}")
        return
    unavailable = state.get("unavailable_methods") or []
    yield Finding("ok", "gateway", f"{url} is ready" + (f", but for {', '.join(unavailable)}" if unavailable else ""))


def _device(settings: AdminSettings) -> Iterator[Finding]:
    import torch

    from shared import torchdevice

    try:
        device = torchdevice.choose(settings.device)
    except (ValueError, RuntimeError) as error:
        yield Finding("FAIL", "device", str(error))
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{len(os.sched_getaffinity(0))} cores"
    yield Finding("ok", "device", f"{device} ({name}), torch {torch.__version__}")


def _models(settings: AdminSettings) -> Iterator[Finding]:
    from shared import torchdevice
    from shared.models import ModelStore
    from shared.runtime import shipped_weights

    store = ModelStore(shipped_weights(METHODS), settings.models_path)
    device = torchdevice.choose(settings.device)
    for method, place in METHODS.items():
        service = load_service(place)
        models = [model for model in store.list("local", method) if model.kind != "trained"]
        if service.default_model not in {f"{model.method}/{model.name}" for model in models}:
            yield Finding("FAIL", method, f"{service.default_model} is not here")
        module, _, name = service.pipeline.partition(":")
        pipeline = getattr(importlib.import_module(module), name)
        for model in models:
            since = time.monotonic()
            try:
                pipeline.load(model.folder, device)
            except (Problem, OSError, KeyError, ValueError, RuntimeError) as error:
                yield Finding("FAIL", method, f"{model.id} cannot be loaded: {error}")
            else:
                yield Finding("ok", method, f"{model.id} loaded in {time.monotonic() - since:.1f} s")
