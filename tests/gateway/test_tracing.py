"""A request as operators see it: one trace through gateway, service, queue, worker and custody, in a real collector."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.custody.secretkeys import Caller, NewKey
from gateway.door import create_door
from shared import tracing
from tests.collector import Collector, Seen
from tests.conftest import broker_server
from tests.gateway.custody.leaks import leaks
from tests.gateway.house import House, house
from tests.gateway.serving import served
from tests.redis_server import RedisServer, free_port
from tests.stack import SECRET, Stack

pytestmark = pytest.mark.anyio

TENANT = "tenant-of-the-trace"
RUN = "run diagnostic/"


@dataclass(frozen=True)
class Installation:
    """A gateway in this process, an API and a worker in theirs, and where their spans go."""

    gateway: House
    stack: Stack
    collector: Collector
    metrics_port: int
    key_id: str

    async def call(self, operation: str, **kwargs: Any) -> tuple[httpx.Response, str]:
        """A call that is a part of the caller's own trace; that trace's id."""
        trace_id = secrets.token_hex(16)
        headers = {"traceparent": f"00-{trace_id}-{CALLER}-01", **kwargs.pop("headers", {})}
        api = await self.gateway.api("app", TENANT)
        return await api.post(f"/v1/diagnostic/{operation}", headers=headers, **kwargs), trace_id

    async def trace(self, trace_id: str) -> list[Seen]:
        """The trace once an attempt has ended and every process has told its part."""

        def is_there(spans: list[Seen]) -> bool:
            names = [one.name for one in spans]
            counts = [sum(name.startswith(kind) for name in names) for kind in (RUN, "POST /v1/", "diagnostic/")]
            return counts == [1, 1, 1]

        return await asyncio.to_thread(self.collector.until, trace_id, is_there)

    async def worker_series(self) -> dict[tuple[str, ...], float]:
        """The worker's own page: name and sorted label values."""
        async with httpx.AsyncClient() as client:
            return samples((await client.get(f"http://127.0.0.1:{self.metrics_port}/metrics")).text)


CALLER = "00f067aa0ba902b7"


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
async def installed(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    home = tmp_path_factory.mktemp("home")
    with (
        Collector() as collector,
        broker_server(tmp_path_factory.mktemp("broker")) as broker,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in collector.environment.items():
            patch.setenv(name, value)
        stack = Stack(broker, home, **collector.environment)
        settings = {
            "services": f"diagnostic=http://127.0.0.1:{stack.port}",
            "broker_url": broker.url,
            "internal_secret": SECRET,
            "custody_url": server.url.removesuffix("/0") + "/2",
        }
        async with contextlib.AsyncExitStack() as opened:
            opened.callback(stack.close)
            opened.enter_context(tracing.exported("tenfold-gateway"))
            gateway = await opened.enter_async_context(house(server, home, {}, **settings))
            app = create_door(gateway.custody, gateway.app.state.parts.metrics)
            door, port = await opened.enter_async_context(served(app)), free_port()
            custodian, _ = await gateway.principal("custodian", TENANT)
            key = await gateway.custody.keys.create(Caller(custodian), NewKey(default=True))
            await asyncio.to_thread(stack.start, "api", TENFOLD_DOOR_URL=door)
            await asyncio.to_thread(stack.start, "worker", TENFOLD_DOOR_URL=door, TENFOLD_METRICS_PORT=str(port))
            yield Installation(gateway, stack, collector, port, key.key_id)


def parents(spans: list[Seen]) -> list[tuple[str, str]]:
    """Each span's name with that of its parent, which is unknown if it died with its process."""
    names = {one.span_id: one.name for one in spans} | {CALLER: "the caller"}
    return [(one.name, names.get(one.parent_id, "unknown")) for one in spans]


async def test_a_call_is_one_trace_through_every_process(installed: Installation, png: bytes) -> None:
    response, trace_id = await installed.call(
        "veil", files={"image": ("a.png", png, "image/png")}, params={"key": installed.key_id}
    )
    assert response.status_code == 200, response.text
    spans = await installed.trace(trace_id)
    door, run = "POST /internal/leases/{lease}/", f"{RUN}veil"
    spans = [one for one in spans if one.name != "load"]  # of the first call alone
    assert sorted(parents(spans)) == sorted(
        [
            ("POST /v1/diagnostic/veil", "the caller"),
            ("open_lease", "POST /v1/diagnostic/veil"),
            ("diagnostic/veil", "POST /v1/diagnostic/veil"),
            (f"{door}file-key", "diagnostic/veil"),
            ("read", "diagnostic/veil"),
            ("enqueue", "diagnostic/veil"),
            ("queue", "enqueue"),
            (run, "enqueue"),
            ("fetch", run),
            ("file_key", "fetch"),
            (f"{door}file-key", "file_key"),
            ("decode", run),
            ("batch", run),
            ("compute", run),
            ("redeem", "compute"),
            (f"{door}redeem", "redeem"),
            ("encode", run),
            ("finish", run),
        ]
    )
    assert {one.service for one in spans} == {"tenfold-gateway", "diagnostic-api", "diagnostic-worker"}
    assert not any(one.failed for one in spans)
    by_name = {one.name: one for one in spans}
    stages = [by_name[name] for name in ("fetch", "decode", "batch", "compute", "encode", "finish")]
    assert all(one.began >= by_name[run].began and one.ended <= by_name[run].ended for one in stages)
    assert [one.began for one in stages] == sorted(one.began for one in stages)
    asked = by_name["POST /v1/diagnostic/veil"].attributes
    assert asked["tenfold.request_id"] == response.headers["x-request-id"]
    assert by_name[run].attributes["tenfold.job_id"] == response.json()["id"]
    assert by_name[run].attributes["tenfold.outcome"] == "succeeded"


async def test_logs_of_every_process_name_the_trace(installed: Installation) -> None:
    response, trace_id = await installed.call("noop", json={})
    await installed.trace(trace_id)
    lines = [json.loads(line) for line in installed.stack.log.read_text().splitlines() if line.startswith("{")]
    named = {line["event"]: line for line in lines if line.get("trace_id") == trace_id}
    assert named.keys() >= {"job.created", "job.attempted"}
    assert {line["request_id"] for line in named.values()} == {response.headers["x-request-id"]}


async def test_a_failed_job_is_a_failed_span_with_its_code(installed: Installation) -> None:
    response, trace_id = await installed.call("fail", json={"how": "problem"})
    assert response.status_code == 422
    (run,) = [one for one in await installed.trace(trace_id) if one.name.startswith(RUN)]
    assert (run.failed, run.attributes["error.type"]) == (True, "diagnostic_refused")


async def test_a_bad_traceparent_begins_a_trace_of_its_own(installed: Installation) -> None:
    bad = f"00-{'0' * 32}-{CALLER}-01"
    response, _ = await installed.call("noop", json={}, headers={"traceparent": bad})
    record = installed.stack.record(response.json()["id"])
    spans = await installed.trace(tracing.trace_id(record["traceparent"]))
    assert [one.name for one in spans if not one.parent_id] == ["POST /v1/diagnostic/noop"]


async def test_no_secret_and_no_name_of_a_key_reaches_the_collector(installed: Installation, png: bytes) -> None:
    _, api_key = await installed.gateway.principal("app", TENANT)
    _, trace_id = await installed.call("veil", files={"image": ("a.png", png)}, params={"key": installed.key_id})
    # Kept in the record of a job with a lease, which `veil` is and `noop` is not.
    call = installed.stack.redis.hget(f"tf:diagnostic:job:{await last_job(installed)}", "call")
    assert call
    await installed.call("noop", json={"text": "words of the caller"})
    await installed.trace(trace_id)
    settings = installed.gateway.settings
    hidden = {
        "API key": api_key.encode(),
        "API key's secret": api_key[-32:].encode(),
        "internal secret": settings.internal_secret.get_secret_value().encode(),
        "pepper": settings.api_key_pepper.get_secret_value().encode(),
        "signed call": str(call).encode(),
        "name of the key": installed.key_id.encode(),
        "name of the tenant": TENANT.encode(),
        "words of the caller": b"words of the caller",
        "picture": png,
    }
    sent = list(enumerate(installed.collector.bodies))
    assert leaks(hidden, ((f"batch {number}", body) for number, body in sent)) == []
    assert leaks({"a route": b"/v1/diagnostic/veil"}, ((f"batch {n}", body) for n, body in sent)), (
        "nothing was looked at"
    )


async def last_job(installed: Installation) -> str:
    listed: Any = installed.stack.redis.zrange(f"tf:diagnostic:tenant:{TENANT}", -1, -1)
    return str(listed[0])


class TestSeries:
    async def test_of_the_worker_tell_where_the_time_went(self, installed: Installation, png: bytes) -> None:
        before = await installed.worker_series()
        _, trace_id = await installed.call("veil", files={"image": ("a.png", png)})
        spans = await installed.trace(trace_id)
        after = await installed.worker_series()

        def grew(*name: str) -> float:
            return after[name] - before.get(name, 0.0)

        for stage in ("queue", "fetch", "decode", "batch", "compute", "redeem", "encode", "finish"):
            assert grew("tenfold_job_stage_seconds_count", "diagnostic", stage) == 1, stage
        compute_s = next((one.ended - one.began) / 1e9 for one in spans if one.name == "compute")
        assert grew("tenfold_job_stage_seconds_sum", "diagnostic", "compute") == pytest.approx(compute_s, abs=0.05)
        assert grew("tenfold_job_attempts_total", "diagnostic", "veil", "succeeded") == 1
        assert grew("tenfold_batch_size_sum", "diagnostic") == 1
        assert grew("tenfold_device_seconds_total", "diagnostic") > 0
        assert after["tenfold_models", "diagnostic"] == 1
        assert after["process_resident_memory_bytes",] > 10 * 2**20

    async def test_of_the_gateway_tell_of_jobs_and_custody(self, installed: Installation, png: bytes) -> None:
        nobody = await installed.gateway.client()
        before = samples((await nobody.get("/metrics")).text)
        await installed.call("veil", files={"image": ("a.png", png)})
        stranger = await installed.gateway.api("app", "without-a-key")
        assert (await stranger.post("/v1/diagnostic/veil", files={"image": ("a.png", png)})).status_code == 404
        text = (await nobody.get("/metrics")).text
        after = samples(text)

        def grew(*name: str) -> float:
            return after[name] - before.get(name, 0.0)

        assert grew("tenfold_jobs_ended_total", "diagnostic", "veil", "succeeded") == 1
        assert grew("tenfold_jobs_succeeded_total", "diagnostic") == 1
        assert grew("tenfold_custody_events_total", "lease.open", "allowed", "") == 1
        assert grew("tenfold_custody_events_total", "lease.redeem", "allowed", "") == 1
        assert grew("tenfold_custody_events_total", "lease.open", "denied", "key_not_found") == 1
        assert grew("tenfold_custody_audit_seconds_count") >= 4
        assert grew("tenfold_gateway_request_seconds_count", "/internal/leases/{lease}/redeem") == 1
        assert after["tenfold_workers", "diagnostic"] == 1
        assert not {TENANT, "without-a-key", installed.key_id} & set(text.replace('"', " ").split())


# Last: it costs the module its worker.
async def test_a_second_attempt_and_a_call_that_was_not_waited_for_stay_in_their_trace(installed: Installation) -> None:
    response, trace_id = await installed.call(
        "sleep", json={"seconds": 0.1, "units": 20}, headers={"Prefer": "respond-async"}
    )
    assert response.status_code == 202
    job_id, stack = response.json()["id"], installed.stack
    await asyncio.to_thread(stack.until, lambda: "units" in stack.record(job_id))
    stack.kill("worker")
    await asyncio.to_thread(stack.start, "worker2")
    await asyncio.to_thread(stack.wait_for, job_id, "succeeded", 60)
    spans = await installed.trace(trace_id)
    (run,) = [one for one in spans if one.name == f"{RUN}sleep"]
    assert run.attributes["tenfold.attempt"] == 2
    told = parents(spans)
    assert told.count(("queue", "enqueue")) == 2, "both attempts waited in the queue"
    assert told.count((f"{RUN}sleep", "enqueue")) == 1, "the first died with its process"
    assert ("enqueue", "diagnostic/sleep") in told
    assert ("diagnostic/sleep", "POST /v1/diagnostic/sleep") in told
    assert ("POST /v1/diagnostic/sleep", "the caller") in told
