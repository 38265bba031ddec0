from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from shared import ids
from shared.api import create_app
from shared.jobs import JobRecord, WorkerJobs
from tests.diagnostic.service import service
from tests.gateway.house import House, house
from tests.gateway.test_edge import problem
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio

ASYNC = {"Prefer": "respond-async"}


@pytest.fixture(scope="module")
async def gateway(server: RedisServer, home: Path) -> AsyncIterator[House]:
    """The diagnostic service, mounted. Its worker is whoever holds `work`."""
    async with house(server, home, lambda runtime: {"diagnostic": create_app(service, runtime)}) as gateway:
        yield gateway


@pytest.fixture
async def api(gateway: House) -> httpx.AsyncClient:
    return await gateway.api()


class Work:
    """A worker's side of the job records."""

    def __init__(self, client: redis.Redis) -> None:
        self.jobs = WorkerJobs(client)

    def start(self, job_id: str) -> JobRecord:
        record = self.jobs.start("diagnostic", job_id, "worker-1")
        assert record is not None
        return record


@pytest.fixture
def work(server: RedisServer) -> Iterator[Work]:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        yield Work(client)


async def submitted(api: httpx.AsyncClient, text: str = "") -> str:
    response = await api.post("/v1/diagnostic/noop", json={"text": text}, headers=ASYNC)
    assert response.status_code == 202, response.text
    job_id: str = response.json()["id"]
    return job_id


class TestReadingAJob:
    async def test_shows_what_the_operation_answered_with(self, api: httpx.AsyncClient) -> None:
        accepted = await api.post("/v1/diagnostic/noop", json={"text": "x"}, headers=ASYNC)
        read = await api.get(accepted.headers["location"])
        assert read.json() == accepted.json()
        assert read.json()["state"] == "queued"

    async def test_shows_the_result_once_it_is_there(self, api: httpx.AsyncClient, work: Work) -> None:
        job_id = await submitted(api)
        work.jobs.succeed(work.start(job_id), {"text": "done"})
        job = (await api.get(f"/v1/jobs/{job_id}")).json()
        assert (job["state"], job["result"], job["error"]) == ("succeeded", {"text": "done"}, None)

    async def test_that_failed_is_found_and_says_why(self, api: httpx.AsyncClient, work: Work) -> None:
        from tests.diagnostic.service import Refused

        job_id = await submitted(api)
        work.jobs.fail(work.start(job_id), Refused("No."))
        response = await api.get(f"/v1/jobs/{job_id}")
        assert response.status_code == 200
        assert response.json()["error"]["code"] == "diagnostic_refused"

    @pytest.mark.parametrize(
        "job_id", ["job_1", "x", "job_01k9z6w3m8q4t5v7x2y0r1s3d4", "file_01k9z6w3m8q4t5v7x2y0r1s3d4", "job_x:events"]
    )
    @pytest.mark.parametrize("what", ["", "/events"])
    async def test_that_never_was_is_not_found(self, api: httpx.AsyncClient, job_id: str, what: str) -> None:
        problem(await api.get(f"/v1/jobs/{job_id}{what}"), 404, "job_not_found")

    async def test_of_another_tenant_is_not_found(self, gateway: House, api: httpx.AsyncClient) -> None:
        job_id = await submitted(api)
        stranger = await gateway.api("app", "strangers")
        for verb, what in (("GET", ""), ("POST", "/cancel"), ("GET", "/events")):
            response = await stranger.request(verb, f"/v1/jobs/{job_id}{what}")
            assert job_id in problem(response, 404, "job_not_found")["detail"]
        assert (await api.get(f"/v1/jobs/{job_id}")).json()["state"] == "queued"

    async def test_of_the_same_tenant_is_found_by_its_other_principals(
        self, gateway: House, api: httpx.AsyncClient
    ) -> None:
        job_id = await submitted(api)
        for role in ("officer", "custodian"):
            assert (await (await gateway.api(role)).get(f"/v1/jobs/{job_id}")).status_code == 200

    async def test_that_is_sensitive_is_found_by_its_own_principal_alone(self, gateway: House, png: bytes) -> None:
        officer, colleague = await gateway.api("officer"), await gateway.api("officer", number=2)
        accepted = await officer.post("/v1/diagnostic/whisper", files={"image": ("a.png", png)}, headers=ASYNC)
        assert accepted.status_code == 202, accepted.text
        path = accepted.headers["location"]
        assert (await officer.get(path)).status_code == 200
        for other in (colleague, await gateway.api()):
            problem(await other.get(path), 404, "job_not_found")
            problem(await other.post(f"{path}/cancel"), 404, "job_not_found")
            assert accepted.json()["id"] not in (await other.get("/v1/jobs?limit=200")).text

    async def test_needs_an_api_key(self, gateway: House) -> None:
        nobody = await gateway.client()
        for path in ("/v1/jobs", f"/v1/jobs/{ids.ordered_id('job')}"):
            problem(await nobody.get(path), 401, "api_key_missing")


class TestCancelling:
    async def test_a_queued_job_is_at_once(self, api: httpx.AsyncClient) -> None:
        job_id = await submitted(api)
        response = await api.post(f"/v1/jobs/{job_id}/cancel")
        assert (response.status_code, response.json()["state"]) == (202, "cancelled")

    async def test_a_running_job_is_until_its_worker_confirms(self, api: httpx.AsyncClient, work: Work) -> None:
        job_id = await submitted(api)
        record = work.start(job_id)
        assert (await api.post(f"/v1/jobs/{job_id}/cancel")).json()["state"] == "cancelling"
        work.jobs.end(record, "cancelled")
        assert (await api.get(f"/v1/jobs/{job_id}")).json()["state"] == "cancelled"

    async def test_a_finished_job_changes_nothing(self, api: httpx.AsyncClient, work: Work) -> None:
        job_id = await submitted(api)
        work.jobs.succeed(work.start(job_id), {})
        assert (await api.post(f"/v1/jobs/{job_id}/cancel")).json()["state"] == "succeeded"


class TestListing:
    async def test_walks_all_jobs_newest_first_without_gap_or_repeat(self, gateway: House) -> None:
        api = await gateway.api("app", "listers")
        made = [await submitted(api, str(n)) for n in range(7)]
        seen: list[str] = []
        query = "?limit=3"
        while query:
            page = (await api.get(f"/v1/jobs{query}")).json()
            seen += [job["id"] for job in page["jobs"]]
            query = f"?limit=3&before={page['next']}" if page["next"] else ""
        assert seen == sorted(made, reverse=True), "names sort by age, to the millisecond"

    async def test_passes_over_what_the_caller_may_not_see(self, gateway: House, png: bytes) -> None:
        officer, app = await gateway.api("officer", "mixed"), await gateway.api("app", "mixed")
        mine = [await submitted(app)]
        for _ in range(5):
            await officer.post("/v1/diagnostic/whisper", files={"image": ("a.png", png)}, headers=ASYNC)
        mine.append(await submitted(app))
        page = (await app.get("/v1/jobs?limit=2")).json()
        assert [job["id"] for job in page["jobs"]] == sorted(mine, reverse=True)
        assert len((await officer.get("/v1/jobs?limit=200")).json()["jobs"]) == 7

    async def test_of_a_tenant_without_jobs_is_empty(self, gateway: House) -> None:
        assert (await (await gateway.api("app", "idle")).get("/v1/jobs")).json() == {"jobs": [], "next": None}

    @pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "before=job_1", "before=["])
    async def test_with_nonsense_is_invalid(self, api: httpx.AsyncClient, query: str) -> None:
        problem(await api.get(f"/v1/jobs?{query}"), 422, "invalid_request")


class Events:
    """Server-sent events of one stream, parsed."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> dict[str, Any] | None:
        """The next event, a comment as `{"comment": …}`, or None at the end."""
        event: dict[str, Any] = {}
        async with asyncio.timeout(20):
            async for line in self._lines:
                if not line:
                    if event:
                        return event
                    continue
                name, _, value = line.partition(":")
                event[name or "comment"] = json.loads(value) if name == "data" else value.strip()
        return None

    async def rest(self) -> list[dict[str, Any]]:
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


class TestFollowing:
    async def test_tells_everything_as_it_happens_and_ends_with_the_job(self, gateway: House, work: Work) -> None:
        async with gateway.streaming() as api:
            job_id = await submitted(api)
            async with api.stream("GET", f"/v1/jobs/{job_id}/events") as response:
                assert response.headers["content-type"].startswith("text/event-stream")
                assert response.headers["cache-control"] == "no-cache"
                events = Events(response)
                assert (await events.next() or {})["data"]["state"] == "queued"
                record = work.start(job_id)
                assert (await events.next() or {})["data"]["state"] == "running"
                work.jobs.progress(record, {"step": 1, "of": 2, "loss": 0.5})
                progress = await events.next() or {}
                assert (progress["event"], progress["data"]) == ("progress", {"step": 1, "of": 2, "loss": 0.5})
                work.jobs.unit(record, 0, 4, None)
                unit = await events.next() or {}
                assert (unit["event"], unit["data"]) == ("unit", {"done": 1, "of": 4})
                work.jobs.succeed(record, {})
                last = await events.rest()
        assert [(event["event"], event["data"]["state"]) for event in last] == [("state", "succeeded")]

    async def test_goes_on_after_the_last_event_seen(self, gateway: House, work: Work) -> None:
        async with gateway.streaming() as api:
            job_id = await submitted(api)
            record = work.start(job_id)
            for step in range(1, 6):
                work.jobs.progress(record, {"step": step, "of": 5})
            work.jobs.succeed(record, {})
            async with api.stream("GET", f"/v1/jobs/{job_id}/events") as response:
                everything = await Events(response).rest()
            for seen in range(1, len(everything)):
                last = {"Last-Event-ID": everything[seen - 1]["id"]}
                async with api.stream("GET", f"/v1/jobs/{job_id}/events", headers=last) as response:
                    assert await Events(response).rest() == everything[seen:]
        assert len(everything) == 8

    async def test_a_malformed_last_event_id_is_invalid(self, api: httpx.AsyncClient) -> None:
        job_id = await submitted(api)
        response = await api.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "yesterday"})
        problem(response, 422, "invalid_request")

    async def test_keeps_an_idle_connection_alive(self, gateway: House, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)
        async with gateway.streaming() as api:
            job_id = await submitted(api)
            async with api.stream("GET", f"/v1/jobs/{job_id}/events") as response:
                events = Events(response)
                await events.next()
                assert "comment" in (await events.next() or {})

    async def test_is_told_to_reconnect_when_the_gateway_drains(self, server: RedisServer, home: Path) -> None:
        mounted = house(server, home, lambda runtime: {"diagnostic": create_app(service, runtime)})
        async with mounted as gateway, gateway.streaming() as api:
            job_id = await submitted(api)
            async with api.stream("GET", f"/v1/jobs/{job_id}/events") as response:
                events = Events(response)
                await events.next()
                gateway.app.state.parts.drain.begin()
                (last,) = await events.rest()
            assert last["event"] == "reconnect"
            assert "id" not in last  # so that the client comes back with the last one it saw
            assert problem(await api.get("/readyz"), 503, "service_unavailable")["checks"]["gateway"] == "draining"
            assert (await api.get(f"/v1/jobs/{job_id}")).status_code == 200  # answers are still given
