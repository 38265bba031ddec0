"""The internal door over HTTP: signatures, contexts, octets; and what a worker may not do there."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.custody import door as door_module
from gateway.custody.service import Custody
from shared.context import DOOR_HEADER, door_signature
from tests.gateway.custody.support import (
    DIM,
    INTERNAL_SECRET,
    MODEL,
    Clock,
    Http,
    Job,
    Person,
    draft_of,
    events,
    job_for,
    key_for,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def job(custody: Custody, custodian: Person, app: Person) -> Job:
    await key_for(custody, custodian, default=True)
    return await job_for(custody, app, "anonymize")


def path(job: Job, what: str) -> str:
    return f"/internal/leases/{job.lease}/{what}"


def wish(job: Job, **other: Any) -> dict[str, Any]:
    context = job.context.signed(INTERNAL_SECRET)
    return {"context": context, "attempt": 1, "unit": 0, "dim": DIM, "nonces": list(job.nonces()), **MODEL, **other}


class TestAnswers:
    async def test_image_keys_come_as_octets_that_nobody_keeps(self, door: Http, job: Job, clock: Clock) -> None:
        answer = await door.knock(path(job, "redeem"), wish(job), clock())
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-tenfold-valid-s"] == "120"
        assert len(answer.content) == 2 * 4 * DIM
        assert answer.content == await job.redeem()

    async def test_a_file_key_has_32_bytes(self, door: Http, job: Job, custody: Custody, clock: Clock) -> None:
        answer = await door.knock(path(job, "file-key"), {"context": wish(job)["context"]}, clock())
        assert answer.content == await custody.file_key(job.lease)

    async def test_a_record_comes_signed_and_is_found_valid(
        self, door: Http, job: Job, app: Person, custody: Custody, clock: Clock
    ) -> None:
        await door.knock(path(job, "redeem"), wish(job), clock())
        body = {"context": wish(job)["context"], "attempt": 1, "unit": 0, "draft": draft_of(job.nonces())}
        record = (await door.knock(path(job, "seal"), body, clock())).json()
        verifying = await job_for(custody, app, "verify")
        asked = {"context": verifying.context.signed(INTERNAL_SECRET), "record": record}
        answer = (await door.knock("/internal/records/check", asked, clock())).json()
        assert (answer["valid"], answer["own_tenant"]) == (True, True)

    async def test_a_refusal_is_a_problem(self, door: Http, job: Job, clock: Clock) -> None:
        for _ in range(3):
            await door.knock(path(job, "redeem"), wish(job), clock())
        answer = await door.knock(path(job, "redeem"), wish(job), clock())
        assert (answer.status_code, answer.json()["code"]) == (409, "lease_expired")


class TestSignatures:
    async def test_a_call_without_the_internal_secret_is_refused(self, door: Http, job: Job, clock: Clock) -> None:
        for answer in (
            await door.knock(path(job, "redeem"), wish(job), clock(), secret=INTERNAL_SECRET[::-1]),
            await door._client.post(path(job, "redeem"), json=wish(job)),
            await door.knock(path(job, "redeem"), wish(job), clock() - 61),
            await door.knock(path(job, "redeem"), wish(job), clock() + 61),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, "call_not_signed")

    async def test_a_signature_counts_for_one_path_and_body(self, door: Http, job: Job, clock: Clock) -> None:
        header = {DOOR_HEADER: door_signature(INTERNAL_SECRET, path(job, "file-key"), b"{}", clock())}
        for where, body in ((path(job, "redeem"), b"{}"), (path(job, "file-key"), b"{ }")):
            answer = await door._client.post(where, content=body, headers=header)
            assert answer.json()["code"] == "call_not_signed"

    @pytest.mark.parametrize("header", ["", "x", "nan.00", "1e400.00", "é"])
    async def test_junk_is_refused(self, door: Http, job: Job, header: str) -> None:
        answer = await door._client.post(path(job, "redeem"), json={}, headers={DOOR_HEADER.encode(): header.encode()})
        assert answer.json()["code"] == "call_not_signed"

    async def test_a_context_that_the_gateway_did_not_sign_is_refused(self, door: Http, job: Job, clock: Clock) -> None:
        forged = replace(job.context, principal="prn_" + "0" * 26).signed("another-secret")
        for context in (forged, "", "a.b", job.context.signed(INTERNAL_SECRET)[:-1]):
            answer = await door.knock(path(job, "redeem"), wish(job, context=context), clock())
            assert (answer.status_code, answer.json()["code"]) == (403, "call_not_signed")

    async def test_an_expired_context_is_refused(self, door: Http, job: Job, clock: Clock) -> None:
        clock.advance(3601)
        answer = await door.knock(path(job, "redeem"), wish(job), clock())
        assert (answer.status_code, answer.json()["code"]) == (403, "call_not_signed")

    async def test_another_jobs_context_is_refused_and_audited(
        self, door: Http, custody: Custody, app: Person, job: Job, clock: Clock, home: Path
    ) -> None:
        other = await job_for(custody, app, "anonymize")
        answer = await door.knock(path(job, "redeem"), wish(other), clock())
        assert (answer.status_code, answer.json()["code"]) == (403, "lease_refused")
        assert events(home, "lease.redeem")[-1]["reason"] == "lease_refused"


class TestBodies:
    @pytest.mark.parametrize(
        "other",
        [
            {"attempt": 0},
            {"attempt": "1"},
            {"unit": -1},
            {"unit": 1.0},
            {"dim": 0},
            {"dim": 2041},
            {"key_scheme": "v3"},
            {"model": ""},
            {"nonces": [5]},
            {"secret": "x"},
            {"context": 5},
        ],
    )
    async def test_a_wish_that_is_not_right_is_refused(
        self, door: Http, job: Job, clock: Clock, other: dict[str, Any]
    ) -> None:
        answer = await door.knock(path(job, "redeem"), wish(job, **other), clock())
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")

    async def test_a_fraction_in_a_draft_is_refused(self, door: Http, job: Job, clock: Clock) -> None:
        await door.knock(path(job, "redeem"), wish(job), clock())
        faces = [{"nonce": nonce, "matrix": [1.5]} for nonce in job.nonces()]
        body = {"context": wish(job)["context"], "attempt": 1, "unit": 0, "draft": draft_of(job.nonces(), faces=faces)}
        answer = await door.knock(path(job, "seal"), body, clock())
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert "string" in answer.json()["detail"]

    async def test_what_was_wrong_is_not_repeated(self, door: Http, job: Job, clock: Clock) -> None:
        answer = await door.knock(path(job, "redeem"), wish(job, nonces=["sensitive-value", 5]), clock())
        assert "sensitive-value" not in answer.text

    async def test_broken_json_is_refused(self, door: Http, job: Job, clock: Clock) -> None:
        header = {DOOR_HEADER: door_signature(INTERNAL_SECRET, path(job, "redeem"), b"{", clock())}
        answer = await door._client.post(path(job, "redeem"), content=b"{", headers=header)
        assert answer.json()["code"] == "invalid_request"

    async def test_a_body_has_a_limit(
        self, door: Http, job: Job, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(door_module, "BODY_LIMIT_BYTES", 1000)
        answer = await door.knock(path(job, "redeem"), wish(job, model="x" * 1000), clock())
        assert (answer.status_code, answer.json()["limit_bytes"]) == (413, 1000)


def test_every_problem_that_the_door_may_answer_with_is_known_to_the_worker() -> None:
    """A worker imports nothing of the gateway: what was defined there would reach the caller as a failure of ours."""
    code = (
        "import gateway.custody.redeeming, gateway.custody.sealing, sys, json;"
        "from shared.problems import Problem;"
        "print(json.dumps({p.code: p.__module__ for p in Problem.known.values()}))"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    elsewhere = {code for code, module in json.loads(answer.stdout).items() if module.startswith("gateway.custody")}
    assert elsewhere <= {"not_durable"}, "the door commits nothing that a worker asks for"
