"""Data keys for originals: only where the key allows it, for one record, and never without custody (6.1)."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from redis import Redis

from gateway.custody.secretkeys import GRACE_DAYS
from gateway.custody.service import Custody
from gateway.custody.store import KeyState, Purpose
from shared.leases import DEK_BYTES, WRAPPED_DEK_BYTES
from shared.problems import (
    InvalidRequest,
    LeaseRefused,
    RateLimited,
    SecretKeyDisabled,
    SecretKeyNotFound,
    SidecarInvalid,
)
from tests.gateway.custody.support import (
    DIM,
    MODEL,
    Clock,
    Http,
    Job,
    Person,
    anonymized,
    draft_of,
    events,
    job_for,
    key_for,
    recovered,
)

pytestmark = pytest.mark.anyio
ALL: frozenset[Purpose] = frozenset({"anonymize", "recover", "forensic"})
IMAGES = 2 * 4 * DIM
"""Octets of the image keys of two faces."""


@pytest.fixture
async def key(custody: Custody, custodian: Person) -> KeyState:
    return await key_for(custody, custodian, default=True, purposes=ALL)


@pytest.fixture
async def job(custody: Custody, app: Person, key: KeyState) -> Job:
    return await job_for(custody, app, "anonymize")


def taken_apart(octets: bytearray) -> tuple[bytes, bytes, str]:
    """Data key, wrapped data key and the record's name."""
    rest = bytes(octets[IMAGES:])
    return (
        rest[:DEK_BYTES],
        rest[DEK_BYTES : DEK_BYTES + WRAPPED_DEK_BYTES],
        rest[DEK_BYTES + WRAPPED_DEK_BYTES :].decode(),
    )


def forensic_faces(job: Job, **other: Any) -> list[dict[str, Any]]:
    faces = draft_of(job.nonces())["faces"]
    return [{**face, "mode": "forensic", "sidecar": f"{face['i']}f" * 32, **other} for face in faces]


async def kept(job: Job) -> tuple[bytes, bytes, dict[str, Any]]:
    """Data key, wrapped data key and record of a picture whose originals are kept."""
    dek, wrapped, _ = taken_apart(await job.redeem(forensic=True))
    return dek, wrapped, await job.seal(faces=forensic_faces(job))


class TestAnonymize:
    async def test_a_key_that_was_not_made_for_it_gives_no_data_key(
        self, custody: Custody, app: Person, custodian: Person, home: Path
    ) -> None:
        plain = await key_for(custody, custodian)
        job = await job_for(custody, app, "anonymize", key_id=plain.key_id)
        with pytest.raises(Exception, match="not meant for this") as refused:
            await job.redeem(forensic=True)
        assert refused.value.body()["code"] == "key_purpose"  # type: ignore[attr-defined]
        assert refused.value.body()["purposes"] == ["anonymize", "recover"]  # type: ignore[attr-defined]
        assert events(home, "lease.redeem")[-1]["decision"] == "denied"
        assert len(await job.redeem()) == IMAGES  # without originals it serves as before

    async def test_the_image_keys_are_those_of_any_picture_and_the_name_is_the_records(self, job: Job) -> None:
        octets = await job.redeem(forensic=True)
        dek, wrapped, record_id = taken_apart(octets)
        assert (len(dek), len(wrapped)) == (DEK_BYTES, WRAPPED_DEK_BYTES)
        record = await job.seal(faces=forensic_faces(job))
        assert record["record_id"] == record_id
        assert [face["sidecar"] for face in record["faces"]] == ["0f" * 32, "1f" * 32]

    async def test_every_redeem_draws_another_data_key(self, job: Job) -> None:
        first, second = [taken_apart(await job.redeem(forensic=True)) for _ in range(2)]
        assert first[0] != second[0]
        assert first[1] != second[1]

    async def test_the_wrapping_key_is_hkdf_of_the_secret_the_tenant_and_the_key(
        self, custody: Custody, job: Job, key: KeyState
    ) -> None:
        """RFC 5869 by hand, and AES-GCM from the library."""
        dek, wrapped, record_id = taken_apart(await job.redeem(forensic=True))

        def prefixed(*parts: bytes) -> bytes:
            return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

        info = prefixed(b"ifadit/forensic-kek/v1", b"acme", key.key_id.encode())
        aad = prefixed(b"kc-forensic-dek/v1", b"acme", key.key_id.encode(), bytes([0, 0, 0, 1]), record_id.encode())
        async with custody._opener.open(key, 1, "recover") as secret:
            extracted = hmac.digest(bytes(32), secret.octets, hashlib.sha256)
        kek = hmac.digest(extracted, info + b"\x01", hashlib.sha256)
        assert AESGCM(kek).decrypt(wrapped[:12], wrapped[12:], aad) == dek

    async def test_a_record_says_what_was_redeemed(self, custody: Custody, app: Person, job: Job) -> None:
        await job.redeem(forensic=True)
        with pytest.raises(LeaseRefused):
            await job.seal()
        other = await job_for(custody, app, "anonymize")
        await other.redeem()
        with pytest.raises(LeaseRefused):
            await other.seal(faces=forensic_faces(other))

    @pytest.mark.parametrize("odd", [{"mode": "parametric"}, {"sidecar": "../../x"}, {"sidecar": 7}, {"sidecar": None}])
    async def test_a_sidecar_holds_all_faces_or_none(self, job: Job, odd: dict[str, Any]) -> None:
        await job.redeem(forensic=True)
        faces = forensic_faces(job)
        with pytest.raises(InvalidRequest):
            await job.seal(faces=[faces[0], {**faces[1], **odd}])

    async def test_nothing_of_it_is_in_redis_and_the_trail_says_that_originals_are_kept(
        self, job: Job, redis: Redis, home: Path
    ) -> None:
        dek, wrapped, _ = await kept(job)
        text = "".join(str(redis.hgetall(name) if redis.type(name) == "hash" else name) for name in redis.scan_iter())
        assert text
        assert dek.hex() not in text
        assert wrapped.hex() not in text
        trail = "".join(path.read_text() for path in (home / "audit").glob("*.jsonl"))
        assert dek.hex() not in trail
        assert [events(home, action)[-1]["mode"] for action in ("lease.redeem", "record.seal")] == ["forensic"] * 2


class TestRecover:
    async def test_the_wrapped_key_opens_for_its_record_and_an_officer(
        self, custody: Custody, officer: Person, job: Job, home: Path
    ) -> None:
        dek, wrapped, record = await kept(job)
        assert await recovered(custody, officer, record, wrapped_dek=wrapped) == dek
        assert (events(home, "lease.redeem")[-1]["mode"], events(home)[-1]["purpose"]) == ("forensic", "court order 17")

    async def test_without_it_the_record_recovers_as_any_other(
        self, custody: Custody, officer: Person, job: Job
    ) -> None:
        octets = await job.redeem(forensic=True)
        record = await job.seal(faces=forensic_faces(job))
        assert await recovered(custody, officer, record) == octets[:IMAGES]

    async def test_older_versions_go_on_opening_theirs(
        self, custody: Custody, custodian: Person, officer: Person, job: Job, key: KeyState
    ) -> None:
        dek, wrapped, record = await kept(job)
        await custody.keys.rotate(custodian.caller, key.key_id)
        assert await recovered(custody, officer, record, wrapped_dek=wrapped) == dek

    async def test_another_records_wrapped_key_opens_nothing(
        self, custody: Custody, app: Person, officer: Person, custodian: Person, job: Job
    ) -> None:
        _, wrapped, record = await kept(job)
        other_key = await key_for(custody, custodian, purposes=ALL)
        for foreign in (
            await kept(await job_for(custody, app, "anonymize")),
            await kept(await job_for(custody, app, "anonymize", key_id=other_key.key_id)),
        ):
            with pytest.raises(SidecarInvalid):
                await recovered(custody, officer, record, wrapped_dek=foreign[1])
            with pytest.raises(SidecarInvalid):
                await recovered(custody, officer, foreign[2], wrapped_dek=wrapped)

    @pytest.mark.parametrize("place", [0, 11, 12, 43, 44, 59])
    async def test_an_altered_one_opens_nothing(self, custody: Custody, officer: Person, job: Job, place: int) -> None:
        _, wrapped, record = await kept(job)
        altered = bytearray(wrapped)
        altered[place] ^= 1 << place % 8
        with pytest.raises(SidecarInvalid):
            await recovered(custody, officer, record, wrapped_dek=bytes(altered))

    async def test_a_record_without_originals_takes_no_wrapped_key(
        self, custody: Custody, app: Person, officer: Person, job: Job
    ) -> None:
        _, wrapped, _ = await kept(job)
        _, record = await anonymized(custody, app)
        with pytest.raises(SidecarInvalid):
            await recovered(custody, officer, record, wrapped_dek=wrapped)

    async def test_trying_sidecars_locks_the_officer_out(self, custody: Custody, officer: Person, job: Job) -> None:
        _, wrapped, record = await kept(job)
        for _ in range(5):
            with pytest.raises(SidecarInvalid):
                await recovered(custody, officer, record, wrapped_dek=wrapped[::-1])
        with pytest.raises(RateLimited):
            await recovered(custody, officer, record, wrapped_dek=wrapped)

    async def test_who_anonymizes_opens_nothing(self, custody: Custody, app: Person, job: Job) -> None:
        _, wrapped, record = await kept(job)
        again = await job_for(custody, app, "anonymize")
        for wish in ({"record": record}, {"nonces": again.nonces()}):
            with pytest.raises(InvalidRequest):
                await again.redeem(wrapped_dek=wrapped, purpose="none", **wish)

    async def test_a_lease_to_recover_draws_no_data_key(self, custody: Custody, officer: Person, job: Job) -> None:
        _, _, record = await kept(job)
        with pytest.raises(InvalidRequest):
            await recovered(custody, officer, record, forensic=True)

    async def test_one_attempt_opens_the_sidecar_or_draws_a_likeness(
        self, custody: Custody, officer: Person, job: Job
    ) -> None:
        _, wrapped, record = await kept(job)
        recovery = await job_for(custody, officer, "recover")
        await recovery.redeem(record=record, purpose="court order 17", wrapped_dek=wrapped)
        with pytest.raises(LeaseRefused):
            await recovery.redeem(record=record, purpose="court order 17")

    async def test_a_disabled_key_opens_nothing(
        self, custody: Custody, custodian: Person, officer: Person, job: Job, key: KeyState
    ) -> None:
        dek, wrapped, record = await kept(job)
        await custody.keys.disable(custodian.caller, key.key_id)
        with pytest.raises(SecretKeyDisabled):
            await recovered(custody, officer, record, wrapped_dek=wrapped)
        await custody.keys.enable(custodian.caller, key.key_id)
        assert await recovered(custody, officer, record, wrapped_dek=wrapped) == dek

    async def test_destroying_the_key_shreds_the_originals(
        self,
        custody: Custody,
        custodian: Person,
        second_custodian: Person,
        officer: Person,
        job: Job,
        key: KeyState,
        clock: Clock,
        redis: Redis,
    ) -> None:
        _, wrapped, record = await kept(job)
        for who in (custodian, second_custodian):
            await custody.keys.destroy(who.caller, key.key_id, reason="the case is closed")
        clock.advance(GRACE_DAYS * 86400 + 1)
        await custody.sweep()
        with pytest.raises(SecretKeyNotFound):
            await recovered(custody, officer, record, wrapped_dek=wrapped)
        assert not list(redis.scan_iter(f"*:sec:{key.key_id}:*"))


class TestOverHttp:
    async def test_a_key_allows_it_only_where_its_custodian_said_so(self, http: Http, custodian: Person) -> None:
        plain = (await http.post("/v1/keys", custodian, json={})).json()
        assert plain["purposes"] == ["anonymize", "recover"]
        asked = {"purposes": ["anonymize", "recover", "forensic"]}
        assert (await http.post("/v1/keys", custodian, json=asked)).json()["purposes"] == sorted(asked["purposes"])

    async def test_the_door_gives_octets_and_takes_the_wrapped_key(
        self, custody: Custody, door: Http, officer: Person, job: Job
    ) -> None:
        def body(of: Job, **other: Any) -> dict[str, Any]:
            context = of.context.signed(custody.internal_secret)
            return {"context": context, "attempt": 1, "unit": 0, "dim": DIM, **MODEL, **other}

        path = f"/internal/leases/{job.lease}/redeem"
        answer = await door.knock(path, body(job, nonces=list(job.nonces()), forensic=True), custody.now())
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
        dek, wrapped, _ = taken_apart(bytearray(answer.content))
        record = await job.seal(faces=forensic_faces(job))
        recovery = await job_for(custody, officer, "recover")
        path = f"/internal/leases/{recovery.lease}/redeem"
        wish = body(recovery, record=record, purpose="court order 17")
        for bad in ("", "00", "zz" * WRAPPED_DEK_BYTES, wrapped.hex() + "00"):
            answer = await door.knock(path, {**wish, "wrapped_dek": bad}, custody.now())
            assert answer.json()["code"] == "invalid_request"
        answer = await door.knock(path, {**wish, "wrapped_dek": wrapped.hex()}, custody.now())
        assert answer.content == dek
