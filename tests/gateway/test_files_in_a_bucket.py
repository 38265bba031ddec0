"""`/v1/files` over a bucket: the same answers as over a folder, and what callers hear when it is out of reach."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from shared.ids import random_id
from shared.objectfiles import ObjectFiles
from tests.gateway.house import House, house
from tests.gateway.test_edge import problem
from tests.redis_server import RedisServer, free_port
from tests.s3_server import S3Server
from tests.shared.stores import remains

pytestmark = pytest.mark.anyio

CONTENT = bytes(range(256)) * 30_000
TEXT = {"Content-Type": "text/plain"}


@pytest.fixture
async def gateway(s3: S3Server, server: RedisServer, home: Path) -> AsyncIterator[House]:
    async with house(server, home, {}, files_url=s3.url(random_id("test"))) as gateway:
        yield gateway


@pytest.fixture
async def api(gateway: House) -> httpx.AsyncClient:
    return await gateway.api()


def held(gateway: House) -> list[str]:
    bucket = gateway.runtime.files._files
    assert isinstance(bucket, ObjectFiles)
    return remains(bucket)


async def test_a_file_goes_there_and_comes_back_whole_in_ranges_and_not_at_all(
    gateway: House, api: httpx.AsyncClient
) -> None:
    facts = (await api.post("/v1/files", content=CONTENT, headers=TEXT)).json()
    assert facts["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    whole = await api.get(facts["url"])
    assert (whole.status_code, whole.content) == (200, CONTENT)
    etag = whole.headers["etag"]
    assert (await api.get(facts["url"], headers={"If-None-Match": etag})).status_code == 304
    for asked, start, stop in (("0-9", 0, 10), ("7000000-7000999", 7_000_000, 7_001_000), ("-5", -5, None)):
        part = await api.get(facts["url"], headers={"Range": f"bytes={asked}", "If-Range": etag})
        assert (part.status_code, part.content) == (206, CONTENT[start:stop])
    problem(await api.get(facts["url"], headers={"Range": f"bytes={len(CONTENT)}-"}), 416, "range_not_satisfiable")
    assert (await api.delete(facts["url"])).status_code == 204
    problem(await api.get(facts["url"]), 404, "file_not_found")
    assert held(gateway) == []


async def test_a_caller_who_leaves_in_the_middle_leaves_nothing(gateway: House) -> None:
    begun = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield bytes(7 * 2**20)
        begun.set()
        await asyncio.sleep(60)

    async with gateway.streaming() as api:
        upload = asyncio.create_task(api.post("/v1/files", content=stalling(), headers=TEXT))
        await begun.wait()
        upload.cancel()
        await asyncio.gather(upload, return_exceptions=True)
    assert held(gateway) == []


async def test_out_of_reach_is_503_and_not_ready_until_it_is_there_again(
    s3: S3Server, server: RedisServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.runtime.API_PATIENCE_S", 0.5)
    async with house(server, home, {}, files_url=s3.url(random_id("test"))) as gateway:
        api, nobody = await gateway.api(), await gateway.client()
        facts = (await api.post("/v1/files", content=b"here", headers=TEXT)).json()
        assert (await nobody.get("/readyz")).json()["checks"]["files"] == "ok"
        s3.freeze()
        try:
            assert problem(await nobody.get("/readyz"), 503, "service_unavailable")["checks"]["files"] == "failed"
            assert (await nobody.get("/healthz")).status_code == 200
            for answer in (await api.post("/v1/files", content=b"new", headers=TEXT), await api.get(facts["url"])):
                problem(answer, 503, "service_unavailable")
                assert int(answer.headers["retry-after"]) >= 1
                assert "tenfold-files" not in answer.text
        finally:
            s3.thaw()
        assert (await nobody.get("/readyz")).status_code == 200
        assert (await api.get(facts["url"])).content == b"here"


async def test_a_gateway_starts_without_its_bucket_and_says_that_it_is_not_ready(
    s3: S3Server, server: RedisServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    async with house(server, home, {}, files_url=s3.url("x")) as gateway:
        answer = await (await gateway.client()).get("/readyz")
        assert problem(answer, 503, "service_unavailable")["checks"]["files"] == "failed"


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files lie on a device that never has room."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *_, **__: os.fdopen(os.open("/dev/full", os.O_RDWR), "w+b", 0))


@pytest.mark.usefixtures("full_disk")
async def test_a_disk_without_room_for_a_body_on_its_way_is_507(gateway: House, api: httpx.AsyncClient) -> None:
    body = bytes(3 * 2**20)
    for answer in (
        await api.post("/v1/files", content=body, headers={"Content-Type": "image/png"}),
        await api.post("/v1/files", content=body, headers=TEXT),
        await api.post("/v1/files", files={"file": ("a.txt", body, "text/plain")}),
    ):
        problem(answer, 507, "storage_full")
        assert int(answer.headers["retry-after"]) >= 1
    assert held(gateway) == []
