"""The store alone: a change that was decided on an older state is refused and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from redis import Redis

from gateway.custody.envelope import METHOD_SECRET, SecretName, Wrapped
from gateway.custody.service import Custody
from gateway.custody.store import KeyState, KeyStore
from shared.problems import SecretKeyConflict, SecretKeyIntegrity, SecretKeyNotFound
from shared.secretbytes import SecretBytes
from tests.gateway.custody.support import Person, key_for

pytestmark = pytest.mark.anyio
UNKNOWN = "key_" + "0" * 26


@pytest.fixture
def store(custody: Custody) -> KeyStore:
    return custody._store


@pytest.fixture
async def old(custody: Custody, custodian: Person) -> KeyState:
    """A key as it was before somebody disabled it."""
    state = await key_for(custody, custodian)
    await custody.keys.disable(custodian.caller, state.key_id)
    return state


@pytest.fixture
async def wrapped(custody: Custody, old: KeyState) -> Wrapped:
    """A secret for the key's second version."""
    name = SecretName(METHOD_SECRET, old.tenant, old.key_id, 2)
    return await custody._envelope.wrap(name, SecretBytes(bytes(32)))


@pytest.fixture
def everything(redis: Redis) -> Callable[[], dict[str, object]]:
    return lambda: {str(name): redis.dump(name) for name in redis.scan_iter("kc:{acme}:*")}


class TestAnOlderState:
    async def test_is_not_changed_from(
        self, store: KeyStore, old: KeyState, everything: Callable[[], dict[str, object]]
    ) -> None:
        before = everything()
        with pytest.raises(SecretKeyConflict):
            await store.change(old, replace(old, label="new"))
        assert everything() == before
        assert (await store.load("acme", old.key_id)).status == "disabled"

    async def test_gets_no_next_version(
        self, store: KeyStore, old: KeyState, wrapped: Wrapped, everything: Callable[[], dict[str, object]]
    ) -> None:
        before = everything()
        with pytest.raises(SecretKeyConflict):
            await store.put_next(old, wrapped)
        assert everything() == before

    async def test_is_not_destroyed(
        self, store: KeyStore, old: KeyState, everything: Callable[[], dict[str, object]]
    ) -> None:
        before = everything()
        with pytest.raises(SecretKeyConflict):
            await store.destroy(old, 0.0)
        with pytest.raises(SecretKeyConflict):
            await store.destroy(old, 0.0, tombstone=False)
        assert everything() == before

    async def test_of_a_key_that_is_gone_is_not_changed_from_either(
        self, store: KeyStore, old: KeyState, wrapped: Wrapped, everything: Callable[[], dict[str, object]]
    ) -> None:
        newest = await store.load("acme", old.key_id)
        await store.destroy(newest, 0.0)
        before = everything()
        for change in (store.change(newest, newest), store.put_next(newest, wrapped), store.destroy(newest, 0.0)):
            with pytest.raises(SecretKeyConflict):
                await change
        assert everything() == before


class TestAnIdThatWasUsed:
    async def test_is_never_created_again(
        self, store: KeyStore, old: KeyState, wrapped: Wrapped, everything: Callable[[], dict[str, object]]
    ) -> None:
        before = everything()
        assert await store.create(old, wrapped) is None
        assert everything() == before
        await store.destroy(await store.load("acme", old.key_id), 0.0)
        after = everything()
        assert await store.create(old, wrapped) is None
        assert everything() == after

    async def test_without_a_tombstone_may_be_taken_again(
        self, store: KeyStore, old: KeyState, wrapped: Wrapped
    ) -> None:
        await store.destroy(await store.load("acme", old.key_id), 0.0, tombstone=False)
        assert await store.create(old, wrapped) is not None


class TestDefault:
    async def test_a_change_that_lost_a_race_is_refused(
        self, store: KeyStore, redis: Redis, old: KeyState, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await store.set_default("acme", old.key_id)
        fields = await store._default_fields("acme")
        await store.set_default("acme", UNKNOWN)

        async def stale(tenant: str) -> dict[str, str]:
            return fields

        monkeypatch.setattr(store, "_default_fields", stale)
        with pytest.raises(SecretKeyConflict):
            await store.set_default("acme", old.key_id)
        monkeypatch.undo()
        assert await store.default("acme") == UNKNOWN


async def test_a_tenants_name_never_reaches_another_tenants_keys(store: KeyStore, old: KeyState) -> None:
    for tenant in ("acme}:x{", "", "ACME", "a" * 65, "acme:key"):
        with pytest.raises(ValueError, match="tenant"):
            await store.load(tenant, old.key_id)
    with pytest.raises(SecretKeyNotFound):
        await store.load("other", old.key_id)
    with pytest.raises(SecretKeyIntegrity):
        await store.wrapped("other", old.key_id, 1)
