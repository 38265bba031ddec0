"""T3, T4, T5: what somebody with write access to custody Redis can change, and that it only ever breaks."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any, cast

import pytest
from redis import Redis
from structlog.testing import capture_logs

from gateway.custody.limits import Bucket, RecoverLimits
from gateway.custody.service import Custody
from gateway.custody.store import KeyState
from shared.problems import (
    LeaseRefused,
    ScopeMissing,
    SecretKeyConflict,
    SecretKeyDisabled,
    SecretKeyIntegrity,
    SecretKeyNotFound,
)
from tests.gateway.custody.support import (
    Person,
    anonymized,
    events,
    job_for,
    key_for,
    recovered,
    settings_for,
)
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio
PLENTY = Bucket(10**6, 1.0)


@pytest.fixture
async def key(custody: Custody, custodian: Person) -> KeyState:
    return await key_for(custody, custodian, default=True)


@pytest.fixture
async def record(custody: Custody, app: Person, key: KeyState) -> dict[str, Any]:
    return (await anonymized(custody, app))[1]


def metadata(key: KeyState, tenant: str = "acme") -> str:
    return f"kc:{{{tenant}}}:key:{key.key_id}"


def secret(key: KeyState, version: int = 1, tenant: str = "acme") -> str:
    return f"kc:{{{tenant}}}:sec:{key.key_id}:{version}"


def text(redis: Redis, name: str, field: str) -> str:
    return cast(str, redis.hget(name, field))


class TestFlippedBits:
    """Each field of the wrapped secret, and of the metadata, with one random bit of its text flipped."""

    @pytest.mark.parametrize("field", ["ct", "nonce", "alg", "kek_id", "kek_version", "v", "mac"])
    async def test_of_the_secret(
        self, custody: Custody, officer: Person, app: Person, redis: Redis, key: KeyState, record: Any, field: str
    ) -> None:
        custody.limiter._limits = RecoverLimits(actor={"x": PLENTY}, tenant={"x": PLENTY}, key={"x": PLENTY})
        await self._flipped_everywhere(custody, officer, redis, secret(key), field, record, times=8)
        job = await job_for(custody, app, "anonymize")
        redis.hset(secret(key), field, "7")
        custody._opener.forget_all()
        with pytest.raises(SecretKeyIntegrity):
            await job.redeem()

    @pytest.mark.parametrize(
        "field", ["status", "key_version", "purposes", "created_by", "not_after", "destroy_at", "rev", "label", "mac"]
    )
    async def test_of_the_metadata(
        self, custody: Custody, officer: Person, redis: Redis, key: KeyState, record: Any, field: str
    ) -> None:
        custody.limiter._limits = RecoverLimits(actor={"x": PLENTY}, tenant={"x": PLENTY}, key={"x": PLENTY})
        await self._flipped_everywhere(custody, officer, redis, metadata(key), field, record, times=4)

    @pytest.mark.slow
    @pytest.mark.parametrize("field", ["ct", "nonce", "alg", "kek_version"])
    async def test_of_the_secret_two_hundred_times(
        self, custody: Custody, officer: Person, redis: Redis, key: KeyState, record: Any, field: str
    ) -> None:
        custody.limiter._limits = RecoverLimits(actor={"x": PLENTY}, tenant={"x": PLENTY}, key={"x": PLENTY})
        await self._flipped_everywhere(custody, officer, redis, secret(key), field, record, times=200)

    @staticmethod
    async def _flipped_everywhere(
        custody: Custody, officer: Person, redis: Redis, name: str, field: str, record: Any, *, times: int
    ) -> None:
        rng = random.Random(field)  # noqa: S311
        right = text(redis, name, field)
        for _ in range(times):
            job = await job_for(custody, officer, "recover")
            octets = bytearray(right.encode() or b"\0")
            octets[rng.randrange(len(octets))] ^= 1 << rng.randrange(7)
            redis.hset(name, field, octets.decode())
            with pytest.raises(SecretKeyIntegrity):
                await job.redeem(record=record, purpose="x")
            redis.hset(name, field, right)
        await recovered(custody, officer, record)


class TestAlarm:
    async def test_damage_raises_an_alarm_is_audited_and_says_nothing(
        self, custody: Custody, officer: Person, redis: Redis, key: KeyState, record: Any, home: Path
    ) -> None:
        redis.hset(secret(key), "ct", "00" * 48)
        with capture_logs() as logs, pytest.raises(SecretKeyIntegrity) as refused:
            await recovered(custody, officer, record)
        assert [log["log_level"] for log in logs if log["event"] == "custody.alarm"] == ["critical"]
        assert events(home, "lease.redeem")[-1]["reason"] == "key_integrity"
        assert refused.value.detail == SecretKeyIntegrity.title, "an error never says why a secret did not open"


class TestExchanged:
    """T4: a whole, validly made hash in another's place."""

    async def test_another_keys_secret(
        self, custody: Custody, custodian: Person, officer: Person, redis: Redis, key: KeyState, record: Any
    ) -> None:
        other = await key_for(custody, custodian)
        redis.copy(secret(other), secret(key), replace=True)
        with pytest.raises(SecretKeyIntegrity):
            await recovered(custody, officer, record)

    async def test_another_tenants_secret_and_metadata(
        self, custody: Custody, stranger: Person, officer: Person, redis: Redis, key: KeyState, record: Any
    ) -> None:
        other = await key_for(custody, stranger)
        redis.copy(secret(other, tenant="other"), secret(key), replace=True)
        with pytest.raises(SecretKeyIntegrity):
            await recovered(custody, officer, record)
        redis.copy(metadata(other, "other"), metadata(key), replace=True)
        with pytest.raises(SecretKeyIntegrity):
            await recovered(custody, officer, record)

    async def test_another_tenants_key_under_ones_own_name(
        self, custody: Custody, stranger: Person, app: Person, redis: Redis
    ) -> None:
        other = await key_for(custody, stranger)
        redis.copy(secret(other, tenant="other"), secret(other))
        redis.copy(metadata(other, "other"), metadata(other))
        with pytest.raises(SecretKeyIntegrity):
            await job_for(custody, app, "anonymize", key_id=other.key_id)

    async def test_an_old_version_in_the_newest_ones_place(
        self, custody: Custody, custodian: Person, app: Person, redis: Redis, key: KeyState, record: Any
    ) -> None:
        await custody.keys.rotate(custodian.caller, key.key_id)
        redis.copy(secret(key, 1), secret(key, 2), replace=True)
        job = await job_for(custody, app, "anonymize")
        with pytest.raises(SecretKeyIntegrity):
            await job.redeem()

    async def test_another_keys_metadata(
        self, custody: Custody, custodian: Person, officer: Person, redis: Redis, key: KeyState, record: Any
    ) -> None:
        other = await key_for(custody, custodian)
        redis.copy(metadata(other), metadata(key), replace=True)
        with pytest.raises(SecretKeyIntegrity):
            await recovered(custody, officer, record)

    async def test_a_secret_that_was_taken_away(
        self, custody: Custody, officer: Person, redis: Redis, key: KeyState, record: Any
    ) -> None:
        redis.delete(secret(key))
        with pytest.raises(SecretKeyIntegrity):
            await recovered(custody, officer, record)

    async def test_another_default_key(
        self, custody: Custody, custodian: Person, app: Person, redis: Redis, key: KeyState
    ) -> None:
        other = await key_for(custody, custodian)
        redis.hset("kc:{acme}:default", "key_id", other.key_id)
        with pytest.raises(SecretKeyIntegrity):
            await job_for(custody, app, "anonymize")

    async def test_another_tenants_default_key(
        self, custody: Custody, stranger: Person, app: Person, redis: Redis, key: KeyState
    ) -> None:
        await key_for(custody, stranger, default=True)
        redis.copy("kc:{other}:default", "kc:{acme}:default", replace=True)
        with pytest.raises(SecretKeyIntegrity):
            await job_for(custody, app, "anonymize")


class TestEnabledBehindOurBack:
    """T5."""

    async def test_a_disabled_key_stays_disabled(
        self, custody: Custody, custodian: Person, officer: Person, redis: Redis, key: KeyState, record: Any
    ) -> None:
        await custody.keys.disable(custodian.caller, key.key_id)
        with pytest.raises(SecretKeyDisabled):
            await recovered(custody, officer, record)
        redis.hset(metadata(key), "status", "active")
        with pytest.raises(SecretKeyIntegrity):
            await recovered(custody, officer, record)
        with pytest.raises(SecretKeyIntegrity):
            await custody.keys.enable(custodian.caller, key.key_id)

    async def test_a_longer_life_is_refused(
        self, custody: Custody, custodian: Person, app: Person, redis: Redis, clock: Any
    ) -> None:
        state = await key_for(custody, custodian, default=True, not_after=clock() + 10)
        redis.hset(metadata(state), "not_after", "")
        with pytest.raises(SecretKeyIntegrity):
            await job_for(custody, app, "anonymize")

    async def test_a_field_that_was_added_or_taken_away_is_refused(
        self, custody: Custody, custodian: Person, redis: Redis, key: KeyState
    ) -> None:
        redis.hset(metadata(key), "extra", "1")
        with pytest.raises(SecretKeyIntegrity):
            await custody.keys.get("acme", key.key_id)
        redis.hdel(metadata(key), "extra", "label")
        with pytest.raises(SecretKeyIntegrity):
            await custody.keys.list("acme")


class TestLeases:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("kind", "recover"),
            ("expires_at", "9999999999.0"),
            ("max_faces", "9999"),
            ("principal", "prn_00000000000000000000000000"),
            ("key_id", "key_00000000000000000000000000"),
            ("key_version", "7"),
        ],
    )
    async def test_a_changed_lease_is_refused(
        self, custody: Custody, app: Person, redis: Redis, key: KeyState, field: str, value: str
    ) -> None:
        job = await job_for(custody, app, "anonymize")
        redis.hset(f"kc:{{acme}}:lease:{job.lease}", field, value)
        with pytest.raises(SecretKeyIntegrity):
            await job.redeem()

    async def test_another_lease_in_its_place_is_refused(
        self, custody: Custody, app: Person, officer: Person, redis: Redis, key: KeyState, record: Any
    ) -> None:
        job, other = await job_for(custody, app, "anonymize"), await job_for(custody, officer, "recover")
        redis.copy(f"kc:{{acme}}:lease:{other.lease}", f"kc:{{acme}}:lease:{job.lease}", replace=True)
        with pytest.raises(SecretKeyIntegrity):
            await job.redeem(record=record, purpose="x")

    async def test_a_pointer_to_another_tenant_finds_nothing(
        self, custody: Custody, app: Person, redis: Redis, key: KeyState
    ) -> None:
        job = await job_for(custody, app, "anonymize")
        redis.set(f"kc:{{{job.lease}}}:tenant", "other")
        with pytest.raises(LeaseRefused):
            await custody.file_key(job.lease)


class TestRoots:
    async def test_processes_that_start_at_once_on_an_empty_redis_make_one_set(
        self, home: Path, redis: Redis, shared_server: RedisServer
    ) -> None:
        connecting = [Custody.connect(settings_for(home, shared_server.url)) for _ in range(6)]
        found = await asyncio.gather(*connecting)
        [kid] = {custody.records.public_keys()[-1]["kid"] for custody in found}
        [tenant_ref] = {custody.records.tenant_ref("acme") for custody in found}
        assert kid
        assert tenant_ref
        for custody in found:
            await custody.audit.append("key.create", tenant="acme")
        assert found[0].checkpoints.verify().first_bad is None
        for custody in found:
            await custody.close()

    async def test_the_next_signing_key_is_made_once(
        self, custody: Custody, home: Path, shared_server: RedisServer
    ) -> None:
        again = await Custody.connect(settings_for(home, shared_server.url))
        await custody.rotate_signing_key()
        with pytest.raises(SecretKeyConflict):
            await again.rotate_signing_key()
        await again.close()

    async def test_a_root_that_is_gone_while_keys_exist_stops_the_start(
        self, custody: Custody, key: KeyState, redis: Redis, home: Path, shared_server: RedisServer
    ) -> None:
        for purpose in ("metadata", "audit", "tenant-ref", "lease", "signing"):
            redis.copy(f"kc:{{root}}:{purpose}:1", "aside", replace=True)
            redis.delete(f"kc:{{root}}:{purpose}:1")
            with pytest.raises(SecretKeyIntegrity, match=purpose):
                await Custody.connect(settings_for(home, shared_server.url))
            redis.copy("aside", f"kc:{{root}}:{purpose}:1")

    async def test_two_exchanged_roots_stop_the_start(
        self, custody: Custody, key: KeyState, redis: Redis, home: Path, shared_server: RedisServer
    ) -> None:
        redis.copy("kc:{root}:lease:1", "kc:{root}:tenant-ref:1", replace=True)
        with pytest.raises(SecretKeyIntegrity):
            await Custody.connect(settings_for(home, shared_server.url))

    async def test_another_age_of_a_signing_key_stops_the_start(
        self, custody: Custody, redis: Redis, home: Path, shared_server: RedisServer
    ) -> None:
        redis.hset("kc:{root}:signing:1", "created_at", "1")
        with pytest.raises(SecretKeyIntegrity):
            await Custody.connect(settings_for(home, shared_server.url))

    async def test_an_emptied_redis_stops_the_start_because_the_trail_is_of_another_chain(
        self, custody: Custody, key: KeyState, redis: Redis, home: Path, shared_server: RedisServer
    ) -> None:
        redis.flushall()
        with pytest.raises(Exception, match="altered") as refused:
            await Custody.connect(settings_for(home, shared_server.url))
        assert getattr(refused.value, "code", "") == "audit_unavailable"


async def test_a_half_known_name_opens_nothing(custody: Custody, officer: Person, app: Person) -> None:
    for name in ("", "key_", "key_" + "0" * 26, "key_" + "0" * 25 + "*", "*", "../x", "key_" + "0" * 26 + "\n"):
        with pytest.raises(SecretKeyNotFound):
            await job_for(custody, app, "anonymize", key_id=name)
    with pytest.raises(ScopeMissing):
        await job_for(custody, officer, "anonymize", key_id="key_" + "0" * 26)
