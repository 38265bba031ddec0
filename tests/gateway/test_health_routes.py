from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.door import create_door
from shared.api import create_app
from shared.context import DOOR_HEADER, CallContext, door_signature
from tests.diagnostic.service import service
from tests.gateway.echo import Echo
from tests.gateway.house import House, house
from tests.gateway.serving import served
from tests.gateway.test_edge import problem
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def gateway(server: RedisServer, home: Path) -> AsyncIterator[House]:
    mounted = house(server, home, lambda runtime: {"diagnostic": create_app(service, runtime), "echo": Echo()})
    async with mounted as gateway:
        yield gateway


@pytest.fixture
async def nobody(gateway: House) -> httpx.AsyncClient:
    """Probes have no API key."""
    return await gateway.client()


async def test_a_process_that_runs_is_live(nobody: httpx.AsyncClient) -> None:
    assert (await nobody.get("/healthz")).json() == {"status": "live"}


async def test_a_gateway_whose_parts_answer_is_ready(nobody: httpx.AsyncClient) -> None:
    ready = (await nobody.get("/readyz")).json()
    assert ready["checks"] == {"gateway": "ok", "broker": "ok", "custody": "ok", "files": "ok"}
    assert ready["unavailable_methods"] == []


async def test_a_gateway_without_its_redis_is_live_and_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.health.CHECK_S", 0.3)
    with RedisServer(tmp_path / "redis") as own:
        async with house(own, tmp_path, {"echo": Echo()}) as gateway:
            api, nobody = await gateway.api(), await gateway.client()
            assert (await nobody.get("/readyz")).status_code == 200
            own.kill()
            response = await nobody.get("/readyz")
            checks = problem(response, 503, "service_unavailable")["checks"]
            assert (checks["broker"], checks["custody"]) == ("failed", "failed")
            assert int(response.headers["retry-after"]) >= 1
            assert (await nobody.get("/healthz")).status_code == 200
            assert (await nobody.get("/metrics")).status_code == 200
            problem(await api.get("/v1/jobs"), 503, "service_unavailable")
            own.start()
            assert (await nobody.get("/readyz")).status_code == 200


async def test_metrics_count_requests_by_route_and_never_name_a_tenant(
    gateway: House, nobody: httpx.AsyncClient
) -> None:
    api = await gateway.api("app", "secretive-tenant")
    for _ in range(3):
        await api.post("/v1/echo/mirror", content=b"12345")
    await api.post("/v1/echo/made-up-by-the-caller")
    await api.get("/v1/jobs/made-up-by-the-caller")
    await api.request("MADEUP", "/v1/jobs")
    text = (await nobody.get("/metrics")).text
    counted = {
        tuple(sample.labels[name] for name in ("route", "http_method", "status")): sample.value
        for family in text_string_to_metric_families(text)
        if family.name == "tenfold_gateway_requests"
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert counted["/v1/echo/mirror", "POST", "200"] == 3
    assert counted["/v1/jobs/{job_id}", "GET", "404"] == 1
    assert "secretive" not in text
    assert "made-up" not in text
    assert "MADEUP" not in text
    assert any(verb == "other" for _, verb, _ in counted)


async def test_metrics_show_what_waits_for_every_method(gateway: House, nobody: httpx.AsyncClient) -> None:
    api = await gateway.api()
    before = await waiting(nobody)
    await api.post("/v1/diagnostic/noop", json={}, headers={"Prefer": "respond-async"})
    assert await waiting(nobody) == before + 1


async def test_metrics_show_what_the_mounted_services_count(gateway: House, nobody: httpx.AsyncClient) -> None:
    api = await gateway.api()
    await api.post("/v1/diagnostic/noop", json={}, headers={"Prefer": "wait=0, respond-async"})
    await api.post("/v1/diagnostic/noop", json={}, headers={"Prefer": "wait=1"})  # nobody serves it
    text = (await nobody.get("/metrics")).text
    assert 'tenfold_service_requests_total{method="diagnostic",operation="noop",status="202"}' in text
    assert 'tenfold_service_refusals_total{code="no_worker",method="diagnostic"}' in text
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)), "a series is shown twice"


async def test_the_janitor_says_what_the_file_store_holds(gateway: House, nobody: httpx.AsyncClient) -> None:
    await (await gateway.api()).post("/v1/files", content=b"12345", headers={"Content-Type": "text/plain"})
    gateway.runtime._sweep()
    held = gateway.runtime.files.census()  # afterwards: what other tests left may have been over
    assert held is not None
    assert held.bytes > 5
    families = text_string_to_metric_families((await nobody.get("/metrics")).text)
    shown = {sample.name: sample.value for family in families for sample in family.samples}
    assert (shown["tenfold_file_bytes"], shown["tenfold_files"]) == (held.bytes, held.count)


async def waiting(nobody: httpx.AsyncClient) -> float:
    for family in text_string_to_metric_families((await nobody.get("/metrics")).text):
        for sample in family.samples:
            if sample.name == "tenfold_jobs" and sample.labels == {"method": "diagnostic", "state": "queued"}:
                return sample.value
    raise AssertionError("no series of waiting jobs")


class TestMethods:
    async def test_are_listed_with_their_operations_and_numbers(self, gateway: House) -> None:
        listed = {one["method"]: one for one in (await (await gateway.api()).get("/v1/methods")).json()["methods"]}
        assert listed.keys() == {"diagnostic", "echo"}
        diagnostic = listed["diagnostic"]
        assert {one["name"] for one in diagnostic["operations"]} == service.operations.keys()
        assert diagnostic["live"]["workers"] == 0
        assert diagnostic["available"] is True

    async def test_one_is_read_by_its_name(self, gateway: House) -> None:
        api = await gateway.api("custodian")
        one = (await api.get("/v1/methods/diagnostic")).json()
        assert one["operations"][0]["request_schema"]["properties"]

    async def test_an_unknown_one_is_answered_with_those_there_are(self, gateway: House) -> None:
        body = problem(await (await gateway.api()).get("/v1/methods/nothing"), 404, "method_not_found")
        assert body["methods"] == ["diagnostic", "echo"]

    async def test_need_an_api_key(self, nobody: httpx.AsyncClient) -> None:
        problem(await nobody.get("/v1/methods"), 401, "api_key_missing")


class TestTheInternalDoor:
    @pytest.fixture
    async def door(self, gateway: House) -> AsyncIterator[httpx.AsyncClient]:
        async with served(create_door(gateway.custody)) as url, httpx.AsyncClient(base_url=url) as client:
            yield client

    async def test_opens_to_the_internal_secret_alone(self, gateway: House, door: httpx.AsyncClient) -> None:
        principal, api_key = await gateway.principal("officer")
        secret = gateway.settings.internal_secret.get_secret_value()
        context = CallContext("acme", principal.id, ("verify",), "echo", "hide", "job_1", "req_1", time.time() + 60)
        path, body = "/internal/records/check", json.dumps({"context": context.signed(secret), "record": {}}).encode()
        problem(await door.post(path, content=body), 403, "call_not_signed")
        with_key = {"Authorization": f"Bearer {api_key}"}
        problem(await door.post(path, content=body, headers=with_key), 403, "call_not_signed")
        signed = {DOOR_HEADER: door_signature(secret, path, body, time.time())}
        response = await door.post(path, content=body, headers=signed)
        assert response.json()["valid"] is False, response.text

    async def test_has_nothing_of_the_public_door(self, door: httpx.AsyncClient) -> None:
        assert (await door.get("/healthz")).json() == {"status": "live"}
        for path in ("/v1/jobs", "/v1/keys", "/openapi.json", "/docs"):
            problem(await door.get(path), 404, "route_not_found")

    async def test_is_not_part_of_the_public_door(self, nobody: httpx.AsyncClient) -> None:
        for path in ("/internal/records/check", "/internal/leases/x/redeem"):
            problem(await nobody.post(path), 404, "route_not_found")

    async def test_refuses_a_body_that_no_worker_sends(self, door: httpx.AsyncClient) -> None:
        problem(await door.post("/internal/records/check", content=bytes(5 * 2**20)), 413, "body_too_large")
