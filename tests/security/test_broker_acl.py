"""The broker's users, as the containers have them, on a real server: what one method can do to another's jobs."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from deploy.docker.acl import broker_acl, broker_users
from shared import ids
from shared.jobs import JobRecord, Jobs, NewJob, WorkerJobs
from shared.problems import ServiceUnavailable
from tests.redis_server import RedisServer

METHODS = ("ifadit", "other", "dlsr")
PASSWORDS = {user: secrets.token_hex(16) for user in (*broker_users(METHODS, METHODS), "gateway")}
KEYWORDS = {"subscribe", "psubscribe", "ssubscribe"}  # of channels, not of keys: looked at apart

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    folder: Path = tmp_path_factory.mktemp("acl")
    (folder / "users.acl").write_text(
        broker_acl(broker_users(METHODS, METHODS), PASSWORDS).replace(
            "user default reset\n",
            "user default on nopass ~* &* +@all\n",  # for the test's own questions
        )
    )
    with RedisServer(folder, options=[f"aclfile {folder / 'users.acl'}"]) as server:
        yield server


@pytest.fixture
def root(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.flushall()
        yield client


def client_of(server: RedisServer, user: str) -> dict[str, Any]:
    return {"port": server.port, "username": user, "password": PASSWORDS[user], "decode_responses": True}


@pytest.fixture
async def ifadit(server: RedisServer) -> AsyncIterator[Jobs]:
    async with redis.asyncio.Redis(**client_of(server, "ifadit")) as client:
        yield Jobs(client)


@pytest.fixture
async def gateway(server: RedisServer, root: redis.Redis) -> AsyncIterator[Jobs]:
    async with redis.asyncio.Redis(**client_of(server, "gateway")) as client:
        yield Jobs(client)


def new_job(method: str) -> NewJob:
    fields = {
        "operation": "o",
        "principal": "p",
        "request": "{}",
        "attempts": "2",
        "own_files": "[]",
        "ttl_ms": "60000",
    }
    return NewJob(ids.ordered_id("job"), method, method, "acme", fields, 60, 100, needs_worker=False)


def everything(root: redis.Redis, method: str) -> dict[str, Any]:
    """What the server holds of a method."""
    keys = sorted({*root.scan_iter(match=f"tf:{method}:*"), method})
    return {key: _value(root, key) for key in keys}


def _value(root: redis.Redis, key: str) -> Any:
    match root.type(key):
        case "hash":
            return root.hgetall(key)
        case "zset":
            return root.zrange(key, 0, -1, withscores=True)
        case "list":
            return root.lrange(key, 0, -1)
        case "stream":
            return root.xrange(key)
        case _:
            return None


class TestAMethodsUser:
    async def test_makes_and_reads_its_own_jobs(self, ifadit: Jobs, gateway: Jobs, root: redis.Redis) -> None:
        job = new_job("ifadit")
        assert await ifadit.create(job) == ("created", job.id)
        assert (await ifadit.get("ifadit", job.id)).tenant == "acme"
        assert (await gateway.get("ifadit", job.id)).state == "queued"
        assert root.llen("ifadit") == 1

    async def test_reads_no_job_of_another(self, ifadit: Jobs, gateway: Jobs) -> None:
        job = new_job("other")
        await gateway.create(job)
        for asked in (ifadit.get("other", job.id), ifadit.list(["other"], "acme"), ifadit.live("other")):
            with pytest.raises(ServiceUnavailable):
                await asked
        with pytest.raises(ServiceUnavailable):
            await anext(ifadit.events("other", job.id))

    async def test_enqueues_nothing_for_another(self, ifadit: Jobs, gateway: Jobs, root: redis.Redis) -> None:
        job = new_job("other")
        await gateway.create(job)
        before = everything(root, "other")
        for forged in (new_job("other"), replace(new_job("ifadit"), queue="other"), replace(job, queue="ifadit")):
            with pytest.raises(ServiceUnavailable):
                await ifadit.create(forged)
        with pytest.raises(ServiceUnavailable):
            await ifadit.request_cancel(JobRecord(job.id, "other", {}))
        with pytest.raises(ServiceUnavailable):
            await ifadit.reap("other", 0)
        assert everything(root, "other") == before

    async def test_asks_no_guard_behind_the_gateways_back(self, ifadit: Jobs, root: redis.Redis) -> None:
        for forged in (
            replace(new_job("dlsr"), queue="dlsr.guard"),
            replace(new_job("ifadit"), queue="dlsr.guard"),
            replace(new_job("ifadit"), queue="dlsr"),
        ):
            with pytest.raises(ServiceUnavailable):
                await ifadit.create(forged)
        assert not root.llen("dlsr.guard")

    async def test_parks_and_wakes_no_job_of_another(self, ifadit: Jobs, gateway: Jobs, server: RedisServer) -> None:
        job = new_job("other")
        await gateway.create(job)
        with redis.Redis(**client_of(server, "other")) as own:
            record = WorkerJobs(own).start("other", job.id, "its worker")
        assert record is not None
        with pytest.raises(ServiceUnavailable):
            await ifadit.park(record, record.fence, "{}")
        assert await gateway.park(record, record.fence, "{}")
        with pytest.raises(ServiceUnavailable):
            await ifadit.unpark("other", job.id, "{}")
        assert await gateway.parked("other") == [job.id]

    async def test_neither_runs_nor_finishes_a_job_of_another(
        self, server: RedisServer, gateway: Jobs, root: redis.Redis
    ) -> None:
        job = new_job("other")
        await gateway.create(job)
        with redis.Redis(**client_of(server, "other")) as own:
            record = WorkerJobs(own).start("other", job.id, "its worker")
        assert record is not None
        before = everything(root, "other")
        with redis.Redis(**client_of(server, "ifadit")) as client:
            worker = WorkerJobs(client)
            for change in (
                lambda: worker.start("other", job.id, "w"),
                lambda: worker.succeed(record, {"forged": True}),
                lambda: worker.renew("other", "w", [record]),
                lambda: client.brpop(["other"], timeout=1),
                lambda: client.brpop(["ifadit", "other"], timeout=1),
                lambda: client.publish("tf:other:cancel", job.id),
            ):
                with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|ACL"):
                    change()
            with client.pubsub() as heard:
                heard.subscribe("tf:other:done")
                with pytest.raises(redis.exceptions.NoPermissionError):
                    heard.get_message(timeout=5)
        assert everything(root, "other") == before

    async def test_no_command_of_the_server_reaches_a_key_of_another(self, root: redis.Redis) -> None:
        """Of all commands that take keys, whatever this server version brings."""
        foreign = "tf:other:job:job_1"
        reached, asked = [], 0
        for name, facts in root.command().items():
            first, arity = int(facts["first_key_pos"]), abs(int(facts["arity"]))
            if name in KEYWORDS or not (first or "movablekeys" in facts["flags"]):
                continue
            for arguments in _calls(first, arity, foreign):
                try:
                    taken = root.command_getkeys(name, *arguments)
                except redis.exceptions.ResponseError:
                    continue  # not how this command is written
                if foreign not in taken:
                    continue
                answer = root.acl_dryrun("ifadit", name, *arguments)
                asked += 1
                if answer in ("OK", b"OK"):
                    reached.append((name, arguments))
        assert asked > 100
        assert reached == []

    async def test_asked_the_same_way_its_own_keys_are_reached(self, root: redis.Redis) -> None:
        for words in (
            ("hgetall", "tf:ifadit:job:job_1"),
            ("lpush", "ifadit", "x"),
            ("xrange", "tf:ifadit:e", "-", "+"),
        ):
            assert root.acl_dryrun("ifadit", *words) in ("OK", b"OK")


def _calls(first: int, arity: int, key: str) -> Iterator[list[str]]:
    """Arguments that put `key` where a command takes its keys: at a fixed place, or behind their number."""
    if first:
        arguments = ["1"] * max(arity - 1, first)
        arguments[first - 1] = key
        yield arguments
    else:
        yield ["1", key, "1", "1"]
        yield ["x", "1", key, "1"]
        yield ["0", "1", key, "LEFT"]
