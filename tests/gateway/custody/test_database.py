"""What custody demands of its Redis, and that the rights it asks for are enough and no more than said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from gateway.custody import database
from gateway.custody.database import ACL_RULES, Database, NotDurable
from gateway.custody.secretkeys import NewKey
from gateway.custody.service import Custody
from shared.problems import ServiceUnavailable
from tests.gateway.custody.support import (
    Clock,
    Person,
    anonymized,
    key_for,
    person,
    recovered,
    settings_for,
)
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio


@contextmanager
def server(folder: Path, **how: Any) -> Iterator[RedisServer]:
    running = RedisServer(folder, **how).start()
    try:
        yield running
    finally:
        running.stop()


def as_gateway(running: RedisServer) -> str:
    return running.url.replace("//", "//gateway:password@")


async def checked(url: str, environment: str = "dev") -> Database:
    found = Database(url)
    try:
        await found.check(environment)
    finally:
        await found.close()
    return found


class TestTheServer:
    async def test_without_an_append_only_file_is_refused(self, tmp_path: Path) -> None:
        with server(tmp_path, appendonly=False) as running, pytest.raises(ValueError, match="appendonly yes"):
            await checked(running.url)

    async def test_that_may_drop_keys_is_refused(self, tmp_path: Path) -> None:
        with (
            server(tmp_path, options=["maxmemory-policy allkeys-lru"]) as running,
            pytest.raises(ValueError, match="noeviction"),
        ):
            await checked(running.url)

    async def test_with_waitaof_may_flush_every_second(self, tmp_path: Path) -> None:
        with server(tmp_path, appendfsync="everysec") as running:
            assert (await checked(running.url)).durability == "waitaof"

    async def test_without_waitaof_must_flush_always(self, tmp_path: Path) -> None:
        old = ['rename-command WAITAOF ""']
        with server(tmp_path / "always", options=old) as running:
            assert (await checked(running.url)).durability == "aof_always"
        with (
            server(tmp_path / "everysec", appendfsync="everysec", options=old) as running,
            pytest.raises(ValueError, match="appendfsync always"),
        ):
            await checked(running.url)

    async def test_without_waitaof_keys_are_made_all_the_same(self, tmp_path: Path, home: Path) -> None:
        with server(tmp_path / "redis", options=['rename-command WAITAOF ""']) as running:
            custody = await Custody.connect(settings_for(home, running.url))
            assert (await key_for(custody, await person(custody, "custodian"))).status == "active"
            await custody.close()

    async def test_that_is_not_there_is_unavailable(self) -> None:
        with pytest.raises(ServiceUnavailable):
            await checked("redis://127.0.0.1:1/0")

    async def test_whose_replica_does_not_confirm_makes_no_key(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "_DURABLE_WITHIN_MS", 50)
        with server(tmp_path / "redis") as running:
            custody = await Custody.connect(settings_for(home, running.url))
            custodian = await person(custody, "custodian")
            custody._database._replicas = 1
            with pytest.raises(ServiceUnavailable) as refused:
                await custody.keys.create(custodian.caller, NewKey())
            assert isinstance(refused.value.__cause__, NotDurable)
            custody._database._replicas = 0
            assert await custody.keys.list("acme") == []
            await custody.close()


class TestProduction:
    async def test_the_file_kek_is_refused(self, home: Path, shared_server: RedisServer) -> None:
        with pytest.raises(ValueError, match="environment=production"):
            await Custody.connect(settings_for(home, shared_server.url, environment="production"))

    async def test_the_default_user_is_refused(self, shared_server: RedisServer) -> None:
        with pytest.raises(ValueError, match="user of its own"):
            await checked(shared_server.url, "production")

    async def test_a_user_that_may_configure_the_server_is_refused(self, tmp_path: Path) -> None:
        options = ["user gateway on >password ~* +@all"]
        with server(tmp_path, options=options) as running, pytest.raises(ValueError, match="CONFIG"):
            await checked(as_gateway(running), "production")

    async def test_the_documented_user_is_accepted(self, tmp_path: Path) -> None:
        with server(tmp_path, options=[f"user gateway on >password {ACL_RULES}", "user default off"]) as running:
            await checked(as_gateway(running), "production")


class TestRights:
    async def test_they_are_enough_for_all_that_custody_does(self, tmp_path: Path, home: Path, clock: Clock) -> None:
        with server(
            tmp_path / "redis", options=[f"user gateway on >password {ACL_RULES}", "user default off"]
        ) as running:
            url = as_gateway(running)
            custody = await Custody.connect(settings_for(home, url), now=clock)
            app, officer, custodian, second = [
                await person(custody, role) for role in ("app", "officer", "custodian", "custodian")
            ]
            state = await custody.keys.create(custodian.caller, NewKey(default=True), idempotency_key="one")
            octets, record = await anonymized(custody, app)
            await custody.keys.rotate(custodian.caller, state.key_id)
            assert await recovered(custody, officer, record) == octets
            await self._fail(custody, officer)
            for who in (custodian, second):
                await custody.keys.destroy(who.caller, state.key_id, reason="x")
            await custody.principals.rotate(app.principal.id)
            await custody.principals.list()
            await custody.limiter.unlock(officer.principal)
            clock.advance(15 * 86400)
            await custody.sweep()
            assert await custody.keys.list("acme") == []
            assert set((await custody.ready()).values()) == {"ok", "waitaof"}
            await custody.close()

    def test_they_are_no_more_than_said(self, tmp_path: Path) -> None:
        refused = [
            *("KEYS *", "FLUSHALL", "FLUSHDB", "CONFIG GET *", "MONITOR", "SWAPDB 0 1", "SAVE"),
            *(
                "RENAME kc:a kc:b",
                "EVAL return 0",
                "MIGRATE 127.0.0.1 1 kc:a 0 10",
                "REPLICAOF NO ONE",
                "ACL LIST",
                "GET other",
                "SCAN 0",
            ),
            *("DUMP kc:a", "RESTORE kc:a 0 x", "SCRIPT FLUSH", "SHUTDOWN", "COPY kc:a kc:b", "CLIENT LIST"),
        ]
        options = [f"user gateway on >password {ACL_RULES}"]
        with server(tmp_path, options=options) as running, Redis.from_url(as_gateway(running)) as limited:
            execute: Any = limited.execute_command
            for command in refused:
                with pytest.raises(NoPermissionError):
                    execute(*command.split())

    @staticmethod
    async def _fail(custody: Custody, officer: Person) -> None:
        for _ in range(5):
            await custody.limiter.failed(officer.principal, "")
