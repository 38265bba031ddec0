"""T14: custody's Redis is killed while keys are made; an id that was given out opens, and none is half made.

What this proves: that nothing is answered before the server has taken it, and that a restart loses nothing of it. What
it cannot prove: that the disk had it. The page cache outlives a killed process; power loss is another test.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.custody.secretkeys import NewKey
from gateway.custody.service import Custody
from shared.problems import ServiceUnavailable
from tests.gateway.custody.support import Person, person, settings_for
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.stop()


async def given_out(custody: Custody, custodian: Person, made: dict[str, str], name: str) -> None:
    """Make one key as a caller does: again with the same idempotency key until it is answered."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            state = await custody.keys.create(custodian.caller, NewKey(name), idempotency_key=name)
        except ServiceUnavailable:
            await asyncio.sleep(0.02)
        else:
            made[name] = state.key_id
            return


async def killed_rounds(home: Path, server: RedisServer, rounds: int) -> None:
    rng = random.Random(14)  # noqa: S311
    custody = await Custody.connect(settings_for(home, server.url))
    custodian = await person(custody, "custodian")
    made: dict[str, str] = {}
    for number in range(rounds):
        makers = [asyncio.create_task(given_out(custody, custodian, made, f"{number}-{i}")) for i in range(6)]
        await asyncio.sleep(rng.uniform(0.0, 0.06))
        server.kill()
        await asyncio.to_thread(server.start)
        await asyncio.gather(*makers)
    assert len(made) == 6 * rounds, "every caller was answered in the end"
    for name, key_id in made.items():
        state = await custody.keys.get("acme", key_id)
        assert (state.status, state.label) == ("active", name)
        async with custody._opener.open(state, 1, "recover") as secret:
            assert len(secret) == 32
    assert {state.key_id for state in await custody.keys.list("acme")} == set(made.values()), "no key nobody knows of"
    assert (await asyncio.to_thread(custody.checkpoints.verify)).first_bad is None
    await custody.close()


async def test_three_kills_lose_no_key_that_was_given_out(home: Path, server: RedisServer) -> None:
    await killed_rounds(home, server, 3)


async def test_a_restart_fails_no_read_and_at_most_one_change(home: Path, server: RedisServer) -> None:
    """Every idle connection of the pool is broken then, and none of them may cost a caller."""
    custody = await Custody.connect(settings_for(home, server.url))
    custodian = await person(custody, "custodian")
    keys = await asyncio.gather(*(custody.keys.create(custodian.caller, NewKey(f"k{i}")) for i in range(8)))
    server.kill()
    await asyncio.to_thread(server.start)
    states = [await custody.keys.get("acme", key.key_id) for key in keys]
    assert [state.label for state in states] == [f"k{i}" for i in range(8)]

    await asyncio.gather(*(custody.keys.get("acme", key.key_id) for key in keys))  # several connections again
    server.kill()
    await asyncio.to_thread(server.start)
    refused = 0
    for i in range(8):
        try:
            await custody.keys.create(custodian.caller, NewKey(f"after-{i}"))
        except ServiceUnavailable:
            refused += 1
    assert refused <= 1
    await custody.close()


@pytest.mark.slow
async def test_fifty_kills_lose_no_key_that_was_given_out(home: Path, server: RedisServer) -> None:
    await killed_rounds(home, server, 50)
