from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from structlog.testing import capture_logs

from gateway.custody.envelope import METHOD_SECRET, Envelope, SecretName, Wrapped
from gateway.custody.secretkeys import DAY_S, NewKey, SecretKeys
from gateway.custody.service import Custody
from gateway.custody.store import KeyState, KeyStore
from shared.problems import (
    AuditUnavailable,
    IdempotencyConflict,
    InvalidRequest,
    KekUnavailable,
    SecretKeyConflict,
    SecretKeyDisabled,
    SecretKeyNotFound,
    ServiceUnavailable,
)
from shared.secretbytes import SecretBytes
from tests.gateway.custody.support import (
    Clock,
    Person,
    anonymized,
    break_trail,
    events,
    job_for,
    key_for,
    recovered,
)
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio


def keys_in(redis: Redis, tenant: str = "acme") -> set[str]:
    return {name for name in redis.scan_iter(f"kc:{{{tenant}}}:*") if ":idem:" not in name and ":limit:" not in name}


class TestCreate:
    async def test_it_is_active_and_its_secret_opens(self, custody: Custody, custodian: Person) -> None:
        state = await key_for(custody, custodian, label="archive")
        assert (state.status, state.version, state.label) == ("active", 1, "archive")
        async with custody._opener.open(state, 1, "recover") as secret:
            assert len(secret) == 32

    async def test_no_two_are_alike(self, custody: Custody, custodian: Person) -> None:
        one, two = [await key_for(custody, custodian) for _ in range(2)]
        async with custody._opener.open(one, 1, "recover") as first, custody._opener.open(two, 1, "recover") as second:
            assert first != second
        assert one.key_id != two.key_id

    async def test_an_expiry_that_has_passed_is_refused(
        self, custody: Custody, custodian: Person, clock: Clock
    ) -> None:
        with pytest.raises(InvalidRequest):
            await key_for(custody, custodian, not_after=clock() - 1)

    async def test_it_is_audited_before_and_after(self, custody: Custody, custodian: Person, home: Path) -> None:
        state = await key_for(custody, custodian)
        found = [(event["decision"], event["key_id"], event.get("rev")) for event in events(home, "key.create")]
        assert found == [("intended", state.key_id, None), ("done", state.key_id, state.rev)]

    async def test_without_a_trail_nothing_is_made(
        self, custody: Custody, custodian: Person, home: Path, redis: Redis
    ) -> None:
        break_trail(home)
        with pytest.raises(AuditUnavailable):
            await key_for(custody, custodian)
        assert keys_in(redis) == set()

    async def test_without_the_kek_nothing_is_made(
        self, custody: Custody, custodian: Person, home: Path, redis: Redis
    ) -> None:
        take_away(home)
        with pytest.raises(KekUnavailable):
            await key_for(custody, custodian)
        assert await custody.keys.list("acme") == []

    async def test_what_is_not_on_disk_is_taken_back(self, custody: Custody, custodian: Person, redis: Redis) -> None:
        redis.config_set("appendonly", "no")
        try:
            with pytest.raises(ServiceUnavailable):
                await key_for(custody, custodian)
        finally:
            redis.config_set("appendonly", "yes")
        assert keys_in(redis) == set()

    async def test_what_does_not_read_back_is_taken_back(
        self, custody: Custody, custodian: Person, redis: Redis, home: Path, clock: Clock
    ) -> None:
        keys = keys_over(custody, clock, bad_memory(custody._envelope))
        with pytest.raises(ServiceUnavailable):
            await keys.create(custodian.caller, NewKey())
        assert keys_in(redis) == set()

    async def test_a_half_made_key_is_nobodys_and_swept_away(
        self, custody: Custody, custodian: Person, redis: Redis, home: Path, clock: Clock
    ) -> None:
        keys = keys_over(custody, clock, Dying)
        with pytest.raises(KeyboardInterrupt):
            await keys.create(custodian.caller, NewKey())
        [half_made] = await custody.keys._store.list("acme")
        assert half_made.status == "creating"
        assert await custody.keys.list("acme") == []
        with pytest.raises(SecretKeyNotFound):
            await custody.keys.get("acme", half_made.key_id)
        with pytest.raises(SecretKeyNotFound):
            await custody.keys.disable(custodian.caller, half_made.key_id)
        await custody.sweep()
        assert keys_in(redis) != set(), "its maker may still be at work"
        clock.advance(3601)
        await custody.sweep()
        assert keys_in(redis) == set()


class TestIdempotency:
    async def test_the_same_request_gives_the_same_key(self, custody: Custody, custodian: Person) -> None:
        first = await custody.keys.create(custodian.caller, NewKey("a"), idempotency_key="one")
        again = await custody.keys.create(custodian.caller, NewKey("a"), idempotency_key="one")
        assert again.key_id == first.key_id
        assert len(await custody.keys.list("acme")) == 1

    @pytest.mark.parametrize("other", [{"label": "b"}, {"purposes": frozenset({"recover"})}, {"default": True}])
    async def test_another_request_is_refused(self, custody: Custody, custodian: Person, other: Any) -> None:
        await custody.keys.create(custodian.caller, NewKey("a"), idempotency_key="one")
        with pytest.raises(IdempotencyConflict):
            await custody.keys.create(custodian.caller, NewKey(**{"label": "a", **other}), idempotency_key="one")

    async def test_it_is_each_principals_own(
        self, custody: Custody, custodian: Person, second_custodian: Person, stranger: Person
    ) -> None:
        made = {
            (await custody.keys.create(who.caller, NewKey(), idempotency_key="one")).key_id
            for who in (custodian, second_custodian, stranger)
        }
        assert len(made) == 3

    async def test_at_the_same_time_it_is_one_key(self, custody: Custody, custodian: Person) -> None:
        made = await asyncio.gather(
            *(custody.keys.create(custodian.caller, NewKey(), idempotency_key="one") for _ in range(8)),
            return_exceptions=True,
        )
        ids = {state.key_id for state in made if isinstance(state, KeyState)}
        failures = [failure for failure in made if not isinstance(failure, KeyState)]
        assert all(isinstance(failure, SecretKeyConflict) for failure in failures), failures
        [state] = await custody.keys.list("acme")
        assert ids == {state.key_id}

    async def test_after_a_failure_a_retry_makes_the_key_that_was_meant(
        self, custody: Custody, custodian: Person, redis: Redis
    ) -> None:
        redis.config_set("appendonly", "no")
        try:
            with pytest.raises(ServiceUnavailable):
                await custody.keys.create(custodian.caller, NewKey(), idempotency_key="one")
        finally:
            redis.config_set("appendonly", "yes")
        state = await custody.keys.create(custodian.caller, NewKey(), idempotency_key="one")
        assert state.status == "active"
        assert [found.key_id for found in await custody.keys.list("acme")] == [state.key_id]

    async def test_a_retry_goes_on_where_a_dying_gateway_stopped(
        self, custody: Custody, custodian: Person, home: Path, clock: Clock
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            await keys_over(custody, clock, Dying).create(custodian.caller, NewKey(), idempotency_key="one")
        [half_made] = await custody.keys._store.list("acme")
        state = await custody.keys.create(custodian.caller, NewKey(), idempotency_key="one")
        assert (state.key_id, state.status) == (half_made.key_id, "active")

    async def test_a_retry_whose_draft_is_taken_back_meanwhile_says_try_again(
        self, custody: Custody, custodian: Person, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            await keys_over(custody, clock, Dying).create(custodian.caller, NewKey(), idempotency_key="one")
        [draft] = await custody.keys._store.list("acme")
        real = custody.keys._store.change

        async def change(before: KeyState, after: KeyState) -> KeyState:
            await custody.keys._discard(draft)
            return await real(before, after)

        monkeypatch.setattr(custody.keys._store, "change", change)
        with pytest.raises(ServiceUnavailable):
            await custody.keys.create(custodian.caller, NewKey(), idempotency_key="one")
        monkeypatch.undo()
        assert (await custody.keys.create(custodian.caller, NewKey(), idempotency_key="one")).status == "active"

    async def test_it_never_brings_a_destroyed_key_back(
        self, custody: Custody, custodian: Person, second_custodian: Person, clock: Clock
    ) -> None:
        state = await custody.keys.create(custodian.caller, NewKey(), idempotency_key="one")
        await shredded(custody, state, custodian, second_custodian, clock)
        with pytest.raises(SecretKeyNotFound):
            await custody.keys.create(custodian.caller, NewKey(), idempotency_key="one")


class TestDefault:
    async def test_it_serves_requests_that_name_none(self, custody: Custody, custodian: Person, app: Person) -> None:
        with pytest.raises(SecretKeyNotFound, match="default"):
            await job_for(custody, app, "anonymize")
        await key_for(custody, custodian)
        default = await key_for(custody, custodian, default=True)
        _, record = await anonymized(custody, app)
        assert record["key_id"] == default.key_id

    async def test_the_newest_one_said_to_be_it_is_it(self, custody: Custody, custodian: Person) -> None:
        await key_for(custody, custodian, default=True)
        second = await key_for(custody, custodian, default=True)
        assert await custody.keys.default("acme") == second.key_id
        assert await custody.keys.default("other") is None


class TestRotate:
    async def test_new_pictures_get_the_new_version_and_old_ones_still_recover(
        self, custody: Custody, custodian: Person, app: Person, officer: Person
    ) -> None:
        state = await key_for(custody, custodian, default=True)
        old_octets, old_record = await anonymized(custody, app)
        assert (await custody.keys.rotate(custodian.caller, state.key_id)).version == 2
        new_octets, new_record = await anonymized(custody, app)
        assert (old_record["key_version"], new_record["key_version"]) == (1, 2)
        assert old_octets != new_octets
        assert await recovered(custody, officer, old_record) == old_octets
        assert await recovered(custody, officer, new_record) == new_octets

    async def test_only_an_active_key_is_rotated(self, custody: Custody, custodian: Person) -> None:
        state = await key_for(custody, custodian)
        await custody.keys.disable(custodian.caller, state.key_id)
        with pytest.raises(SecretKeyConflict):
            await custody.keys.rotate(custodian.caller, state.key_id)

    async def test_two_at_once_leave_a_version_that_opens(self, custody: Custody, custodian: Person) -> None:
        state = await key_for(custody, custodian)
        outcomes = await asyncio.gather(
            *(custody.keys.rotate(custodian.caller, state.key_id) for _ in range(6)), return_exceptions=True
        )
        won = [outcome for outcome in outcomes if isinstance(outcome, KeyState)]
        after = await custody.keys.get("acme", state.key_id)
        assert won
        assert after.version == 1 + len(won)
        for version in range(1, after.version + 1):
            async with custody._opener.open(after, version, "recover") as secret:
                assert len(secret) == 32

    async def test_a_new_version_that_does_not_read_back_is_not_used(
        self, custody: Custody, custodian: Person, home: Path, clock: Clock
    ) -> None:
        state = await key_for(custody, custodian)
        with pytest.raises(Exception, match="read back"):
            await keys_over(custody, clock, bad_memory(custody._envelope)).rotate(custodian.caller, state.key_id)
        assert (await custody.keys.get("acme", state.key_id)).version == 1


class TestDisableAndEnable:
    async def test_a_disabled_key_does_nothing_until_it_is_enabled(
        self, custody: Custody, custodian: Person, app: Person, officer: Person
    ) -> None:
        state = await key_for(custody, custodian, default=True)
        octets, record = await anonymized(custody, app)
        await custody.keys.disable(custodian.caller, state.key_id)
        with pytest.raises(SecretKeyDisabled):
            await anonymized(custody, app)
        with pytest.raises(SecretKeyDisabled):
            await recovered(custody, officer, record)
        await custody.keys.enable(custodian.caller, state.key_id)
        assert await recovered(custody, officer, record) == octets

    async def test_both_may_be_repeated(self, custody: Custody, custodian: Person) -> None:
        state = await key_for(custody, custodian)
        for step in (custody.keys.disable, custody.keys.disable, custody.keys.enable, custody.keys.enable):
            state = await step(custodian.caller, state.key_id)
        assert state.status == "active"

    async def test_expiry_stops_a_key_at_once_and_the_sweeper_says_so(
        self, custody: Custody, custodian: Person, app: Person, clock: Clock, home: Path
    ) -> None:
        state = await key_for(custody, custodian, default=True, not_after=clock() + 60)
        clock.advance(61)
        with pytest.raises(SecretKeyDisabled):
            await job_for(custody, app, "anonymize")
        await custody.sweep()
        assert (await custody.keys.get("acme", state.key_id)).status == "disabled"
        assert [event["decision"] for event in events(home, "key.expire")] == ["intended", "done"]

    async def test_an_expired_key_comes_back_with_a_new_expiry_only(
        self, custody: Custody, custodian: Person, app: Person, clock: Clock
    ) -> None:
        state = await key_for(custody, custodian, default=True, not_after=clock() + 60)
        clock.advance(61)
        with pytest.raises(InvalidRequest):
            await custody.keys.enable(custodian.caller, state.key_id)
        await custody.keys.enable(custodian.caller, state.key_id, not_after=clock() + 60)
        await anonymized(custody, app)

    async def test_without_a_trail_nothing_changes(self, custody: Custody, custodian: Person, home: Path) -> None:
        state = await key_for(custody, custodian)
        break_trail(home)
        for step in (custody.keys.disable, custody.keys.rotate, custody.keys.enable, custody.keys.cancel_destroy):
            with pytest.raises(AuditUnavailable):
                await step(custodian.caller, state.key_id)
        with pytest.raises(AuditUnavailable):
            await custody.keys.destroy(custodian.caller, state.key_id, reason="x")
        assert await custody.keys.get("acme", state.key_id) == state


class TestSweep:
    async def test_one_tenants_damage_does_not_keep_the_others_keys_from_expiring(
        self, custody: Custody, custodian: Person, stranger: Person, redis: Redis, clock: Clock
    ) -> None:
        damaged = await key_for(custody, custodian)
        expiring = await key_for(custody, stranger, not_after=clock() + 60)
        redis.hset(f"kc:{{acme}}:key:{damaged.key_id}", "label", "x")
        clock.advance(61)
        with capture_logs() as logs:
            await custody.sweep()
        assert [log["tenant"] for log in logs if log["event"] == "custody.alarm"] == ["acme"]
        assert (await custody.keys.get("other", expiring.key_id)).status == "disabled"


class TestPurposes:
    async def test_a_key_does_what_it_was_made_for_only(
        self, custody: Custody, custodian: Person, app: Person, officer: Person
    ) -> None:
        both = await key_for(custody, custodian)
        one_way = await key_for(custody, custodian, purposes=frozenset({"anonymize"}))
        archive = await key_for(custody, custodian, purposes=frozenset({"recover"}))
        with pytest.raises(Exception, match="not meant") as refused:
            await job_for(custody, app, "anonymize", key_id=archive.key_id)
        assert getattr(refused.value, "code", "") == "key_purpose"
        _, record = await anonymized(custody, app, key_id=one_way.key_id)
        with pytest.raises(Exception, match="not meant"):
            await recovered(custody, officer, record)
        _, record = await anonymized(custody, app, key_id=both.key_id)
        await recovered(custody, officer, record)


class TestDestroy:
    """T19 and T20: destroying takes two custodians and time, and is final."""

    async def test_one_custodian_alone_never_destroys(self, custody: Custody, custodian: Person, clock: Clock) -> None:
        state = await key_for(custody, custodian)
        pending = await custody.keys.destroy(custodian.caller, state.key_id, reason="x")
        assert (pending.status, pending.destroy_requested_by) == ("pending_destroy", custodian.principal.id)
        with pytest.raises(SecretKeyConflict, match="Another custodian"):
            await custody.keys.destroy(custodian.caller, state.key_id, reason="x")
        clock.advance(365 * DAY_S)
        await custody.sweep()
        with pytest.raises(SecretKeyConflict):
            await custody.keys.destroy(custodian.caller, state.key_id, reason="x")
        assert (await custody.keys.get("acme", state.key_id)).status == "pending_destroy"

    async def test_two_custodians_without_time_do_not_destroy(
        self, custody: Custody, custodian: Person, second_custodian: Person, clock: Clock
    ) -> None:
        state = await key_for(custody, custodian)
        await custody.keys.destroy(custodian.caller, state.key_id, reason="x")
        confirmed = await custody.keys.destroy(second_custodian.caller, state.key_id, reason="y")
        assert confirmed.destroy_approved_by == second_custodian.principal.id
        clock.advance(14 * DAY_S - 60)
        await custody.sweep()
        assert (await custody.keys.get("acme", state.key_id)).status == "pending_destroy"

    async def test_two_custodians_and_time_destroy(
        self, custody: Custody, custodian: Person, second_custodian: Person, clock: Clock, redis: Redis, home: Path
    ) -> None:
        state = await key_for(custody, custodian)
        await custody.keys.rotate(custodian.caller, state.key_id)
        await shredded(custody, state, custodian, second_custodian, clock)
        left = [name for name in keys_in(redis) if state.key_id in name]
        assert left == [f"kc:{{acme}}:tomb:{state.key_id}"]
        assert redis.smembers("kc:{acme}:kekuse:file:1") == set()
        assert redis.zscore("kc:{acme}:byexp", state.key_id) is None
        assert [event["decision"] for event in events(home, "key.shred")] == ["intended", "done"]

    async def test_a_late_confirmation_destroys_at_once(
        self, custody: Custody, custodian: Person, second_custodian: Person, clock: Clock
    ) -> None:
        state = await key_for(custody, custodian)
        await custody.keys.destroy(custodian.caller, state.key_id, reason="x", grace_days=7)
        clock.advance(7 * DAY_S + 1)
        assert (await custody.keys.destroy(second_custodian.caller, state.key_id, reason="y")).status == "destroyed"

    async def test_the_key_stops_when_its_end_is_asked_for(
        self, custody: Custody, custodian: Person, app: Person, officer: Person
    ) -> None:
        state = await key_for(custody, custodian, default=True)
        _, record = await anonymized(custody, app)
        await custody.keys.destroy(custodian.caller, state.key_id, reason="x")
        with pytest.raises(SecretKeyDisabled):
            await recovered(custody, officer, record)
        for step in (custody.keys.enable, custody.keys.disable, custody.keys.rotate):
            with pytest.raises(SecretKeyConflict):
                await step(custodian.caller, state.key_id)

    async def test_called_off_within_the_grace_period_everything_recovers_again(
        self, custody: Custody, custodian: Person, second_custodian: Person, app: Person, officer: Person, clock: Clock
    ) -> None:
        state = await key_for(custody, custodian, default=True)
        octets, record = await anonymized(custody, app)
        await custody.keys.destroy(custodian.caller, state.key_id, reason="x")
        await custody.keys.destroy(second_custodian.caller, state.key_id, reason="y")
        clock.advance(13 * DAY_S)
        assert (await custody.keys.cancel_destroy(second_custodian.caller, state.key_id)).status == "disabled"
        clock.advance(20 * DAY_S)
        await custody.sweep()
        await custody.keys.enable(custodian.caller, state.key_id)
        assert await recovered(custody, officer, record) == octets

    async def test_a_confirmation_does_not_outlive_a_cancellation(
        self, custody: Custody, custodian: Person, second_custodian: Person, clock: Clock
    ) -> None:
        state = await key_for(custody, custodian)
        await custody.keys.destroy(custodian.caller, state.key_id, reason="x")
        await custody.keys.destroy(second_custodian.caller, state.key_id, reason="y")
        await custody.keys.cancel_destroy(custodian.caller, state.key_id)
        again = await custody.keys.destroy(second_custodian.caller, state.key_id, reason="z")
        assert (again.destroy_requested_by, again.destroy_approved_by) == (second_custodian.principal.id, None)

    async def test_what_nobody_asked_for_cannot_be_called_off(self, custody: Custody, custodian: Person) -> None:
        state = await key_for(custody, custodian)
        with pytest.raises(SecretKeyConflict):
            await custody.keys.cancel_destroy(custodian.caller, state.key_id)

    async def test_a_destroyed_key_is_as_if_it_never_was(
        self, custody: Custody, custodian: Person, second_custodian: Person, app: Person, officer: Person, clock: Clock
    ) -> None:
        state = await key_for(custody, custodian, default=True)
        _, record = await anonymized(custody, app)
        await shredded(custody, state, custodian, second_custodian, clock)
        with pytest.raises(SecretKeyNotFound):
            await recovered(custody, officer, record)
        with pytest.raises(SecretKeyNotFound):
            await job_for(custody, app, "anonymize")
        for step in (custody.keys.enable, custody.keys.disable, custody.keys.rotate, custody.keys.cancel_destroy):
            with pytest.raises(SecretKeyNotFound):
                await step(custodian.caller, state.key_id)

    async def test_the_log_is_rewritten_without_it(
        self,
        custody: Custody,
        custodian: Person,
        second_custodian: Person,
        clock: Clock,
        redis: Redis,
        shared_server: RedisServer,
    ) -> None:
        state = await key_for(custody, custodian)
        ciphertext = redis.hget(f"kc:{{acme}}:sec:{state.key_id}:1", "ct")
        assert isinstance(ciphertext, str)
        assert is_in_log(shared_server, ciphertext)
        await shredded(custody, state, custodian, second_custodian, clock)
        for _ in range(200):
            if not is_in_log(shared_server, ciphertext):
                break
            await asyncio.sleep(0.02)
            await custody.sweep()
        assert not is_in_log(shared_server, ciphertext)


def is_in_log(server: RedisServer, text: str) -> bool:
    paths = [path for path in server.folder.rglob("*") if path.is_file()]
    return any(text.encode() in octets_of(path) for path in paths)


def octets_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # a rewrite has just replaced it
        return b""


def bad_memory(envelope: Envelope) -> type[KeyStore]:
    class BadMemory(KeyStore):
        """A store that gives back another secret than it was given: validly wrapped, under the right name."""

        async def wrapped(self, tenant: str, key_id: str, version: int) -> Wrapped:
            return await envelope.wrap(SecretName(METHOD_SECRET, tenant, key_id, version), SecretBytes(bytes(32)))

    return BadMemory


class Dying(KeyStore):
    """A store whose process dies right after a key was written."""

    async def create(self, state: KeyState, wrapped: Wrapped) -> KeyState | None:
        await super().create(state, wrapped)
        raise KeyboardInterrupt


def keys_over(custody: Custody, clock: Clock, store: type[KeyStore]) -> SecretKeys:
    return SecretKeys(store(custody._database, custody._roots.metadata), custody._envelope, custody.audit, now=clock)


async def shredded(
    custody: Custody, state: KeyState, custodian: Person, second_custodian: Person, clock: Clock
) -> None:
    await custody.keys.destroy(custodian.caller, state.key_id, reason="asked to")
    await custody.keys.destroy(second_custodian.caller, state.key_id, reason="checked")
    clock.advance(14 * DAY_S + 1)
    await custody.sweep()


def take_away(home: Path) -> None:
    (home / "kek.json").rename(home / "kek.away")
