from __future__ import annotations

import contextlib
import gc
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.echo import Echo
from tests.gateway.house import House, house
from tests.gateway.serving import served
from tests.gateway.test_edge import problem
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio

MIB = 2**20
CHUNK_BYTES = 256 * 1024
FLAT_BYTES = 6 * MIB  # what the passing of any body may take at its height; the smallest body here has 8 MiB
ZIP = {"Content-Type": "application/zip"}


class Body:
    """So many bytes, made as they are asked for."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.sent_bytes = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.sent_bytes < self.size_bytes:
            self.sent_bytes += CHUNK_BYTES
            yield bytes(CHUNK_BYTES)


@contextlib.contextmanager
def flat_memory() -> Iterator[None]:
    """Fail if at any time within the block more than `FLAT_BYTES` were held beyond what was held before."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < FLAT_BYTES, f"{(peak - before) / MIB:.1f} MiB were held at once"


@pytest.fixture(params=["mounted", "remote"])
async def large(request: pytest.FixtureRequest, server: RedisServer, home: Path) -> AsyncIterator[House]:
    """A gateway that takes bodies of 256 MiB."""
    limit: dict[str, Any] = {"body_limit_bytes": 256 * MIB}
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "mounted":
            yield await stack.enter_async_context(house(server, home, {"echo": Echo()}, **limit))
        else:
            url = await stack.enter_async_context(served(Echo()))
            yield await stack.enter_async_context(house(server, home, {}, services=f"echo={url}", **limit))


@pytest.mark.parametrize("size_mib", [8, 200])
async def test_a_body_reaches_its_service_without_ever_being_held(large: House, size_mib: int) -> None:
    api = await large.api()
    await api.post("/v1/echo/mirror")  # imports and connections are not the body's
    with flat_memory():
        response = await api.post("/v1/echo/mirror", content=Body(size_mib * MIB))
    assert response.json()["bytes"] == size_mib * MIB


async def test_a_body_over_the_limit_is_read_no_further_than_the_limit(server: RedisServer, home: Path) -> None:
    async with served(Echo()) as url, house(server, home, {}, services=f"echo={url}") as gateway:
        api = await gateway.api()
        await api.post("/v1/echo/mirror")
        body = Body(200 * MIB)
        with flat_memory():
            response = await api.post("/v1/echo/mirror", content=body)
        limit_bytes = gateway.settings.body_limit_bytes
        assert problem(response, 413, "body_too_large")["limit_bytes"] == limit_bytes == 64 * MIB
        assert body.sent_bytes <= limit_bytes + 2 * CHUNK_BYTES


async def test_a_file_goes_to_the_store_and_back_without_ever_being_held(server: RedisServer, home: Path) -> None:
    size_bytes = 24 * MIB
    async with house(server, home, {}) as gateway, gateway.streaming() as api:
        await api.get("/v1/files/none")
        with flat_memory():
            facts = (await api.post("/v1/files", content=Body(size_bytes), headers=ZIP)).json()
        assert facts["bytes"] == size_bytes
        with flat_memory():
            received = 0
            async with api.stream("GET", facts["url"]) as response:
                async for chunk in response.aiter_raw():
                    received += len(chunk)
        assert received == size_bytes
        await api.delete(facts["url"])


async def test_a_part_of_a_form_goes_to_the_store_without_ever_being_held(server: RedisServer, home: Path) -> None:
    head = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\nContent-Type: application/zip\r\n\r\n'
    )

    async def form() -> AsyncIterator[bytes]:
        yield head
        async for chunk in Body(24 * MIB):
            yield chunk
        yield b"\r\n--b--\r\n"

    async with house(server, home, {}) as gateway:
        api: httpx.AsyncClient = await gateway.api()
        await api.get("/v1/files/none")
        with flat_memory():
            response = await api.post(
                "/v1/files", content=form(), headers={"Content-Type": "multipart/form-data; boundary=b"}
            )
    assert response.json()["bytes"] == 24 * MIB
