"""Fixtures that several rooms share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import redis
from hypothesis import HealthCheck, settings

from tests.redis_server import RedisServer
from tests.s3_server import S3Server
from tests.stack import Stack

# What a property says holds on a busy machine, too.
settings.register_profile("tenfold", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tenfold")


def broker_server(folder: Path) -> RedisServer:
    """A server as the broker's: written to disk every second, and started on what a crash left."""
    return RedisServer(folder, appendfsync="everysec", options=["aof-load-truncated yes"])


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that is started once; tests keep apart by method name or by emptying it."""
    with broker_server(tmp_path_factory.mktemp("broker")) as server:
        yield server


@pytest.fixture
def fresh_redis(broker: RedisServer) -> Iterator[redis.Redis]:
    """A client of the shared server, emptied."""
    with redis.Redis.from_url(broker.url, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The diagnostic service's API and worker, shared: tests that use it leave both alive."""
    with broker_server(tmp_path_factory.mktemp("redis")) as server:
        stack = Stack(server, tmp_path_factory.mktemp("home"))
        try:
            stack.start("api")
            stack.start("worker")
            yield stack
        finally:
            stack.close()


@pytest.fixture(scope="session")
def _s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server that is started once, and this process able to reach it; tests keep apart by prefix."""
    for name, value in _s3.environment.items():
        monkeypatch.setenv(name, value)
    return _s3


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may kill."""
    with broker_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def own_stack(own_server: RedisServer, tmp_path: Path) -> Iterator[Stack]:
    """An installation whose processes the test may kill: it starts them."""
    stack = Stack(own_server, tmp_path / "home")
    try:
        yield stack
    finally:
        stack.close()


def png(width: int = 32, height: int = 24, seed: int = 0) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    return png
