from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.files import UPLOAD_TTL_S
from shared import ids
from shared.files import Owner, StoredFile
from tests.gateway.house import House, house
from tests.gateway.test_edge import problem
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio

LIMIT_BYTES = 4 * 2**20
CONTENT = bytes(range(256)) * 4000
TEXT = {"Content-Type": "text/plain"}


@pytest.fixture(scope="module")
async def gateway(server: RedisServer, home: Path) -> AsyncIterator[House]:
    async with house(server, home, {}, body_limit_bytes=1000, upload_limit_bytes=LIMIT_BYTES) as gateway:
        yield gateway


@pytest.fixture
async def api(gateway: House) -> httpx.AsyncClient:
    return await gateway.api()


def held(gateway: House) -> list[Path]:
    """Everything that lies in the store."""
    return [path for path in gateway.settings.files_path.rglob("*") if path.is_file()]


async def uploaded(api: httpx.AsyncClient, content: bytes = CONTENT, **kwargs: Any) -> dict[str, Any]:
    response = await api.post("/v1/files", content=content, headers=kwargs.pop("headers", TEXT), **kwargs)
    assert response.status_code == 201, response.text
    facts: dict[str, Any] = response.json()
    return facts


class TestUploading:
    async def test_a_raw_body_gives_its_facts(self, api: httpx.AsyncClient) -> None:
        response = await api.post("/v1/files", content=CONTENT, headers={"Content-Type": "Text/Plain; charset=utf-8"})
        facts = response.json()
        assert response.status_code == 201
        assert response.headers["location"] == facts["url"] == f"/v1/files/{facts['file']}"
        assert facts | {"file": "", "url": ""} == {
            "file": "",
            "url": "",
            "media_type": "text/plain",
            "bytes": len(CONTENT),
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
        }

    async def test_lives_a_day(self, gateway: House, api: httpx.AsyncClient) -> None:
        stored = gateway.runtime.files.stat((await uploaded(api))["file"])
        assert stored.expires_at == pytest.approx(time.time() + UPLOAD_TTL_S, abs=60)
        assert stored.owner == Owner("acme", made_by=(await gateway.principal())[0].id)

    async def test_one_part_of_a_form_gives_its_facts(self, gateway: House, api: httpx.AsyncClient) -> None:
        response = await api.post("/v1/files", files={"file": ("sheet.csv", CONTENT, "text/csv")})
        facts = response.json()
        assert (facts["media_type"], facts["sha256"]) == ("text/csv", hashlib.sha256(CONTENT).hexdigest())
        assert gateway.runtime.files.stat(facts["file"]).name == "sheet.csv"

    async def test_a_raw_body_may_carry_its_name(self, gateway: House, api: httpx.AsyncClient) -> None:
        headers = {**TEXT, "Content-Disposition": 'attachment; filename="../we ird.txt"'}
        facts = await uploaded(api, headers=headers)
        assert gateway.runtime.files.stat(facts["file"]).name == "we ird.txt"

    @pytest.mark.parametrize("as_part", [True, False])
    async def test_a_picture_gives_its_size_and_true_type(
        self, api: httpx.AsyncClient, png: bytes, as_part: bool
    ) -> None:
        if as_part:
            response = await api.post("/v1/files", files={"file": ("a.jpg", png, "image/jpeg")})
        else:
            response = await api.post("/v1/files", content=png, headers={"Content-Type": "image/jpeg"})
        facts = response.json()
        assert (facts["media_type"], facts["width"], facts["height"]) == ("image/png", 24, 16)
        assert (await api.get(facts["url"])).content == png

    @pytest.mark.parametrize("as_part", [True, False])
    async def test_a_damaged_picture_is_refused_and_leaves_nothing(
        self, gateway: House, api: httpx.AsyncClient, png: bytes, as_part: bool
    ) -> None:
        before = held(gateway)
        if as_part:
            response = await api.post("/v1/files", files={"file": ("a.png", png[:20], "image/png")})
        else:
            response = await api.post("/v1/files", content=png[:20], headers={"Content-Type": "image/png"})
        problem(response, 422, "image_unreadable")
        assert held(gateway) == before

    async def test_a_picture_of_a_kind_that_nothing_takes_is_refused(self, api: httpx.AsyncClient) -> None:
        response = await api.post("/v1/files", content=b"GIF89a" + bytes(50), headers={"Content-Type": "image/gif"})
        assert "image/png" in problem(response, 415, "unsupported_media_type")["accepted"]

    @pytest.mark.parametrize("content_type", ["", "application/x-www-form-urlencoded", "text", "a/b/c", "über/x"])
    async def test_a_body_that_does_not_say_what_it_is_is_refused(
        self, api: httpx.AsyncClient, content_type: str
    ) -> None:
        headers = [(b"Content-Type", content_type.encode())] if content_type else []
        response = await api.post("/v1/files", content=b"x", headers=headers)
        problem(response, 415, "unsupported_media_type")

    @pytest.mark.parametrize(
        ("form", "status", "code"),
        [
            ({"files": [("a", ("a", b"1")), ("b", ("b", b"2"))]}, 400, "bad_syntax"),
            ({"files": [("a", ("a", b"1"))], "data": {"more": "text"}}, 400, "bad_syntax"),
            (
                {"content": b"--b--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
                422,
                "invalid_request",
            ),
            ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "bad_syntax"),
        ],
    )
    async def test_a_form_with_anything_but_one_file_is_refused(
        self, gateway: House, api: httpx.AsyncClient, form: dict[str, Any], status: int, code: str
    ) -> None:
        before = held(gateway)
        problem(await api.post("/v1/files", **form), status, code)
        assert held(gateway) == before

    @pytest.mark.parametrize("content_type", ["application/zip", "image/png"])
    async def test_too_many_bytes_are_refused_and_leave_nothing(
        self, gateway: House, api: httpx.AsyncClient, content_type: str
    ) -> None:
        async def endless() -> AsyncIterator[bytes]:
            for _ in range(LIMIT_BYTES // 2**18 + 1):
                yield bytes(2**18)

        before = held(gateway)
        for content in (endless(), bytes(LIMIT_BYTES + 1)):
            response = await api.post("/v1/files", content=content, headers={"Content-Type": content_type})
            assert problem(response, 413, "body_too_large")["limit_bytes"] == LIMIT_BYTES
        assert held(gateway) == before

    async def test_a_caller_who_leaves_in_the_middle_leaves_nothing(self, gateway: House) -> None:
        begun, before = asyncio.Event(), held(gateway)

        async def stalling() -> AsyncIterator[bytes]:
            yield bytes(2**21)
            begun.set()
            await asyncio.sleep(60)

        async with gateway.streaming() as api:
            leaving = asyncio.create_task(api.post("/v1/files", content=stalling(), headers=TEXT))
            await asyncio.wait_for(begun.wait(), 10)
            leaving.cancel()
            await asyncio.wait([leaving])
        assert held(gateway) == before

    async def test_needs_an_api_key(self, gateway: House) -> None:
        problem(await (await gateway.client()).post("/v1/files", content=b"x", headers=TEXT), 401, "api_key_missing")


class TestIdempotencyKey:
    async def test_gives_the_same_file_again(self, gateway: House, api: httpx.AsyncClient) -> None:
        headers = {**TEXT, "Idempotency-Key": "upload-1"}
        first = await uploaded(api, headers=headers)
        before = len(held(gateway))
        assert await uploaded(api, headers=headers) == first
        assert len(held(gateway)) == before

    async def test_at_the_same_time_gives_one_file(self, api: httpx.AsyncClient) -> None:
        headers = {**TEXT, "Idempotency-Key": "upload-2"}
        found = await asyncio.gather(*(uploaded(api, headers=headers) for _ in range(6)))
        assert len({facts["file"] for facts in found}) == 1

    async def test_with_other_bytes_is_a_conflict(self, gateway: House, api: httpx.AsyncClient) -> None:
        headers = {**TEXT, "Idempotency-Key": "upload-3"}
        first = await uploaded(api, headers=headers)
        before = len(held(gateway))
        problem(await api.post("/v1/files", content=b"other", headers=headers), 409, "idempotency_conflict")
        assert len(held(gateway)) == before
        assert (await api.get(first["url"])).content == CONTENT

    async def test_of_another_principal_is_another_key(self, gateway: House, api: httpx.AsyncClient) -> None:
        headers = {**TEXT, "Idempotency-Key": "upload-4"}
        colleague = await gateway.api("officer")
        assert (await uploaded(api, headers=headers))["file"] != (await uploaded(colleague, headers=headers))["file"]

    async def test_of_a_file_that_is_gone_stands_for_the_new_one(self, api: httpx.AsyncClient) -> None:
        headers = {**TEXT, "Idempotency-Key": "upload-5"}
        first = await uploaded(api, headers=headers)
        await api.delete(first["url"])
        second = await uploaded(api, headers=headers)
        assert second["file"] != first["file"]
        assert await uploaded(api, headers=headers) == second

    @pytest.mark.parametrize("key", ["", "x" * 256, "a\x7fb"])
    async def test_that_is_malformed_is_refused(self, gateway: House, api: httpx.AsyncClient, key: str) -> None:
        before = held(gateway)
        response = await api.post("/v1/files", content=b"x", headers={**TEXT, "Idempotency-Key": key})
        problem(response, 422, "malformed_idempotency_key")
        assert held(gateway) == before


class TestDownloading:
    async def test_gives_the_bytes_with_their_tag(self, api: httpx.AsyncClient) -> None:
        facts = await uploaded(api)
        response = await api.get(facts["url"])
        assert response.content == CONTENT
        assert response.headers["etag"] == f'"{facts["sha256"]}"'
        assert response.headers["content-type"].startswith("text/plain")
        assert response.headers["content-length"] == str(len(CONTENT))
        assert response.headers["accept-ranges"] == "bytes"

    async def test_an_empty_file_is_empty(self, api: httpx.AsyncClient) -> None:
        assert (await api.get((await uploaded(api, b""))["url"])).content == b""

    @settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(first=st.integers(0, len(CONTENT) - 1), count=st.integers(1, len(CONTENT)))
    async def test_a_range_is_those_bytes(self, api: httpx.AsyncClient, first: int, count: int) -> None:
        url = (await uploaded(api, headers={**TEXT, "Idempotency-Key": "ranges"}))["url"]
        response = await api.get(url, headers={"Range": f"bytes={first}-{first + count - 1}"})
        assert response.status_code == 206
        assert response.content == CONTENT[first : first + count]
        last = first + len(response.content) - 1
        assert response.headers["content-range"] == f"bytes {first}-{last}/{len(CONTENT)}"

    async def test_a_range_behind_the_end_is_refused(self, api: httpx.AsyncClient) -> None:
        url = (await uploaded(api))["url"]
        response = await api.get(url, headers={"Range": f"bytes={len(CONTENT)}-"})
        assert problem(response, 416, "range_not_satisfiable")["bytes"] == len(CONTENT)

    async def test_what_the_caller_has_is_not_sent_again(self, api: httpx.AsyncClient) -> None:
        facts = await uploaded(api)
        response = await api.get(facts["url"], headers={"If-None-Match": f'"{facts["sha256"]}"'})
        assert (response.status_code, response.content) == (304, b"")
        assert (await api.get(facts["url"], headers={"If-None-Match": '"other"'})).status_code == 200

    async def test_a_range_of_what_is_no_longer_the_same_is_the_whole(self, api: httpx.AsyncClient) -> None:
        facts = await uploaded(api)
        some = {"Range": "bytes=0-9"}
        assert (await api.get(facts["url"], headers={**some, "If-Range": f'"{facts["sha256"]}"'})).status_code == 206
        assert (await api.get(facts["url"], headers={**some, "If-Range": '"other"'})).status_code == 200

    async def test_the_head_alone_has_no_body(self, api: httpx.AsyncClient) -> None:
        facts = await uploaded(api)
        response = await api.head(facts["url"])
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-length"] == str(len(CONTENT))

    @pytest.mark.parametrize(
        ("media_type", "disposition"),
        [("application/json", "inline"), ("text/html", "attachment"), ("application/zip", "attachment")],
    )
    async def test_a_file_cannot_act_as_a_page_of_ours(
        self, api: httpx.AsyncClient, media_type: str, disposition: str
    ) -> None:
        facts = await uploaded(api, b"<script>", headers={"Content-Type": media_type})
        headers = (await api.get(facts["url"])).headers
        assert headers["content-disposition"].startswith(disposition)
        assert headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert headers["x-content-type-options"] == "nosniff"

    async def test_a_name_outside_ascii_comes_back(self, api: httpx.AsyncClient) -> None:
        response = await api.post("/v1/files", files={"file": ("Grüße 1.txt", b"x", "text/plain")})
        disposition = (await api.get(response.json()["url"])).headers["content-disposition"]
        assert disposition == "attachment; filename*=UTF-8''Gr%C3%BC%C3%9Fe%201.txt"

    @pytest.mark.parametrize(
        "file_id", ["file_1", "..%2f..%2fkek.json", "file_01k9z6w3m8q4t5v7x2y0r1s3d4", "job_01k9z6w3m8q4t5v7x2y0r1s3d4"]
    )
    async def test_what_never_was_is_not_found(self, api: httpx.AsyncClient, file_id: str) -> None:
        for response in (await api.get(f"/v1/files/{file_id}"), await api.delete(f"/v1/files/{file_id}")):
            assert response.status_code == 404

    async def test_of_another_tenant_is_not_found(self, gateway: House, api: httpx.AsyncClient) -> None:
        url = (await uploaded(api))["url"]
        stranger = await gateway.api("app", "strangers")
        theirs = [await stranger.get(url), await stranger.delete(url)]
        theirs.append(await stranger.get(url, headers={"If-None-Match": "*"}))
        for response in theirs:
            problem(response, 404, "file_not_found")
        assert (await stranger.head(url)).status_code == 404
        assert (await api.get(url)).status_code == 200

    async def test_whose_time_is_over_is_not_found(self, gateway: House, api: httpx.AsyncClient) -> None:
        with gateway.runtime.files.create(Owner("acme"), "text/plain", 0.05) as writer:
            url = writer.commit().public()["url"]
        await asyncio.sleep(0.1)
        problem(await api.get(url), 404, "file_not_found")

    async def test_what_was_deleted_is_not_found(self, api: httpx.AsyncClient) -> None:
        url = (await uploaded(api))["url"]
        response = await api.delete(url)
        assert (response.status_code, response.content) == (204, b"")
        problem(await api.get(url), 404, "file_not_found")
        problem(await api.delete(url), 404, "file_not_found")

    async def test_a_damaged_file_is_no_half_answer(self, gateway: House, api: httpx.AsyncClient) -> None:
        facts = await uploaded(api)
        (path,) = (path for path in held(gateway) if path.name == facts["file"])
        path.write_bytes(path.read_bytes()[:-1])
        response = await api.get(facts["url"])
        assert (response.status_code, response.json()["code"]) == (500, "file_damaged")


class TestSensitiveFiles:
    @pytest.fixture
    async def secret(self, gateway: House) -> StoredFile:
        """A file as a recovery leaves it: for one officer, encrypted under the lease of its job."""
        officer, _ = await gateway.principal("officer")
        lease = await gateway.custody.open_lease(
            officer,
            job_id=ids.ordered_id("job"),
            method="echo",
            operation="hide",
            kind="recover",
            key_id=None,
            expires_at=time.time() + 60,
            request_id="request-1",
        )
        key = await gateway.custody.file_key(lease)
        owner = Owner("acme", officer.id, "recover", lease)
        with gateway.runtime.files.create(owner, "image/png", 60, key=key) as writer:
            writer.write(CONTENT)
            return writer.commit()

    async def test_are_decrypted_for_their_principal(self, gateway: House, secret: StoredFile) -> None:
        officer = await gateway.api("officer")
        response = await officer.get(f"/v1/files/{secret.id}")
        assert response.content == CONTENT
        assert response.headers["cache-control"] == "private, no-store"
        ranged = await officer.get(f"/v1/files/{secret.id}", headers={"Range": "bytes=70000-70009"})
        assert ranged.content == CONTENT[70000:70010]

    async def test_lie_encrypted(self, gateway: House, secret: StoredFile) -> None:
        (path,) = (path for path in held(gateway) if path.name == secret.id)
        assert CONTENT[:256] not in path.read_bytes()

    async def test_do_not_exist_for_anyone_else(self, gateway: House, secret: StoredFile) -> None:
        others = [("officer", "acme", 2), ("app", "acme", 1), ("custodian", "acme", 1), ("officer", "strangers", 1)]
        for role, tenant, number in others:
            api = await gateway.api(role, tenant, number)  # type: ignore[arg-type]
            problem(await api.get(f"/v1/files/{secret.id}"), 404, "file_not_found")
            problem(await api.delete(f"/v1/files/{secret.id}"), 404, "file_not_found")

    async def test_whose_lease_is_unknown_are_gone(self, gateway: House) -> None:
        officer, _ = await gateway.principal("officer")
        owner = Owner("acme", officer.id, "recover", ids.random_id("lease"))
        with gateway.runtime.files.create(owner, "image/png", 60, key=bytes(32)) as writer:
            stored = writer.commit()
        problem(await (await gateway.api("officer")).get(f"/v1/files/{stored.id}"), 404, "file_not_found")
