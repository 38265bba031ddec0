from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis

from gateway.custody.kek import InsecureFileKek
from gateway.custody.service import Custody
from tests.gateway.custody.support import Clock, Http, Person, door_app, person, public_app, settings_for
from tests.redis_server import RedisServer


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("custody-redis")).start()
    yield server
    server.stop()


@pytest.fixture
def redis(shared_server: RedisServer) -> Iterator[Redis]:
    """What somebody with write access to custody Redis has. Empty at the start of each test."""
    with Redis.from_url(shared_server.url, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture
def home(tmp_path: Path) -> Path:
    InsecureFileKek.create(tmp_path / "kek.json", environment="dev")
    return tmp_path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def custody(home: Path, redis: Redis, shared_server: RedisServer, clock: Clock) -> AsyncIterator[Custody]:
    custody = await Custody.connect(settings_for(home, shared_server.url), now=clock)
    yield custody
    await custody.close()


@pytest.fixture
async def app(custody: Custody) -> Person:
    return await person(custody, "app")


@pytest.fixture
async def officer(custody: Custody) -> Person:
    return await person(custody, "officer")


@pytest.fixture
async def custodian(custody: Custody) -> Person:
    return await person(custody, "custodian")


@pytest.fixture
async def second_custodian(custody: Custody) -> Person:
    return await person(custody, "custodian")


@pytest.fixture
async def stranger(custody: Custody) -> Person:
    """A custodian of another tenant."""
    return await person(custody, "custodian", tenant="other")


@pytest.fixture
async def http(custody: Custody) -> AsyncIterator[Http]:
    async with Http(public_app(custody)) as http:
        yield http


@pytest.fixture
async def door(custody: Custody) -> AsyncIterator[Http]:
    async with Http(door_app(custody)) as http:
        yield http
