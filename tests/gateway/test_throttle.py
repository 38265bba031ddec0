from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio
from starlette.requests import HTTPConnection

import tenfold
from gateway.catalogue import Operation
from gateway.metrics import Metrics
from gateway.principals import Principal, Role
from gateway.throttle import Throttle
from shared import ids, limits
from shared.api import create_app
from shared.limits import Limits
from shared.problems import ServiceUnavailable
from shared.runtime import Runtime
from tests.diagnostic.service import service
from tests.gateway.echo import Echo
from tests.gateway.house import House, house
from tests.gateway.serving import served
from tests.gateway.test_edge import pieces, problem
from tests.redis_server import RedisServer, free_port

pytestmark = pytest.mark.anyio

ASYNC = {"Prefer": "respond-async"}
TEXT = {"Content-Type": "text/plain"}
ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
PIXELS = 24 * 16
"""Of the picture that the tests send."""


@dataclass
class Guest:
    """Somebody with limits of its own, and a client that shows its API key."""

    principal: Principal
    api_key: str
    api: httpx.AsyncClient

    @property
    def prefix(self) -> str:
        return limits.prefix(self.principal.id)


class Inn:
    """A gateway over a service that says what reached it and one that has no workers."""

    def __init__(self, gateway: House, echo: Echo) -> None:
        self.gateway = gateway
        self.echo = echo
        self.redis: Any = gateway.runtime.redis

    async def guest(self, role: Role = "app", **limited: int) -> Guest:
        principal, api_key = await self.gateway.custody.principals.create("acme", role, limits=limited)
        return Guest(principal, api_key, await self.gateway.client(api_key))

    async def jobs(self) -> int:
        """How many jobs there are of anybody, in any state."""
        return sum(not name.endswith((":events", ":units")) for name in await self.redis.keys("tf:diagnostic:job:*"))

    def stored(self) -> list[Path]:
        return [path for path in self.gateway.settings.files_path.rglob("*") if path.is_file()]

    async def queue(self, waiting: int, mean_s: float, method: str = "echo", workers: int = 1) -> None:
        """Let a method's queue be so long, and its jobs take so much time."""
        p = f"tf:{method}:"
        await self.redis.delete(*(p + name for name in ("queued", "workers", "stats", "active")))
        if waiting:
            await self.redis.zadd(f"{p}queued", {f"job_{number}": number for number in range(waiting)})
        await self.redis.zadd(f"{p}workers", {f"w{number}": 9e15 for number in range(workers)})
        await self.redis.hset(f"{p}stats", "recent_ms", mean_s * 1000)


@pytest.fixture(scope="module")
async def inn(server: RedisServer, home: Path) -> AsyncIterator[Inn]:
    echo = Echo()

    def mounted(runtime: Runtime) -> dict[str, Any]:
        return {"echo": echo, "diagnostic": create_app(service, runtime)}

    async with house(server, home, mounted, patience_s=PATIENCE_S) as gateway:
        yield Inn(gateway, echo)


@pytest.fixture(autouse=True)
async def _empty(inn: Inn) -> AsyncIterator[None]:
    yield
    await inn.redis.delete("tf:echo:queued", "tf:echo:active", "tf:echo:stats", "tf:echo:workers")


def member(field: str, policy: str) -> dict[str, Any]:
    """The parameters of a policy in a field, which must be a list of structured fields (RFC 9651)."""
    item = r'"[a-z-]+"(?:;[a-z]+=(?:\d{1,15}|"[a-z-]+"))+'
    assert re.fullmatch(rf"{item}(?:, {item})*", field), field
    found = re.search(rf'"{policy}"((?:;[^,]+)*)', field)
    assert found, f"{policy} is not in {field}"
    return {name: json.loads(value) for name, value in (part.split("=") for part in found[1].split(";")[1:])}


def policies(field: str) -> list[str]:
    return re.findall(r'(?:^|, )"([a-z-]+)"', field)


async def noop(guest: Guest, **kwargs: Any) -> httpx.Response:
    return await guest.api.post("/v1/diagnostic/noop", json={}, headers=ASYNC, **kwargs)


async def blur(guest: Guest, png: bytes) -> httpx.Response:
    return await guest.api.post("/v1/diagnostic/blur", files={"image": ("a.png", png)}, headers=ASYNC)


async def upload(guest: Guest, size_bytes: int) -> httpx.Response:
    return await guest.api.post("/v1/files", content=bytes(size_bytes), headers=TEXT)


class TestFields:
    async def test_say_what_is_allowed_and_what_is_left(self, inn: Inn) -> None:
        guest = await inn.guest(requests_per_minute=2, pixels_per_hour=5000, running_jobs=3, stored_bytes=900)
        response = await noop(guest)
        allowed, left = response.headers["ratelimit-policy"], response.headers["ratelimit"]
        assert member(allowed, "requests") == {"q": 2, "qu": "requests", "w": 60}
        assert member(allowed, "pixels") == {"q": 5000, "qu": "pixels", "w": 3600}
        assert member(allowed, "running-jobs") == {"q": 3, "qu": "concurrent-requests"}
        assert member(allowed, "stored-bytes") == {"q": 900, "qu": "content-bytes"}
        assert member(left, "requests") == {"r": 1, "t": 30}
        assert member(left, "pixels") == {"r": 5000, "t": 1}
        assert member(left, "running-jobs") == {"r": 3}
        assert member(left, "stored-bytes") == {"r": 900}

    async def test_count_down_and_end_at_none(self, inn: Inn) -> None:
        guest = await inn.guest(requests_per_minute=2)
        left = [member((await guest.api.get("/v1/jobs")).headers["ratelimit"], "requests")["r"] for _ in range(3)]
        assert left == [1, 0, 0]

    async def test_name_only_what_a_request_can_use(self, inn: Inn) -> None:
        guest = await inn.guest()
        assert policies((await guest.api.get("/v1/methods/echo")).headers["ratelimit"]) == ["requests"]
        assert policies((await upload(guest, 1)).headers["ratelimit"]) == ["requests", "stored-bytes"]

    async def test_are_absent_where_there_is_no_limit(self, inn: Inn) -> None:
        guest = await inn.guest(requests_per_minute=0, pixels_per_hour=0, running_jobs=0, stored_bytes=0)
        for response in (await guest.api.get("/v1/jobs"), await noop(guest), await upload(guest, 1)):
            assert response.is_success
            assert "ratelimit" not in response.headers
            assert "ratelimit-policy" not in response.headers


class TestRequests:
    async def test_beyond_the_limit_are_refused_with_a_wait_after_which_exactly_one_more_passes(self, inn: Inn) -> None:
        guest = await inn.guest(requests_per_minute=2)
        assert [(await noop(guest)).status_code for _ in range(2)] == [202, 202]
        refused = await noop(guest)
        body = problem(refused, 429, "rate_limited")
        assert (body["limit"], body["violated-policies"]) == (2, ["requests"])
        wait_s = int(refused.headers["retry-after"])
        assert 1 <= wait_s <= 30
        assert member(refused.headers["ratelimit"], "requests")["t"] <= wait_s
        key = f"{guest.prefix}requests"
        before_ms = float(await inn.redis.get(key))
        await inn.redis.set(key, before_ms - wait_s * 1000)  # as if so much time had passed
        assert [(await noop(guest)).status_code for _ in range(2)] == [202, 429]

    async def test_of_every_kind_count_but_those_that_make_room(self, inn: Inn) -> None:
        guest = await inn.guest(requests_per_minute=3)
        job = (await noop(guest)).headers["location"]
        file = (await upload(guest, 1)).headers["location"]
        assert (await guest.api.get(job)).status_code == 200
        for refused in (await guest.api.get("/v1/methods"), await upload(guest, 1), await noop(guest)):
            problem(refused, 429, "rate_limited")
        assert (await guest.api.post(f"{job}/cancel")).json()["state"] == "cancelled"
        assert (await guest.api.delete(file)).status_code == 204

    async def test_are_counted_for_each_principal_whatever_its_keys(self, inn: Inn) -> None:
        guest, other = await inn.guest(requests_per_minute=1), await inn.guest(requests_per_minute=1)
        second = await inn.gateway.client(await inn.gateway.custody.principals.rotate(guest.principal.id))
        assert (await guest.api.get("/v1/jobs")).status_code == 200
        problem(await second.get("/v1/jobs"), 429, "rate_limited")
        assert (await other.api.get("/v1/jobs")).status_code == 200

    async def test_that_are_refused_are_not_read(self, inn: Inn) -> None:
        guest = await inn.guest(requests_per_minute=1)
        await guest.api.get("/v1/jobs")
        calls = inn.echo.calls
        async with served(inn.gateway.app) as url:
            for path in ("/v1/echo/mirror", "/v1/files"):
                reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
                head = f"POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {guest.api_key}\r\n"
                head += "Content-Type: text/plain\r\nContent-Length: 50000000\r\nExpect: 100-continue\r\n\r\n"
                writer.write(head.encode())
                assert (await reader.readline()).startswith(b"HTTP/1.1 429 "), "nobody asked for the body"
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
        assert inn.echo.calls == calls

    async def test_a_change_of_the_limit_is_seen_at_once(self, inn: Inn) -> None:
        guest = await inn.guest(requests_per_minute=1)
        await guest.api.get("/v1/jobs")
        problem(await guest.api.get("/v1/jobs"), 429, "rate_limited")
        await inn.gateway.custody.principals.limit(guest.principal.id, {"requests_per_minute": None})
        assert (await guest.api.get("/v1/jobs")).status_code == 200

    async def test_are_still_counted_after_a_restart_and_by_another_gateway(
        self, inn: Inn, server: RedisServer, home: Path
    ) -> None:
        guest = await inn.guest(requests_per_minute=2)
        await guest.api.get("/v1/jobs")
        async with house(server, home, {}) as other:
            there = await other.client(guest.api_key)
            assert (await there.get("/v1/jobs")).status_code == 200
            problem(await there.get("/v1/jobs"), 429, "rate_limited")
        problem(await guest.api.get("/v1/jobs"), 429, "rate_limited")

    async def test_from_several_processes_at_once_are_counted_as_one(self, inn: Inn, server: RedisServer) -> None:
        quota, principal, began = 40, ids.random_id("prn"), time.monotonic()
        program = [sys.executable, "-m", "tests.gateway.crowd", server.url, principal, str(quota)]
        pipe = asyncio.subprocess.PIPE
        crowds = [await asyncio.create_subprocess_exec(*program, cwd=ROOT, stdout=pipe) for _ in range(2)]
        passed = sum([int((await crowd.communicate())[0]) for crowd in crowds])
        assert quota <= passed <= quota + (time.monotonic() - began) * quota / 60 + 1

    async def test_that_recover_and_are_refused_are_in_the_audit_trail(self, inn: Inn) -> None:
        officer = await inn.guest("officer", requests_per_minute=1)
        await officer.api.get("/v1/jobs")
        refused = await officer.api.post("/v1/echo/hide", json={})
        problem(refused, 429, "rate_limited")
        (day, *_) = sorted(inn.gateway.settings.home.glob("audit/*.jsonl"), reverse=True)
        entry = next(line for line in reversed(day.read_text().splitlines()) if officer.principal.id in line)
        assert "ratelimit.block" in entry
        assert refused.headers["x-request-id"] in entry


class TestPixels:
    async def test_are_those_of_the_pictures_that_come(self, inn: Inn, png: bytes) -> None:
        guest = await inn.guest(pixels_per_hour=10 * PIXELS)
        assert (await blur(guest, png)).status_code == 202
        assert member((await noop(guest)).headers["ratelimit"], "pixels")["r"] == pytest.approx(9 * PIXELS, abs=PIXELS)

    async def test_of_a_file_that_was_sent_before_count_too(self, inn: Inn, png: bytes) -> None:
        guest = await inn.guest(pixels_per_hour=PIXELS)
        file = (await guest.api.post("/v1/files", content=png, headers={"Content-Type": "image/png"})).json()["file"]
        first, second = [
            await guest.api.post("/v1/diagnostic/blur", json={"image": {"file": file}}, headers=ASYNC) for _ in range(2)
        ]
        assert first.status_code == 202
        problem(second, 429, "rate_limited")

    async def test_beyond_the_limit_leave_no_job_and_no_file(self, inn: Inn, png: bytes) -> None:
        guest = await inn.guest(pixels_per_hour=PIXELS * 3 // 2)
        assert (await blur(guest, png)).status_code == 202
        jobs, stored = await inn.jobs(), inn.stored()
        refused = await blur(guest, png)
        body = problem(refused, 429, "rate_limited")
        assert body["violated-policies"] == ["pixels"]
        assert 1000 < int(refused.headers["retry-after"]) <= 1200, (
            "half a picture is there, the other half in 20 minutes"
        )
        assert (await inn.jobs(), inn.stored()) == (jobs, stored)
        assert int(await inn.redis.get(f"{guest.prefix}bytes")) == len(png)

    async def test_that_come_at_the_same_time_do_not_slip_through(self, inn: Inn, png: bytes) -> None:
        guest = await inn.guest(pixels_per_hour=3 * PIXELS)
        jobs = await inn.jobs()
        statuses = [response.status_code for response in await asyncio.gather(*(blur(guest, png) for _ in range(8)))]
        assert sorted(statuses) == [202] * 3 + [429] * 5
        assert await inn.jobs() == jobs + 3
        assert int(await inn.redis.get(f"{guest.prefix}bytes")) == 3 * len(png)

    async def test_that_are_used_up_are_a_reason_not_to_read_the_next_picture(self, inn: Inn, png: bytes) -> None:
        guest = await inn.guest(pixels_per_hour=PIXELS // 2)
        assert (await blur(guest, png)).status_code == 202, "more than the quota: let in while nothing is owed"
        refused = await guest.api.post("/v1/echo/mirror", content=png)
        problem(refused, 429, "rate_limited")
        assert member(refused.headers["ratelimit"], "pixels")["r"] == 0
        assert 3500 < int(refused.headers["retry-after"]) <= 3620


class TestRunningJobs:
    async def test_beyond_the_limit_are_refused_until_one_ends(self, inn: Inn) -> None:
        guest = await inn.guest(running_jobs=2)
        first, _ = await noop(guest), await noop(guest)
        refused = await noop(guest)
        body = problem(refused, 429, "quota_exceeded")
        assert (body["limit"], body["violated-policies"]) == (2, ["running-jobs"])
        assert int(refused.headers["retry-after"]) >= 1
        assert member(refused.headers["ratelimit"], "running-jobs") == {"r": 0}
        await guest.api.post(f"{first.headers['location']}/cancel")
        assert (await noop(guest)).status_code == 202

    async def test_that_come_at_the_same_time_through_two_gateways_do_not_slip_through(
        self, inn: Inn, server: RedisServer, home: Path
    ) -> None:
        guest = await inn.guest(running_jobs=5)
        jobs = await inn.jobs()

        def mounted(runtime: Runtime) -> dict[str, Any]:
            return {"diagnostic": create_app(service, runtime)}

        async with house(server, home, mounted) as other, served(inn.gateway.app) as here, served(other.app) as there:
            headers = {"Authorization": f"Bearer {guest.api_key}", **ASYNC}
            async with httpx.AsyncClient(headers=headers, timeout=60) as client:
                calls = [client.post(f"{url}/v1/diagnostic/noop", json={}) for url in (here, there) for _ in range(12)]
                statuses = [response.status_code for response in await asyncio.gather(*calls)]
        assert sorted(statuses) == [202] * 5 + [429] * 19
        assert await inn.jobs() == jobs + 5


class TestStoredBytes:
    async def test_beyond_the_limit_are_refused_until_a_file_is_deleted(self, inn: Inn) -> None:
        guest = await inn.guest(stored_bytes=3000)
        first = await upload(guest, 2000)
        stored = inn.stored()
        refused = await upload(guest, 2000)
        body = problem(refused, 429, "quota_exceeded")
        assert (body["limit"], body["violated-policies"]) == (3000, ["stored-bytes"])
        assert 86_000 < int(refused.headers["retry-after"]) <= 86_400, "when the first one expires"
        assert inn.stored() == stored
        assert (await guest.api.delete(first.headers["location"])).status_code == 204
        assert (await upload(guest, 2000)).status_code == 201

    async def test_that_never_fit_are_too_large(self, inn: Inn) -> None:
        guest = await inn.guest(stored_bytes=3000)
        refused = await upload(guest, 3001)
        assert problem(refused, 413, "body_too_large")["limit_bytes"] == 3000
        assert "retry-after" not in refused.headers

    async def test_of_unknown_number_are_given_up_when_they_are_too_many(self, inn: Inn) -> None:
        guest = await inn.guest(stored_bytes=5 * 2**20)
        await upload(guest, 2**20)
        stored = inn.stored()
        problem(await guest.api.post("/v1/files", content=pieces(9, 2**20), headers=TEXT), 429, "quota_exceeded")
        assert inn.stored() == stored

    async def test_that_come_at_the_same_time_do_not_slip_through(self, inn: Inn) -> None:
        guest = await inn.guest(stored_bytes=3500)
        stored = len(inn.stored())
        statuses = [r.status_code for r in await asyncio.gather(*(upload(guest, 1000) for _ in range(10)))]
        assert sorted(statuses) == [201] * 3 + [429] * 7
        assert len(inn.stored()) == stored + 2 * 3, "bytes and description of each"

    async def test_of_a_colleague_who_deletes_them_are_given_back_to_who_sent_them(self, inn: Inn) -> None:
        guest, colleague = await inn.guest(stored_bytes=1000), await inn.guest()
        file = (await upload(guest, 1000)).headers["location"]
        await colleague.api.delete(file)
        assert (await upload(guest, 1000)).status_code == 201

    async def test_of_a_file_that_two_requests_with_one_key_sent_count_once(self, inn: Inn) -> None:
        guest = await inn.guest(stored_bytes=3000)
        headers = {**TEXT, "Idempotency-Key": "same"}
        for _ in range(2):
            assert (await guest.api.post("/v1/files", content=bytes(1000), headers=headers)).status_code == 201
        assert int(await inn.redis.get(f"{guest.prefix}bytes")) == 1000


class TestShedding:
    async def test_refuses_what_would_wait_too_long_before_anything_is_queued(self, inn: Inn) -> None:
        guest = await inn.guest()
        await inn.queue(waiting=100, mean_s=2.0, workers=2)
        calls = inn.echo.calls
        refused = await guest.api.post("/v1/echo/mirror", content=b"picture")
        problem(refused, 503, "overloaded")
        assert int(refused.headers["retry-after"]) == 100 * 2.0 / 2 - PATIENCE_S
        nobody = await inn.gateway.client()
        assert 'tenfold_gateway_refused_total{policy="queue"}' in (await nobody.get("/metrics")).text
        assert inn.echo.calls == calls

    async def test_says_truly_when_the_queue_will_be_short_enough(self, inn: Inn) -> None:
        guest = await inn.guest()
        await inn.queue(waiting=100, mean_s=2.0, workers=2)
        wait_s = int((await guest.api.post("/v1/echo/mirror")).headers["retry-after"])
        await inn.queue(waiting=100 - round((wait_s - 1) * 2 / 2.0), mean_s=2.0, workers=2)
        problem(await guest.api.post("/v1/echo/mirror"), 503, "overloaded")
        await inn.queue(waiting=100 - round(wait_s * 2 / 2.0), mean_s=2.0, workers=2)
        assert (await guest.api.post("/v1/echo/mirror")).status_code == 200

    async def test_counts_jobs_that_one_worker_serves_together(self, inn: Inn) -> None:
        guest = await inn.guest()
        await inn.queue(waiting=100, mean_s=2.0)
        problem(await guest.api.post("/v1/echo/mirror"), 503, "overloaded")
        await inn.redis.zadd("tf:echo:active", {f"job_r{number}": 9e15 for number in range(8)})
        assert (await guest.api.post("/v1/echo/mirror")).status_code == 200, "25 s"

    async def test_lets_those_in_who_do_not_wait_unless_the_deadline_would_pass(self, inn: Inn) -> None:
        guest = await inn.guest()
        await inn.queue(waiting=100, mean_s=2.0)
        assert (await guest.api.post("/v1/echo/mirror", headers=ASYNC)).status_code == 200
        await inn.queue(waiting=1000, mean_s=2.0)
        refused = await guest.api.post("/v1/echo/mirror", headers=ASYNC)
        problem(refused, 503, "overloaded")
        assert int(refused.headers["retry-after"]) == 2000 - 600, "the deadline is 600 s"

    async def test_stops_no_recovery_no_look_and_no_cancelling(self, inn: Inn) -> None:
        guest, officer = await inn.guest(), await inn.guest("officer")
        job = (await noop(guest)).headers["location"]
        await inn.queue(waiting=10_000, mean_s=100.0)
        problem(await guest.api.post("/v1/echo/mirror", headers=ASYNC), 503, "overloaded")
        assert (await officer.api.post("/v1/echo/hide")).status_code == 200
        assert (await guest.api.get(job)).status_code == 200
        assert (await guest.api.get("/v1/methods/echo")).status_code == 200
        assert (await guest.api.post(f"{job}/cancel")).status_code == 202

    async def test_takes_nothing_from_the_limits(self, inn: Inn) -> None:
        guest = await inn.guest(requests_per_minute=2)
        await inn.queue(waiting=10_000, mean_s=100.0)
        left = [member((await guest.api.post("/v1/echo/mirror")).headers["ratelimit"], "requests")["r"] for _ in "abc"]
        assert left == [2, 2, 2]

    async def test_stands_back_behind_a_limit_of_the_callers_own(self, inn: Inn) -> None:
        guest = await inn.guest(requests_per_minute=1)
        await guest.api.get("/v1/jobs")
        await inn.queue(waiting=10_000, mean_s=100.0)
        refused = await guest.api.post("/v1/echo/mirror")
        assert problem(refused, 429, "rate_limited")["violated-policies"] == ["requests"]
        assert int(refused.headers["retry-after"]) > 900_000, "both must be over"


class TestWithoutTheBroker:
    @pytest.fixture
    async def throttle(self) -> AsyncIterator[Throttle]:
        async with redis.asyncio.Redis.from_url(f"redis://127.0.0.1:{free_port()}/0") as client:
            yield Throttle(client, Limits(10, 10, 10, 10), PATIENCE_S, Metrics())

    def connection(self) -> HTTPConnection:
        return HTTPConnection({"type": "http", "headers": [], "state": {}})

    async def test_keys_can_be_administered(self, throttle: Throttle) -> None:
        await throttle.admit(self.connection(), Principal("prn_1", "acme", "custodian", frozenset()))

    async def test_nothing_is_let_in_that_would_have_to_be_queued(self, throttle: Throttle) -> None:
        principal, operation = (
            Principal("prn_1", "acme", "app", frozenset()),
            Operation(name="a", kind="compute", wait_s=1),
        )
        with pytest.raises(ServiceUnavailable):
            await throttle.admit_call(self.connection(), principal, "echo", operation, waits=True)
        with pytest.raises(ServiceUnavailable):
            await throttle.admit_upload(self.connection(), principal)


async def test_one_round_trip_decides(inn: Inn) -> None:
    guest = await inn.guest()
    await guest.api.post("/v1/echo/mirror")  # scripts and API key are known now
    before = (await inn.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    await guest.api.post("/v1/echo/mirror")
    assert (await inn.redis.info("commandstats"))["cmdstat_evalsha"]["calls"] == before + 1


async def test_the_sdk_waits_as_long_as_it_is_told_and_succeeds(inn: Inn) -> None:
    guest = await inn.guest(requests_per_minute=60)
    job_id = (await noop(guest)).json()["id"]
    refusals = inn.gateway.app.state.parts.metrics.requests.labels("/v1/jobs/{job_id}", "GET", "429")
    before = refusals._value.get()
    seconds, _ = await inn.redis.time()
    await inn.redis.set(f"{guest.prefix}requests", (seconds + 61) * 1000)  # the next request is let in in 1 to 2 s
    async with served(inn.gateway.app) as url, tenfold.AsyncClient(url, guest.api_key) as client:
        began = time.monotonic()
        assert (await client.jobs.get(job_id)).id == job_id
    assert refusals._value.get() == before + 1
    assert time.monotonic() - began >= 1
