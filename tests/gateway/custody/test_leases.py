"""T9, T10, T11, T17: a worker gets the image keys of its own job, a few times, while everything allows it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from gateway.custody import redeeming
from gateway.custody.leases import CAPS, Caps
from gateway.custody.service import Custody
from gateway.custody.store import KeyState
from shared.keyderivation import method_key
from shared.problems import (
    AuditUnavailable,
    InvalidRequest,
    KekUnavailable,
    LeaseExpired,
    LeaseRefused,
    Problem,
    ScopeMissing,
    SecretKeyDisabled,
    SecretKeyNotFound,
)
from tests.gateway.custody.support import (
    DIM,
    MODEL,
    Clock,
    Job,
    Person,
    anonymized,
    break_trail,
    events,
    job_for,
    key_for,
    person,
    recovered,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def key(custody: Custody, custodian: Person) -> KeyState:
    return await key_for(custody, custodian, default=True)


@pytest.fixture
async def job(custody: Custody, app: Person, key: KeyState) -> Job:
    return await job_for(custody, app, "anonymize")


class TestRedeem:
    async def test_it_gives_hkdf_of_the_secret_for_every_face_in_order(
        self, custody: Custody, job: Job, key: KeyState
    ) -> None:
        octets = await job.redeem()
        async with custody._opener.open(key, 1, "recover") as secret:
            expected = [
                method_key(
                    secret.octets,
                    tenant="acme",
                    key_id=key.key_id,
                    model_id=MODEL["model"],
                    image_nonce=bytes.fromhex(nonce),
                    dim=DIM,
                )
                for nonce in job.nonces()
            ]
        assert octets == b"".join(expected)

    async def test_empty_nonces_link_pictures_and_random_ones_do_not(
        self, custody: Custody, app: Person, key: KeyState
    ) -> None:
        one, two = [await job_for(custody, app, "anonymize") for _ in range(2)]
        assert await one.redeem(nonces=("",)) == await two.redeem(nonces=("",))
        octets = [await job.redeem(unit=unit, count=1) for job in (one, two) for unit in (1, 2)]
        assert len(set(map(bytes, octets))) == 4

    async def test_another_key_tenant_model_or_size_gives_other_octets(
        self, custody: Custody, app: Person, custodian: Person, key: KeyState
    ) -> None:
        other_key = await key_for(custody, custodian)
        await key_for(custody, await person(custody, "custodian", "other"), default=True)
        other_app = await person(custody, "app", "other")

        async def octets_of(who: Person, key_id: str | None = None, **wish: Any) -> bytearray:
            return await (await job_for(custody, who, "anonymize", key_id=key_id)).redeem(count=1, **wish)

        found = [await octets_of(app), await octets_of(app, other_key.key_id), await octets_of(other_app)]
        found += [await octets_of(app, model="ifadit/small@2"), await octets_of(app, dim=512)]
        assert len({bytes(octets[:64]) for octets in found}) == len(found)

    async def test_it_is_the_same_for_a_retry_and_refused_the_fourth_time(self, job: Job) -> None:
        answers = [await job.redeem() for _ in range(3)]
        assert answers[0] == answers[1] == answers[2]
        with pytest.raises(LeaseExpired):
            await job.redeem()
        with pytest.raises(LeaseExpired):
            await job.redeem(attempt=2)
        assert await job.redeem(unit=1), "another unit has its own count"

    async def test_ten_at_once_get_three(self, job: Job) -> None:
        outcomes = await asyncio.gather(*(job.redeem() for _ in range(10)), return_exceptions=True)
        assert sum(isinstance(outcome, bytearray) for outcome in outcomes) == 3
        assert sum(isinstance(outcome, LeaseExpired) for outcome in outcomes) == 7

    @pytest.mark.parametrize("other", [{"count": 1}, {"nonces": ("",)}, {"model": "ifadit/x@1"}, {"model_digest": "y"}])
    async def test_one_attempt_asks_for_one_thing(self, job: Job, other: dict[str, Any]) -> None:
        await job.redeem()
        with pytest.raises(LeaseRefused):
            await job.redeem(**other)

    async def test_a_later_attempt_may_find_other_faces_and_shuts_the_earlier_one_out(self, job: Job) -> None:
        await job.redeem(count=1)
        await job.redeem(count=2, attempt=2)
        with pytest.raises(LeaseRefused, match="later attempt"):
            await job.redeem(count=1, attempt=1)

    @pytest.mark.parametrize("nonces", [(), None])
    async def test_without_a_face_there_is_nothing_to_redeem(self, job: Job, nonces: Any) -> None:
        with pytest.raises(InvalidRequest):
            await job.redeem(nonces=nonces)

    async def test_a_worker_cannot_name_the_nonces_of_older_pictures(
        self, custody: Custody, app: Person, job: Job
    ) -> None:
        """Else any lease of a key would open every picture of that key: their nonces stand in their records."""
        _, record = await anonymized(custody, app)
        published = tuple(face["nonce"] for face in record["faces"])
        own = job.nonces(3)
        for nonces in (published, published[:1], own[::-1], own[1:], (own[0], ""), (own[0].upper(),), ("xyz",)):
            with pytest.raises(LeaseRefused):
                await job.redeem(nonces=nonces)
        with pytest.raises(LeaseRefused):
            await job.redeem(unit=1, nonces=own)

    async def test_units_and_faces_are_capped(
        self, custody: Custody, app: Person, key: KeyState, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(CAPS, "anonymize", Caps(units=2, faces=5))
        job = await job_for(custody, app, "anonymize")
        await job.redeem(unit=0)
        await job.redeem(unit=7)
        with pytest.raises(LeaseRefused, match="unit"):
            await job.redeem(count=1, unit=8)
        with pytest.raises(LeaseRefused, match="face"):
            await job.redeem(unit=7, attempt=2)


class TestOtherPeoplesLeases:
    """T9: a worker that asks for what is not its job's is refused, and that is audited."""

    @pytest.mark.parametrize(
        "other",
        [
            {"job_id": "job_00000000000000000000000000"},
            {"tenant": "other"},
            {"principal": "prn_00000000000000000000000000"},
            {"method": "arm"},
            {"operation": "recover"},
            {"lease": None},
            {"lease": "lease_00000000000000000000000000"},
        ],
        ids=lambda other: next(iter(other)),
    )
    async def test_with_another_context_nothing_is_given(self, job: Job, home: Path, other: dict[str, Any]) -> None:
        wrong = replace(job, context=replace(job.context, **other))
        for asking in (
            wrong.redeem(),
            wrong.seal(),
            wrong.custody.redeeming.file_key(wrong.context, job.lease),
        ):
            with pytest.raises(LeaseRefused):
                await asking
        denied = [event for event in events(home) if event.get("reason") == "lease_refused"]
        assert {event["action"] for event in denied} == {"lease.redeem", "record.seal", "lease.file_key"}

    async def test_another_jobs_lease_is_refused(self, custody: Custody, app: Person, job: Job) -> None:
        other = await job_for(custody, app, "anonymize")
        with pytest.raises(LeaseRefused):
            await replace(job, lease=other.lease).redeem()
        with pytest.raises(LeaseRefused):
            await replace(job, lease=other.lease, context=replace(job.context, lease=other.lease)).redeem()

    async def test_an_expired_lease_is_refused(
        self, custody: Custody, app: Person, key: KeyState, clock: Clock
    ) -> None:
        job = await job_for(custody, app, "anonymize", lasts_s=60)
        await job.redeem()
        clock.advance(60)
        for asking in (job.redeem(), job.seal(), custody.redeeming.file_key(job.context, job.lease)):
            with pytest.raises(LeaseExpired):
                await asking

    async def test_an_anonymizing_lease_recovers_nothing(
        self, custody: Custody, app: Person, officer: Person, job: Job
    ) -> None:
        _, record = await anonymized(custody, app)
        with pytest.raises(InvalidRequest):
            await job.redeem(record=record, purpose="x")
        with pytest.raises(InvalidRequest):
            await job.redeem(record=record, purpose="x")
        recovering = await job_for(custody, officer, "recover")
        with pytest.raises(InvalidRequest):
            await recovering.redeem(purpose="x")
        with pytest.raises(LeaseRefused):
            await recovering.seal()

    async def test_a_verifying_lease_gives_its_file_key_only(
        self, custody: Custody, app: Person, key: KeyState
    ) -> None:
        job = await job_for(custody, app, "verify")
        assert len(await custody.redeeming.file_key(job.context, job.lease)) == 32
        with pytest.raises(LeaseRefused):
            await job.redeem()

    @pytest.mark.parametrize("name", ["", "lease_", "lease_*", "../x", "lease_" + "0" * 26 + "\n"])
    async def test_a_name_that_is_none_opens_nothing(self, custody: Custody, job: Job, name: str) -> None:
        with pytest.raises(LeaseRefused):
            await replace(job, lease=name, context=replace(job.context, lease=name)).redeem()
        with pytest.raises(LeaseRefused):
            await custody.file_key(name)


class TestScopes:
    @pytest.mark.parametrize(
        ("role", "kinds"), [("app", {"anonymize", "verify"}), ("officer", {"recover", "verify"}), ("custodian", set())]
    )
    async def test_each_role_gets_its_own_leases_only(
        self, custody: Custody, key: KeyState, home: Path, role: Any, kinds: set[str]
    ) -> None:
        who = await person(custody, role)
        for kind in ("anonymize", "recover", "verify"):
            if kind in kinds:
                await job_for(custody, who, kind)
            else:
                with pytest.raises(ScopeMissing):
                    await job_for(custody, who, kind)
                assert events(home, "lease.open")[-1]["reason"] == "scope_missing"

    async def test_a_forged_principal_with_more_scopes_is_found_at_the_door(
        self, custody: Custody, app: Person, key: KeyState
    ) -> None:
        """A made-up scope gets a lease from the facade, but no key: the door looks the principal up."""
        _, record = await anonymized(custody, app)
        forged = replace(app, principal=replace(app.principal, scopes=frozenset({"recover"})))
        job = await job_for(custody, forged, "recover")
        with pytest.raises(ScopeMissing):
            await job.redeem(record=record, purpose="x")

    async def test_a_principal_in_another_tenant_than_its_own_is_found_at_the_door(
        self, custody: Custody, app: Person, stranger: Person
    ) -> None:
        await key_for(custody, stranger, default=True)
        elsewhere = replace(app, principal=replace(app.principal, tenant="other"))
        job = await job_for(custody, elsewhere, "anonymize")
        with pytest.raises(ScopeMissing):
            await job.redeem()

    async def test_a_principal_that_was_revoked_redeems_nothing_more(
        self, custody: Custody, app: Person, job: Job
    ) -> None:
        await custody.principals.revoke(app.principal.id)
        with pytest.raises(ScopeMissing):
            await job.redeem()


class TestDisabled:
    """T11: once a disable was answered, no redeem and no seal succeeds."""

    async def test_a_queued_job_fails_at_once(
        self, custody: Custody, custodian: Person, job: Job, key: KeyState
    ) -> None:
        await job.redeem()
        await custody.keys.disable(custodian.caller, key.key_id)
        with pytest.raises(SecretKeyDisabled):
            await job.redeem()
        with pytest.raises(SecretKeyDisabled):
            await job.seal()

    async def test_a_redeem_that_raced_with_the_disable_is_decided_anew(
        self, custody: Custody, custodian: Person, job: Job, key: KeyState, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The key is disabled after the redeem has read it, and before it is counted."""
        note = custody.redeeming._admission.note

        async def note_slowly(*args: Any, **fields: Any) -> None:
            await note(*args, **fields)
            if fields["decision"] == "allowed":
                await custody.keys.disable(custodian.caller, key.key_id)

        monkeypatch.setattr(custody.redeeming._admission, "note", note_slowly)
        with pytest.raises(SecretKeyDisabled):
            await job.redeem()

    async def test_no_redeem_that_began_after_the_answer_succeeds_under_load(
        self, custody: Custody, custodian: Person, app: Person, key: KeyState
    ) -> None:
        jobs = [await job_for(custody, app, "anonymize") for _ in range(20)]
        answered = asyncio.Event()
        late: list[bytearray] = []

        async def redeem(job: Job) -> None:
            for attempt in range(3):
                began_late = answered.is_set()
                try:
                    octets = await job.redeem(unit=attempt)
                except Problem:
                    continue
                if began_late:
                    late.append(octets)

        async def disable() -> None:
            await asyncio.sleep(0.05)
            await custody.keys.disable(custodian.caller, key.key_id)
            answered.set()

        await asyncio.gather(disable(), *map(redeem, jobs))
        assert late == []

    async def test_a_change_of_the_key_that_does_not_matter_does_not_fail_a_redeem(
        self, custody: Custody, custodian: Person, job: Job, key: KeyState, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        note = custody.redeeming._admission.note
        rotated: list[KeyState] = []

        async def note_and_rotate(*args: Any, **fields: Any) -> None:
            await note(*args, **fields)
            if not rotated:
                rotated.append(await custody.keys.rotate(custodian.caller, key.key_id))

        monkeypatch.setattr(custody.redeeming._admission, "note", note_and_rotate)
        assert await job.redeem()

    async def test_a_key_that_was_disabled_before_the_lease_opens_none(
        self, custody: Custody, custodian: Person, app: Person, key: KeyState
    ) -> None:
        await custody.keys.disable(custodian.caller, key.key_id)
        with pytest.raises(SecretKeyDisabled):
            await job_for(custody, app, "anonymize")


class TestAuditBeforeActing:
    async def test_the_entry_is_there_before_the_secret_is_opened(
        self, custody: Custody, job: Job, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []

        def derive(*args: Any, **kwargs: Any) -> bytearray:
            seen.append(len(events(home, "lease.redeem")))
            return method_key(*args, **kwargs)

        monkeypatch.setattr(redeeming, "method_key", derive)
        await job.redeem()
        assert seen == [1, 1]

    async def test_without_a_trail_nothing_is_redeemed_sealed_or_recovered(
        self, custody: Custody, app: Person, officer: Person, job: Job, home: Path
    ) -> None:
        _, record = await anonymized(custody, app)
        recovering = await job_for(custody, officer, "recover")
        await job.redeem()
        break_trail(home)
        for asking in (
            job.redeem(),
            job.seal(),
            recovering.redeem(record=record, purpose="x"),
            custody.redeeming.file_key(job.context, job.lease),
        ):
            with pytest.raises(AuditUnavailable):
                await asking
        for kind, who in (("recover", officer), ("anonymize", app)):
            with pytest.raises(AuditUnavailable):
                await job_for(custody, who, kind)
        assert (await custody.ready())["audit"] == "down"

    async def test_a_recovery_tells_who_why_and_of_what(
        self, custody: Custody, app: Person, officer: Person, key: KeyState, home: Path
    ) -> None:
        _, record = await anonymized(custody, app)
        await recovered(custody, officer, record, purpose="court order 17")
        entry = events(home, "lease.redeem")[-1]
        assert entry["actor"] == officer.principal.id
        assert entry["purpose"] == "court order 17"
        assert (entry["record_id"], entry["key_id"], entry["key_version"]) == (record["record_id"], key.key_id, 1)
        assert entry["decision"] == "allowed"

    @pytest.mark.parametrize("purpose", [None, "", "x" * 201])
    async def test_a_recovery_without_a_purpose_is_refused(
        self, custody: Custody, app: Person, officer: Person, key: KeyState, purpose: Any
    ) -> None:
        _, record = await anonymized(custody, app)
        with pytest.raises(InvalidRequest):
            await recovered(custody, officer, record, purpose=purpose)


class TestFileKey:
    async def test_worker_and_gateway_get_the_same_and_each_lease_has_its_own(
        self, custody: Custody, app: Person, job: Job
    ) -> None:
        other = await job_for(custody, app, "anonymize")
        mine = await custody.redeeming.file_key(job.context, job.lease)
        assert len(mine) == 32
        assert mine == await custody.file_key(job.lease)
        assert mine != await custody.file_key(other.lease)

    async def test_downloads_go_on_after_the_deadline_until_redis_drops_the_lease(
        self, custody: Custody, job: Job, clock: Clock, redis: Redis
    ) -> None:
        clock.advance(3600 + 900)
        assert len(await custody.file_key(job.lease)) == 32
        assert 0 < redis.pttl(f"kc:{{acme}}:lease:{job.lease}") <= 2 * 3600 * 1000
        redis.delete(f"kc:{{acme}}:lease:{job.lease}")
        with pytest.raises(LeaseRefused):
            await custody.file_key(job.lease)

    async def test_it_is_wrapped_in_redis_and_bound_to_its_lease(
        self, custody: Custody, app: Person, job: Job, redis: Redis
    ) -> None:
        mine = await custody.file_key(job.lease)
        assert mine.hex() not in str(redis.hgetall(f"kc:{{acme}}:lease:{job.lease}"))

    async def test_what_was_used_of_a_lease_goes_with_it(self, job: Job, redis: Redis) -> None:
        await job.redeem()
        lease, use = (redis.pttl(f"kc:{{acme}}:{what}:{job.lease}") for what in ("lease", "use"))
        assert 0 < use <= lease


class TestKekDown:
    """T17: without the key-encryption key, anonymization goes on for a minute and recovery stops at once."""

    async def test_anonymization_goes_on_for_sixty_seconds(
        self, custody: Custody, app: Person, officer: Person, key: KeyState, home: Path, clock: Clock
    ) -> None:
        octets, record = await anonymized(custody, app)
        (home / "kek.json").rename(home / "kek.away")
        clock.advance(59)
        assert len((await anonymized(custody, app))[0]) == len(octets)
        with pytest.raises(KekUnavailable):
            await recovered(custody, officer, record)
        clock.advance(2)
        with pytest.raises(KekUnavailable):
            await anonymized(custody, app)
        assert (await custody.ready())["kek"] == "down"
        (home / "kek.away").rename(home / "kek.json")
        assert await recovered(custody, officer, record) == octets
        assert (await custody.ready())["kek"] == "ok"

    async def test_recovery_does_not_fill_the_cache(
        self, custody: Custody, app: Person, officer: Person, key: KeyState, home: Path, clock: Clock
    ) -> None:
        _, record = await anonymized(custody, app)
        clock.advance(61)
        await recovered(custody, officer, record)
        (home / "kek.json").rename(home / "kek.away")
        with pytest.raises(KekUnavailable):
            await anonymized(custody, app)

    async def test_what_is_remembered_is_wiped_when_its_minute_is_over(
        self, custody: Custody, app: Person, key: KeyState, clock: Clock
    ) -> None:
        await anonymized(custody, app)
        [(remembered, _)] = custody._opener._cache.values()
        buffer = remembered.octets
        clock.advance(61)
        await custody.sweep()
        assert buffer == bytes(32)
        assert custody._opener._cache == {}


class TestKeyOfTheRequest:
    """T1 and T2 at the lease: which key a job may name."""

    async def test_another_tenants_key_is_no_key(self, custody: Custody, app: Person, officer: Person) -> None:
        theirs = await key_for(custody, await person(custody, "custodian", "other"))
        for kind, who in (("anonymize", app), ("recover", officer)):
            with pytest.raises(SecretKeyNotFound) as foreign:
                await job_for(custody, who, kind, key_id=theirs.key_id)
            with pytest.raises(SecretKeyNotFound) as unknown:
                await job_for(custody, who, kind, key_id="key_" + "0" * 26)
            assert foreign.value.body() == unknown.value.body()

    async def test_a_record_of_another_key_than_the_one_named_is_refused(
        self, custody: Custody, app: Person, officer: Person, custodian: Person, key: KeyState
    ) -> None:
        octets, record = await anonymized(custody, app)
        other = await key_for(custody, custodian)
        with pytest.raises(Problem) as refused:
            await recovered(custody, officer, record, key_id=other.key_id)
        assert (refused.value.status, refused.value.code) == (422, "record_mismatch")
        assert await recovered(custody, officer, record, key_id=key.key_id) == octets
