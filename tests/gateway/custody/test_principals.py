from __future__ import annotations

import hashlib
import re
from typing import Any, cast

import pytest
from redis import Redis

from gateway.custody.service import Custody
from gateway.principals import SCOPES, PrincipalConflict, PrincipalNotFound, Principals, Role
from shared.problems import ApiKeyInvalid, AuditUnavailable, ServiceUnavailable
from tests.gateway.custody.support import PEPPER, Clock, break_trail, events

pytestmark = pytest.mark.anyio


@pytest.fixture
def principals(custody: Custody) -> Principals:
    return custody.principals


@pytest.fixture
def elsewhere(custody: Custody, clock: Clock) -> Principals:
    """The same principals in another process: with a cache of its own."""
    return Principals(custody.principals._database, PEPPER, custody.audit, now=clock)


def stored(redis: Redis, principal_id: str) -> str:
    return f"pr:{{principals}}:id:{principal_id}"


class TestRoles:
    def test_no_role_recovers_and_administers_keys(self) -> None:
        assert not any({"recover", "keys"} <= scopes for scopes in SCOPES.values())
        assert not any({"recover", "use"} <= scopes for scopes in SCOPES.values())
        assert not any({"keys", "audit"} <= scopes for scopes in SCOPES.values())

    @pytest.mark.parametrize(
        ("role", "scopes"),
        [("app", {"use", "verify"}), ("officer", {"recover", "verify", "audit"}), ("custodian", {"keys"})],
    )
    async def test_a_principal_has_the_scopes_of_its_one_role(
        self, principals: Principals, role: Role, scopes: set[str]
    ) -> None:
        principal, _ = await principals.create("acme", role)
        assert (principal.role, set(principal.scopes)) == (role, scopes)

    @pytest.mark.parametrize("role", ["admin", "", "app,officer", "Officer"])
    async def test_another_role_is_refused(self, principals: Principals, role: str) -> None:
        with pytest.raises(ValueError, match="roles"):
            await principals.create("acme", cast(Any, role))

    @pytest.mark.parametrize("tenant", ["", "Acme", "a:b", "a{b}", "a\0b", "acm\u0435", "a" * 65, "acme\n", "a b"])
    async def test_a_tenants_name_is_plain(self, principals: Principals, tenant: str) -> None:
        with pytest.raises(ValueError, match="tenant"):
            await principals.create(tenant, "app")

    async def test_a_long_label_is_refused(self, principals: Principals) -> None:
        with pytest.raises(ValueError, match="label"):
            await principals.create("acme", "app", "x" * 201)


class TestApiKeys:
    async def test_the_one_that_was_shown_is_who_it_was_made_for(self, principals: Principals) -> None:
        principal, text = await principals.create("acme", "officer")
        assert re.fullmatch(r"tf_[0-9a-z]{8}_[A-Za-z0-9_-]{43}", text)
        assert await principals.authenticate(text) == principal

    async def test_it_is_stored_as_an_hmac_only(self, principals: Principals, redis: Redis) -> None:
        _, text = await principals.create("acme", "app")
        secret = text.split("_", 2)[2]
        everything = str([redis.type(name) == "hash" and redis.hgetall(name) for name in redis.scan_iter("pr:*")])
        assert secret not in everything
        assert hashlib.sha256(text.encode()).hexdigest() not in everything

    async def test_any_other_text_is_nobody(self, principals: Principals) -> None:
        _, text = await principals.create("acme", "app")
        last = "A" if text[-2] != "A" else "B"
        for wrong in (
            "",
            "x",
            text[:-1],
            text + "A",
            text[:-2] + last + text[-1],
            text.upper(),
            f" {text}",
            "tf_" + "a" * 52,
        ):
            with pytest.raises(ApiKeyInvalid):
                await principals.authenticate(wrong)

    async def test_two_keys_do_not_mix(self, principals: Principals) -> None:
        _, one = await principals.create("acme", "app")
        _, two = await principals.create("acme", "officer")
        with pytest.raises(ApiKeyInvalid):
            await principals.authenticate(one[:12] + two[12:])

    async def test_under_another_pepper_none_is_valid(self, custody: Custody, principals: Principals) -> None:
        _, text = await principals.create("acme", "app")
        with pytest.raises(ApiKeyInvalid):
            await Principals(principals._database, PEPPER[::-1], custody.audit).authenticate(text)

    async def test_after_a_rotation_both_are_valid_after_two_only_the_newer_two(self, principals: Principals) -> None:
        principal, first = await principals.create("acme", "app")
        second = await principals.rotate(principal.id)
        assert await principals.authenticate(first) == await principals.authenticate(second) == principal
        third = await principals.rotate(principal.id)
        with pytest.raises(ApiKeyInvalid):
            await principals.authenticate(first)
        assert await principals.authenticate(second) == await principals.authenticate(third) == principal

    async def test_one_of_them_can_be_revoked(self, principals: Principals) -> None:
        principal, first = await principals.create("acme", "app")
        second = await principals.rotate(principal.id)
        await principals.revoke_key(principal.id, first[:11])
        with pytest.raises(ApiKeyInvalid):
            await principals.authenticate(first)
        assert await principals.authenticate(second) == principal
        with pytest.raises(PrincipalNotFound):
            await principals.revoke_key(principal.id, first[:11])

    async def test_a_revoked_principal_is_gone_for_good(self, principals: Principals) -> None:
        principal, text = await principals.create("acme", "app")
        await principals.authenticate(text)
        await principals.revoke(principal.id)
        with pytest.raises(ApiKeyInvalid):
            await principals.authenticate(text)
        assert await principals.find(principal.id) is None
        for again in (principals.rotate(principal.id), principals.revoke(principal.id)):
            with pytest.raises(PrincipalConflict):
                await again

    async def test_another_process_notices_a_revocation_within_five_seconds(
        self, principals: Principals, elsewhere: Principals, clock: Clock
    ) -> None:
        principal, text = await principals.create("acme", "app")
        await elsewhere.authenticate(text)
        await principals.revoke(principal.id)
        assert await elsewhere.authenticate(text) == principal, "cached"
        clock.advance(5.01)
        with pytest.raises(ApiKeyInvalid):
            await elsewhere.authenticate(text)

    async def test_a_lost_race_changes_nothing(self, principals: Principals, redis: Redis) -> None:
        principal, text = await principals.create("acme", "app")
        record, digests, fields = await principals._found(principal.id)
        await principals.rotate(principal.id)
        with pytest.raises(PrincipalConflict):
            await principals._write(principal.id, fields["rev"], fields)
        assert await principals.authenticate(text) == record.principal
        assert len(digests) == 1


class TestLimits:
    async def test_that_were_given_come_back_with_the_principal(self, principals: Principals) -> None:
        principal, text = await principals.create("acme", "app", limits={"running_jobs": 3, "stored_bytes": 0})
        assert dict(principal.limits) == {"running_jobs": 3, "stored_bytes": 0}
        assert await principals.authenticate(text) == principal

    async def test_are_changed_one_by_one_and_taken_back(self, principals: Principals, elsewhere: Principals) -> None:
        principal, text = await principals.create("acme", "app", limits={"running_jobs": 3})
        await principals.limit(principal.id, {"pixels_per_hour": 7})
        assert dict((await principals.authenticate(text)).limits) == {"running_jobs": 3, "pixels_per_hour": 7}
        await principals.limit(principal.id, {"running_jobs": None})
        assert dict((await elsewhere.authenticate(text)).limits) == {"pixels_per_hour": 7}

    @pytest.mark.parametrize("limits", [{"luck": 1}, {"running_jobs": -1}])
    async def test_that_do_not_exist_are_refused(self, principals: Principals, limits: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="limit"):
            await principals.create("acme", "app", limits=limits)

    async def test_of_a_principal_from_before_there_were_any_are_the_installations(
        self, principals: Principals, redis: Redis
    ) -> None:
        principal, text = await principals.create("acme", "app")
        _, _, fields = await principals._load(principal.id)
        rev = fields["rev"]
        del fields["limits"]
        await principals._write(principal.id, rev, fields)
        assert (await principals.authenticate(text)).limits == ()


class TestTampering:
    @pytest.mark.parametrize(
        ("field", "value"), [("role", "officer"), ("tenant", "other"), ("revoked_at", ""), ("label", "x"), ("new", "1")]
    )
    async def test_whoever_writes_to_redis_cannot_change_what_somebody_may_do(
        self, principals: Principals, elsewhere: Principals, redis: Redis, field: str, value: str
    ) -> None:
        principal, text = await principals.create("acme", "app", "shop")
        if field == "revoked_at":
            await principals.revoke(principal.id)
        redis.hset(stored(redis, principal.id), field, value)
        with pytest.raises(ApiKeyInvalid):
            await elsewhere.authenticate(text)
        assert await elsewhere.find(principal.id) is None

    async def test_one_principals_record_in_anothers_place_is_nobody(
        self, principals: Principals, elsewhere: Principals, redis: Redis
    ) -> None:
        app, text = await principals.create("acme", "app")
        officer, _ = await principals.create("acme", "officer")
        redis.copy(stored(redis, officer.id), stored(redis, app.id), replace=True)
        with pytest.raises(ApiKeyInvalid):
            await elsewhere.authenticate(text)
        assert await elsewhere.find(app.id) is None

    async def test_a_pointer_to_another_principal_is_nobody(
        self, principals: Principals, elsewhere: Principals, redis: Redis
    ) -> None:
        _, text = await principals.create("acme", "app")
        officer, _ = await principals.create("acme", "officer")
        redis.set(f"pr:{{principals}}:key:{text[3:11]}", officer.id)
        with pytest.raises(ApiKeyInvalid):
            await elsewhere.authenticate(text)


class TestListing:
    async def test_it_shows_who_there_is_and_no_key(self, principals: Principals, clock: Clock) -> None:
        first, text = await principals.create("acme", "app", "shop")
        clock.advance(1)
        second, _ = await principals.create("other", "custodian")
        await principals.revoke(second.id)
        records = await principals.list()
        assert [record.principal.id for record in records] == [first.id, second.id]
        assert records[0].api_keys == (text[:11],)
        assert text not in repr(records)
        assert records[1].revoked_at is not None
        assert [record.principal.id for record in await principals.list("other")] == [second.id]


class TestTrail:
    async def test_every_change_is_in_the_audit_trail_without_the_key(self, custody: Custody, home: Any) -> None:
        principal, text = await custody.principals.create("acme", "app")
        await custody.principals.rotate(principal.id)
        await custody.principals.revoke_key(principal.id, text[:11])
        await custody.principals.revoke(principal.id)
        found = [(event["action"], event["subject"]) for event in events(home)]
        actions = ["principal.create", "principal.rotate", "principal.revoke_key", "principal.revoke"]
        assert found == [(action, principal.id) for action in actions]
        assert text.split("_", 2)[2] not in repr(events(home))

    async def test_without_a_trail_nobody_is_made(self, custody: Custody, home: Any, redis: Redis) -> None:
        break_trail(home)
        with pytest.raises(AuditUnavailable):
            await custody.principals.create("acme", "officer")
        assert list(redis.scan_iter("pr:*")) == []


async def test_without_redis_nobody_is_known(principals: Principals, elsewhere: Principals, redis: Redis) -> None:
    principal, text = await principals.create("acme", "app")
    redis.delete(stored(redis, principal.id))
    redis.set(stored(redis, principal.id), "no hash")
    with pytest.raises(ServiceUnavailable):
        await elsewhere.authenticate(text)
