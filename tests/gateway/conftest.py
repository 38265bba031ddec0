from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest
import structlog

from tests.redis_server import RedisServer


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the gateway does, all in one loop."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _plain_logs() -> Iterator[None]:
    """Logs as lines of JSON: what structlog does by default spends a second on a traceback."""
    merge, exceptions = structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info
    structlog.configure(processors=[merge, exceptions, structlog.processors.JSONRenderer()])
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for broker and custody. It syncs every write, or custody would wait a second for each."""
    with RedisServer(tmp_path_factory.mktemp("house-redis")) as server:
        yield server


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one state folder that belongs to `server`: custody opens its records only with this key-encryption key."""
    return tmp_path_factory.mktemp("house")


@pytest.fixture(scope="session")
def png() -> bytes:
    """A picture of 24 by 16 pixels."""
    stream = io.BytesIO()
    PIL.Image.new("RGB", (24, 16), (200, 30, 30)).save(stream, "PNG")
    return stream.getvalue()
