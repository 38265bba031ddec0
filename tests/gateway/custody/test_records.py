"""T23: what a record proves, and what a forged or borrowed one does not."""

from __future__ import annotations

import base64
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.custody.canonical import canonical
from gateway.custody.service import Custody
from gateway.custody.store import KeyState
from shared.problems import InvalidRequest, LeaseRefused, Problem, RecordInvalid, ScopeMissing
from tests.gateway.custody.support import (
    Clock,
    Job,
    Person,
    anonymized,
    events,
    job_for,
    key_for,
    person,
    recovered,
    settings_for,
)
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio
OTHERS = ("00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100")  # no nonces of any job


@pytest.fixture
async def key(custody: Custody, custodian: Person) -> KeyState:
    return await key_for(custody, custodian, default=True)


@pytest.fixture
async def job(custody: Custody, app: Person, key: KeyState) -> Job:
    return await job_for(custody, app, "anonymize")


@pytest.fixture
async def record(custody: Custody, app: Person, key: KeyState) -> dict[str, Any]:
    return (await anonymized(custody, app))[1]


def signature_of(record: dict[str, Any]) -> bytes:
    text = record["sig"]["value"]
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def alterations(value: Any) -> list[Any]:
    """The value with one thing changed, taken away or added, for everything that can be."""
    if isinstance(value, dict):
        return [
            *({**value, name: other} for name, inner in value.items() for other in alterations(inner)),
            *({kept: inner for kept, inner in value.items() if kept != name} for name in value),
            {**value, "more": 1},
        ]
    if isinstance(value, list):
        inside = [[*value[:i], other, *value[i + 1 :]] for i, inner in enumerate(value) for other in alterations(inner)]
        return [*inside, value[::-1], value[:-1], [*value, *value]]
    if isinstance(value, int):
        return [value + 1, str(value)]
    return [f"{value}0", value[:-1], ""]


class TestSigning:
    async def test_anybody_can_verify_it_with_the_published_keys(
        self, custody: Custody, record: dict[str, Any]
    ) -> None:
        [published] = custody.records.public_keys()
        assert published["kid"] == record["sig"]["kid"]
        raw = base64.urlsafe_b64decode(published["x"] + "=")
        signed = {name: value for name, value in record.items() if name != "sig"}
        Ed25519PublicKey.from_public_bytes(raw).verify(signature_of(record), canonical(signed))

    async def test_it_names_key_and_weights_and_neither_tenant_nor_time_of_day(
        self, custody: Custody, record: dict[str, Any], key: KeyState
    ) -> None:
        assert (record["key_id"], record["key_version"], record["model_id"]) == (key.key_id, 1, "ifadit/small@1")
        assert "acme" not in json.dumps(record)
        assert record["created_at"].endswith(":00:00Z")
        assert set(record) == {
            *("v", "record_id", "tenant_ref", "key_id", "key_version", "kdf", "key_scheme", "model_id"),
            *("model_digest", "linkage", "created_at", "image", "faces", "sig"),
        }

    async def test_the_same_draft_gets_the_same_record_and_another_is_refused(self, job: Job, clock: Clock) -> None:
        await job.redeem()
        first = await job.seal()
        clock.advance(600)
        assert await job.seal() == first
        with pytest.raises(LeaseRefused):
            await job.seal(image={"w": 641, "h": 480, "pixel_sha256": "ab" * 32})

    async def test_a_later_attempt_is_sealed_anew_and_shuts_the_earlier_one_out(self, job: Job) -> None:
        await job.redeem(count=1)
        first = await job.seal(count=1)
        await job.redeem(count=2, attempt=2)
        second = await job.seal(count=2, attempt=2)
        assert first["record_id"] != second["record_id"]
        with pytest.raises(LeaseRefused):
            await job.seal(count=1, attempt=1)

    @pytest.mark.parametrize(
        "draft",
        [
            {"nonces": OTHERS},
            {"count": 1},
            {"count": 3},
            {"model_id": "ifadit/other@1"},
            {"model_digest": "sha256:1"},
            {"key_scheme": "v1-uniform"},
        ],
    )
    async def test_only_what_was_redeemed_is_sealed(self, job: Job, draft: dict[str, Any]) -> None:
        await job.redeem()
        with pytest.raises(LeaseRefused):
            await job.seal(**draft)

    async def test_nothing_is_sealed_for_a_unit_that_was_not_redeemed(self, job: Job) -> None:
        with pytest.raises(LeaseRefused):
            await job.seal()
        await job.redeem(unit=0)
        with pytest.raises(LeaseRefused):
            await job.seal(unit=1)

    async def test_a_picture_without_an_anonymized_face_is_sealed_as_such(self, job: Job) -> None:
        record = await job.seal(nonces=(), linkage="per_image", faces=[{"i": 0, "mode": "redacted"}])
        assert record["faces"] == [{"i": 0, "mode": "redacted"}]

    @pytest.mark.parametrize(
        "draft",
        [
            {"linkage": "per_key"},
            {"faces": [{"nonce": OTHERS[0], "matrix": [1.5]}]},
            {"faces": [{"nonce": OTHERS[0], "n": 2**53}]},
            {"faces": [{"nonce": OTHERS[0]}, {"nonce": OTHERS[0]}]},
            {"faces": [{"nonce": OTHERS[0]}, {"nonce": ""}]},
            {"faces": [{"nonce": OTHERS[0].upper()}]},
            {"faces": [{"nonce": "zz"}]},
            {"faces": [{"nonce": 5}]},
            {"faces": "x"},
            {"more": 1},
        ],
    )
    async def test_a_draft_without_canonical_form_is_refused(self, job: Job, draft: dict[str, Any]) -> None:
        await job.redeem()
        with pytest.raises(InvalidRequest):
            await job.seal(**draft)

    async def test_its_digest_is_audited_before_it_is_given(self, job: Job, home: Path) -> None:
        await job.redeem()
        record = await job.seal()
        entry = events(home, "record.seal")[-1]
        assert (entry["record_id"], entry["faces"]) == (record["record_id"], 2)
        assert len(entry["record_digest"]) == 64


class TestForging:
    async def test_nothing_in_it_can_be_changed(self, custody: Custody, record: dict[str, Any]) -> None:
        altered = [other for other in alterations(record) if other != record]
        assert len(altered) > 100
        for other in altered:
            with pytest.raises(RecordInvalid):
                custody.records.read(other, "acme")
        custody.records.read(record, "acme")

    async def test_another_key_signs_nothing(self, custody: Custody, record: dict[str, Any]) -> None:
        signed = {name: value for name, value in record.items() if name != "sig"}
        forged = Ed25519PrivateKey.generate().sign(canonical(signed))
        value = base64.urlsafe_b64encode(forged).decode().rstrip("=")
        with pytest.raises(RecordInvalid):
            custody.records.read({**signed, "sig": {**record["sig"], "value": value}}, "acme")

    @pytest.mark.parametrize("junk", [{}, {"v": 1}, {"sig": None}, {"sig": {"kid": []}}])
    async def test_junk_is_no_record(self, custody: Custody, junk: dict[str, Any], key: KeyState) -> None:
        with pytest.raises(RecordInvalid):
            custody.records.read(junk, "acme")

    async def test_a_forged_record_recovers_nothing_and_does_not_say_why(
        self, custody: Custody, officer: Person, record: dict[str, Any], home: Path
    ) -> None:
        forged = deepcopy(record)
        forged["image"]["w"] = 1
        with pytest.raises(RecordInvalid) as refused:
            await recovered(custody, officer, forged)
        assert (refused.value.status, refused.value.detail) == (422, RecordInvalid.title)
        assert events(home, "lease.redeem")[-1]["reason"] == "record_invalid"

    async def test_another_tenants_record_recovers_nothing(self, custody: Custody, record: dict[str, Any]) -> None:
        with pytest.raises(RecordInvalid):
            await recovered(custody, await person(custody, "officer", "other"), record)

    @pytest.mark.parametrize(
        "other", [{"model": "ifadit/small@2"}, {"model_digest": "x"}, {"key_scheme": "v1-uniform"}]
    )
    async def test_other_weights_are_refused_and_the_right_ones_named(
        self, custody: Custody, officer: Person, record: dict[str, Any], other: dict[str, Any]
    ) -> None:
        with pytest.raises(Problem) as refused:
            await recovered(custody, officer, record, **other)
        assert (refused.value.status, refused.value.code) == (409, "record_model_mismatch")
        assert refused.value.extras == {"model_id": "ifadit/small@1"}

    async def test_a_record_is_no_permission(self, custody: Custody, app: Person, record: dict[str, Any]) -> None:
        with pytest.raises(ScopeMissing):
            await recovered(custody, app, record)

    async def test_recovering_twice_is_allowed_and_audited_twice(
        self, custody: Custody, officer: Person, record: dict[str, Any], home: Path
    ) -> None:
        assert await recovered(custody, officer, record) == await recovered(custody, officer, record)
        assert len([event for event in events(home, "lease.redeem") if event["actor"] == officer.principal.id]) == 2


class TestChecking:
    async def test_the_own_tenant_learns_what_it_says(
        self, custody: Custody, app: Person, record: dict[str, Any], key: KeyState
    ) -> None:
        job = await job_for(custody, app, "verify")
        answer = await custody.sealing.check(job.context, record)
        assert (answer["valid"], answer["own_tenant"], answer["key_id"]) == (True, True, key.key_id)

    async def test_another_tenant_learns_that_it_is_not_its_own(self, custody: Custody, record: dict[str, Any]) -> None:
        job = await job_for(custody, await person(custody, "app", "other"), "verify")
        assert await custody.sealing.check(job.context, record) == {"valid": True, "own_tenant": False}

    async def test_a_forged_one_is_not_valid(self, custody: Custody, app: Person, record: dict[str, Any]) -> None:
        job = await job_for(custody, app, "verify")
        assert await custody.sealing.check(job.context, {**record, "v": 2}) == {"valid": False, "own_tenant": False}


class TestSigningKeys:
    async def test_a_new_one_signs_after_a_restart_and_old_records_still_verify(
        self,
        custody: Custody,
        app: Person,
        officer: Person,
        record: dict[str, Any],
        home: Path,
        shared_server: RedisServer,
    ) -> None:
        added = await custody.rotate_signing_key()
        again = await Custody.connect(settings_for(home, shared_server.url))
        try:
            _, newer = await anonymized(again, app)
            assert (record["sig"]["kid"], newer["sig"]["kid"]) == (custody.records.public_keys()[0]["kid"], added)
            assert [published["kid"] for published in again.records.public_keys()] == [record["sig"]["kid"], added]
            await recovered(again, officer, record)
            await recovered(again, officer, newer)
        finally:
            await again.close()
