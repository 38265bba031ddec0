"""The HTTP routes of custody: T2, T10, T20, T21, T24, and that no answer holds key material."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gateway.custody.schemas import AuditPage, RecordKeys, SecretKey, SecretKeyList
from gateway.custody.service import Custody
from shared.problems import RecordInvalid, ScopeMissing
from tests.gateway.custody.support import (
    Http,
    Person,
    anonymized,
    break_trail,
    events,
    job_for,
    person,
    public_app,
)

pytestmark = pytest.mark.anyio
STEPS = ("rotate", "disable", "enable", "cancel-destroy")
UNKNOWN = "key_" + "0" * 26


@pytest.fixture
async def key_id(http: Http, custodian: Person) -> str:
    answer = await http.post("/v1/keys", custodian, json={"label": "archive", "default": True})
    assert answer.status_code == 201
    made: str = answer.json()["key_id"]
    return made


class TestKeys:
    async def test_a_new_key_is_described_and_never_shown(
        self, http: Http, custodian: Person, custody: Custody
    ) -> None:
        answer = await http.post("/v1/keys", custodian, json={"label": "archive", "purposes": ["recover"]})
        assert answer.status_code == 201
        assert answer.headers["cache-control"] == "no-store"
        body = answer.json()
        assert set(body) == set(SecretKey.model_fields)
        assert (body["state"], body["key_version"], body["label"]) == ("active", 1, "archive")
        assert (body["purposes"], body["default"], body["created_by"]) == (["recover"], False, custodian.principal.id)
        state = await custody.keys.get("acme", body["key_id"])
        async with custody._opener.open(state, 1, "recover") as secret:
            for shown in (secret.octets.hex(), base64.b64encode(secret.octets).decode()):
                assert shown not in answer.text

    async def test_its_whole_life_over_http(
        self, http: Http, custodian: Person, second_custodian: Person, key_id: str
    ) -> None:
        path = f"/v1/keys/{key_id}"
        assert (await http.get(path, custodian)).json()["default"] is True
        assert (await http.post(f"{path}/rotate", custodian)).json()["key_version"] == 2
        assert (await http.post(f"{path}/disable", custodian)).json()["state"] == "disabled"
        assert (await http.post(f"{path}/rotate", custodian)).status_code == 409
        assert (await http.post(f"{path}/enable", custodian)).json()["state"] == "active"
        asked = await http.post(f"{path}/destroy", custodian, json={"reason": "erasure", "grace_days": 7})
        assert asked.json()["state"] == "pending_destroy"
        alone = await http.post(f"{path}/destroy", custodian, json={"reason": "erasure"})
        assert (alone.status_code, alone.json()["code"]) == (409, "key_conflict")
        confirmed = await http.post(f"{path}/destroy", second_custodian, json={"reason": "checked"})
        assert confirmed.json()["destroy_approved_by"] == second_custodian.principal.id
        assert (await http.post(f"{path}/cancel-destroy", custodian)).json()["state"] == "disabled"
        assert [key["key_id"] for key in (await http.get("/v1/keys", custodian)).json()["keys"]] == [key_id]

    async def test_a_custodian_without_the_trail_gets_503(
        self, http: Http, custodian: Person, key_id: str, home: Path
    ) -> None:
        break_trail(home)
        for path in ("/v1/keys", f"/v1/keys/{key_id}/disable", f"/v1/keys/{key_id}/rotate"):
            answer = await http.post(path, custodian, json={})
            assert (answer.status_code, answer.json()["code"]) == (503, "audit_unavailable")

    @pytest.mark.parametrize(
        "body",
        [
            {"label": "x" * 201},
            {"purposes": []},
            {"purposes": ["export"]},
            {"not_after": "2020-01-01T00:00:00Z"},
            {"not_after": "2099-01-01T00:00:00"},
            {"secret": "00" * 32},
        ],
    )
    async def test_a_body_that_is_not_right_is_refused(self, http: Http, custodian: Person, body: Any) -> None:
        assert (await http.post("/v1/keys", custodian, json=body)).status_code == 422

    @pytest.mark.parametrize(
        "body", [{}, {"reason": ""}, {"reason": "x", "grace_days": 6}, {"reason": "x", "grace_days": 31}]
    )
    async def test_destroying_takes_a_reason_and_a_grace_period(
        self, http: Http, custodian: Person, key_id: str, body: Any
    ) -> None:
        assert (await http.post(f"/v1/keys/{key_id}/destroy", custodian, json=body)).status_code == 422
        assert (await http.get(f"/v1/keys/{key_id}", custodian)).json()["state"] == "active"


class TestIdempotencyKey:
    """T10."""

    async def test_repeated_it_answers_with_the_same_key(self, http: Http, custodian: Person) -> None:
        headers = {"idempotency-key": "order 7"}
        first, again = [await http.post("/v1/keys", custodian, json={}, headers=dict(headers)) for _ in range(2)]
        assert first.json()["key_id"] == again.json()["key_id"]
        other = await http.post("/v1/keys", custodian, json={"label": "b"}, headers=dict(headers))
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")

    @pytest.mark.parametrize("value", ["", "x" * 256, "tab\there"])
    async def test_a_malformed_one_is_refused(self, http: Http, custodian: Person, value: str) -> None:
        answer = await http.post("/v1/keys", custodian, json={}, headers={"idempotency-key": value})
        assert (answer.status_code, answer.json()["code"]) == (422, "malformed_idempotency_key")


class TestWho:
    async def test_only_custodians_reach_keys_and_only_officers_the_trail(
        self, http: Http, app: Person, officer: Person, custodian: Person, key_id: str, home: Path
    ) -> None:
        for who in (app, officer):
            answers = [await http.get("/v1/keys", who), await http.get(f"/v1/keys/{key_id}", who)]
            answers.append(await http.post("/v1/keys", who, json={}))
            answers += [await http.post(f"/v1/keys/{key_id}/{step}", who) for step in STEPS]
            answers.append(await http.post(f"/v1/keys/{key_id}/destroy", who, json={"reason": "x"}))
            assert {(answer.status_code, answer.json()["scope"]) for answer in answers} == {(403, "keys")}
        for who in (app, custodian):
            answer = await http.get("/v1/audit", who)
            assert (answer.status_code, answer.json()["scope"]) == (403, "audit")
        denied = [event["actor"] for event in events(home, "authz.deny")]
        assert set(denied) == {app.principal.id, officer.principal.id, custodian.principal.id}

    async def test_an_app_reaches_nothing_of_recovery(
        self, http: Http, custody: Custody, app: Person, key_id: str
    ) -> None:
        for name in (None, key_id):
            with pytest.raises(ScopeMissing):
                await job_for(custody, app, "recover", key_id=name)
        assert (await http.get("/v1/audit", app)).status_code == 403

    async def test_without_an_api_key_there_is_nothing(self, http: Http, custodian: Person) -> None:
        nobody = Person(custodian.principal, "tf_00000000_" + "A" * 43)
        for path in ("/v1/keys", "/v1/audit"):
            assert (await http.get(path, nobody)).status_code == 401

    async def test_the_public_keys_are_public(self, http: Http, custody: Custody) -> None:
        answer = await http._client.get("/.well-known/tenfold-record-keys.json")
        assert answer.json()["keys"] == custody.records.public_keys()


class TestOtherTenants:
    """T2 and T24: another tenant's key looks like no key, and a tenant is only ever the API key's."""

    async def test_another_tenants_key_an_unknown_one_and_a_malformed_name_look_alike(
        self, http: Http, stranger: Person, key_id: str
    ) -> None:
        bodies = set()
        for name in (key_id, UNKNOWN, "key_x", "nonsense", "key_" + "0" * 25 + "*"):
            answers = [await http.get(f"/v1/keys/{name}", stranger)]
            answers += [await http.post(f"/v1/keys/{name}/{step}", stranger) for step in STEPS]
            answers.append(await http.post(f"/v1/keys/{name}/destroy", stranger, json={"reason": "x"}))
            assert {answer.status_code for answer in answers} == {404}
            bodies |= {answer.text for answer in answers}
        assert len(bodies) == 1
        assert (await http.get("/v1/keys", stranger)).json() == {"keys": []}

    async def test_a_destroyed_key_looks_like_it_too(
        self, http: Http, custody: Custody, custodian: Person, second_custodian: Person, key_id: str, clock: Any
    ) -> None:
        await custody.keys.destroy(custodian.caller, key_id, reason="x")
        await custody.keys.destroy(second_custodian.caller, key_id, reason="x")
        clock.advance(15 * 86400)
        await custody.sweep()
        gone, unknown = [await http.get(f"/v1/keys/{name}", custodian) for name in (key_id, UNKNOWN)]
        assert (gone.status_code, gone.text) == (404, unknown.text)

    @pytest.mark.parametrize("where", ["body", "header", "query"])
    async def test_a_request_that_names_another_tenant_is_refused_and_audited(
        self, http: Http, custodian: Person, where: str, home: Path
    ) -> None:
        options: dict[str, Any] = {"json": {"tenant": "other"} if where == "body" else {}}
        options |= {"headers": {"x-tenfold-tenant": "other"}} if where == "header" else {}
        options |= {"params": {"tenant": "other"}} if where == "query" else {}
        answer = await http.post("/v1/keys", custodian, **options)
        assert (answer.status_code, answer.json()["code"]) == (403, "tenant_mismatch")
        [entry] = events(home, "authz.deny")
        assert (entry["tenant"], entry["reason"]) == ("acme", "tenant_mismatch")
        assert (await http.get("/v1/keys", custodian)).json() == {"keys": []}

    async def test_its_own_name_is_no_offence(self, http: Http, custodian: Person) -> None:
        answer = await http.post("/v1/keys", custodian, json={"tenant": "acme"}, params={"tenant": "acme"})
        assert answer.status_code == 201


class TestAudit:
    async def test_an_officer_reads_its_tenants_entries_page_by_page(
        self, http: Http, custody: Custody, officer: Person, custodian: Person, stranger: Person, key_id: str
    ) -> None:
        await http.post("/v1/keys", stranger, json={})
        await custody.sweep()
        seen, after = [], -1
        while True:
            page = (await http.get("/v1/audit", officer, params={"after": after, "limit": 3})).json()
            if not page["entries"]:
                break
            seen += [json.loads(entry["event"]) for entry in page["entries"]]
            after = page["next_after"]
            if seen[-1]["action"] == "audit.read":
                break
        assert {event["tenant"] for event in seen} == {"acme"}
        assert [event["seq"] for event in seen] == sorted(event["seq"] for event in seen)
        assert {"principal.create", "key.create", "audit.read"} <= {event["action"] for event in seen}
        assert page["checkpoint"]["sig"]["kid"] == custody.records.public_keys()[0]["kid"]

    async def test_reading_is_audited(self, http: Http, officer: Person, home: Path) -> None:
        await http.get("/v1/audit", officer)
        assert events(home, "audit.read")[0]["actor"] == officer.principal.id

    @pytest.mark.parametrize("query", [{"after": -2}, {"after": 2**53}, {"limit": 0}, {"limit": 1001}, {"after": "x"}])
    async def test_a_page_has_bounds(self, http: Http, officer: Person, query: Any) -> None:
        assert (await http.get("/v1/audit", officer, params=query)).status_code == 422


class TestSchema:
    def test_no_answer_has_a_field_for_key_material(self) -> None:
        allowed: dict[type[BaseModel], set[str]] = {
            SecretKey: {
                *("key_id", "key_version", "state", "label", "purposes", "default", "created_at", "created_by"),
                *("not_after", "destroy_at", "destroy_requested_by", "destroy_approved_by"),
            },
            SecretKeyList: {"keys"},
            AuditPage: {"entries", "next_after", "checkpoint"},
            RecordKeys: {"keys"},
        }
        for model, fields in allowed.items():
            assert set(model.model_fields) == fields

    async def test_the_published_interface_takes_and_gives_no_secret(self, custody: Custody) -> None:
        document = public_app(custody).openapi()
        assert not [path for path in document["paths"] if path.startswith("/internal")]
        names = {name for schema in document["components"]["schemas"].values() for name in schema.get("properties", {})}
        assert not [name for name in names if any(word in name for word in ("secret", "kek", "octets", "material"))]

    async def test_the_published_keys_hold_no_private_part(self, custody: Custody) -> None:
        assert all("d" not in key for key in custody.records.public_keys())


async def test_another_request_id_than_a_sane_one_is_not_written_down(
    http: Http, custodian: Person, home: Path
) -> None:
    await http.post("/v1/keys", custodian, json={}, headers={"x-request-id": "req_12345678"})
    await http.post("/v1/keys", custodian, json={}, headers={"x-request-id": 'evil"}\n'.strip() + " x"})
    assert [event.get("request_id") for event in events(home, "key.create")] == ["req_12345678"] * 2 + [None] * 2


async def test_two_tenants_pictures_never_meet(custody: Custody, app: Person, key_id: str) -> None:
    _, record = await anonymized(custody, app)
    other = await person(custody, "officer", "other")
    job = await job_for(custody, other, "recover")
    with pytest.raises(RecordInvalid):
        await job.redeem(record=record, purpose="x")
