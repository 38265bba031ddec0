"""From a caller through the gateway, a service's API, the queue and a worker, and back: all of it real."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import PIL.Image
import pytest

from tests.gateway.house import House, house
from tests.gateway.test_edge import problem
from tests.gateway.test_job_routes import ASYNC, Events
from tests.redis_server import RedisServer
from tests.stack import SECRET, Stack

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def gateway(server: RedisServer, stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """A gateway before the API and the worker of the diagnostic service; its custody is apart from their broker."""
    settings: dict[str, Any] = {
        "services": f"diagnostic=http://127.0.0.1:{stack.port}",
        "broker_url": stack.env["TENFOLD_BROKER_URL"],
        "internal_secret": SECRET,
        "kek_path": tmp_path_factory.mktemp("kek") / "kek.json",
        "custody_url": server.url.removesuffix("/0") + "/1",
    }
    async with house(server, stack.home, {}, **settings) as gateway:
        yield gateway


@pytest.fixture
async def api(gateway: House) -> httpx.AsyncClient:
    return await gateway.api()


async def test_a_picture_comes_back_as_a_picture(api: httpx.AsyncClient, png: bytes) -> None:
    response = await api.post("/v1/diagnostic/blur", files={"image": ("a.png", png)}, headers={"Accept": "image/png"})
    assert response.status_code == 200, response.text
    assert PIL.Image.open(io.BytesIO(response.content)).size == (24, 16)
    job = response.links["job"]["url"]
    assert (await api.get(job)).json()["state"] == "succeeded"


async def test_a_result_names_a_file_that_its_tenant_can_fetch(
    gateway: House, api: httpx.AsyncClient, png: bytes
) -> None:
    job = (await api.post("/v1/diagnostic/blur", files={"image": ("a.png", png)})).json()
    facts = job["result"]["image"]
    picture = await api.get(facts["url"])
    assert len(picture.content) == facts["bytes"]
    assert picture.headers["etag"] == f'"{facts["sha256"]}"'
    problem(await (await gateway.api("app", "strangers")).get(facts["url"]), 404, "file_not_found")


async def test_a_picture_that_was_uploaded_before_is_taken_by_name(api: httpx.AsyncClient, png: bytes) -> None:
    uploaded = (await api.post("/v1/files", content=png, headers={"Content-Type": "image/png"})).json()
    job = (await api.post("/v1/diagnostic/blur", json={"image": {"file": uploaded["file"]}})).json()
    assert (job["state"], job["result"]["image"]["width"]) == ("succeeded", 24)


async def test_a_picture_of_another_tenant_is_not_taken(gateway: House, api: httpx.AsyncClient, png: bytes) -> None:
    uploaded = (await api.post("/v1/files", content=png, headers={"Content-Type": "image/png"})).json()
    stranger = await gateway.api("app", "strangers")
    response = await stranger.post("/v1/diagnostic/blur", json={"image": {"file": uploaded["file"]}})
    problem(response, 404, "file_not_found")


async def test_a_services_problem_reaches_the_caller_as_it_is(api: httpx.AsyncClient) -> None:
    response = await api.post("/v1/diagnostic/fail", json={"how": "problem"})
    assert problem(response, 422, "diagnostic_refused")["job_id"].startswith("job_")
    problem(await api.post("/v1/diagnostic/noop", json={"nothing": 1}), 422, "invalid_request")
    problem(
        await api.post("/v1/diagnostic/noop", content=b"{", headers={"Content-Type": "application/json"}),
        400,
        "bad_syntax",
    )


async def test_what_stays_of_a_job_counts_for_who_asked_for_it(gateway: House, stack: Stack, png: bytes) -> None:
    principal, api_key = await gateway.custody.principals.create("acme", "app", limits={"running_jobs": 1})
    api = await gateway.client(api_key)

    async def blurred() -> dict[str, Any]:
        job = (await api.post("/v1/diagnostic/blur", files={"image": ("a.png", png)})).json()
        picture: dict[str, Any] = job["result"]["image"]
        return picture

    results = [await blurred(), await blurred()]  # the first is finished, so it is in nobody's way

    def counted() -> int:
        return int(str(stack.redis.get(f"tf:limits:{principal.id}:bytes") or 0))

    total = sum(result["bytes"] for result in results)
    await asyncio.to_thread(stack.until, lambda: counted() == total)  # what was sent is deleted after the answer
    for result in results:
        await api.delete(result["url"])
    assert counted() == 0


async def test_the_same_idempotency_key_is_the_same_job(gateway: House, api: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "whole-way"}
    calls = (api.post("/v1/diagnostic/noop", json={"text": "x"}, headers=headers) for _ in range(4))
    assert len({response.json()["id"] for response in await asyncio.gather(*calls)}) == 1
    colleague = await gateway.api(number=2)
    other = await colleague.post("/v1/diagnostic/noop", json={"text": "y"}, headers=headers)
    assert other.json()["result"]["text"] == "y"
    problem(await api.post("/v1/diagnostic/noop", json={"text": "z"}, headers=headers), 409, "idempotency_conflict")


async def test_a_job_is_followed_to_its_end(gateway: House) -> None:
    async with gateway.streaming() as api:
        accepted = await api.post("/v1/diagnostic/sleep", json={"seconds": 0.3, "steps": 3}, headers=ASYNC)
        assert accepted.status_code == 202
        async with api.stream("GET", accepted.headers["location"] + "/events") as response:
            events = await Events(response).rest()
    steps = [event["data"]["step"] for event in events if event["event"] == "progress"]
    assert steps == sorted(steps)
    assert steps[-1] == 3
    assert events[-1]["data"]["state"] == "succeeded"


async def test_a_running_job_is_cancelled(gateway: House) -> None:
    async with gateway.streaming() as api:
        accepted = await api.post("/v1/diagnostic/sleep", json={"seconds": 60, "steps": 600}, headers=ASYNC)
        location = accepted.headers["location"]
        async with api.stream("GET", f"{location}/events") as response:
            events = Events(response)
            while (await events.next() or {})["event"] != "progress":
                pass
            assert (await api.post(f"{location}/cancel")).json()["state"] == "cancelling"
            last = await events.rest()
    assert last[-1]["data"]["state"] == "cancelled"
