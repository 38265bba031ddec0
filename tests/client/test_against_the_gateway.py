"""The client against the real thing: gateway, custody, a service and its worker, on a real Redis server."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from fastapi import FastAPI

import tenfold
from gateway.principals import Role
from shared.api import create_app
from shared.runtime import Runtime
from tests.diagnostic.service import service
from tests.gateway.echo import SECRET
from tests.gateway.house import house
from tests.gateway.serving import served
from tests.redis_server import RedisServer
from tests.stack import Stack


def _diagnostic(runtime: Runtime) -> dict[str, FastAPI]:
    return {"diagnostic": create_app(service, runtime)}


class Installation(threading.Thread):
    """A gateway with the diagnostic service mounted, on an event loop of its own."""

    def __init__(self, server: RedisServer, home: Path) -> None:
        super().__init__(daemon=True)
        self.url = ""
        self.api_keys: dict[str, str] = {}
        self._server, self._home = server, home
        self._is_ready, self._may_end = threading.Event(), threading.Event()

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._is_ready.set()

    async def _serve(self) -> None:
        roles: tuple[Role, ...] = ("app", "officer", "custodian")
        async with house(self._server, self._home, _diagnostic) as home:
            self.api_keys = {role: (await home.principal(role))[1] for role in roles}
            async with served(home.app) as self.url:
                self._is_ready.set()
                await asyncio.to_thread(self._may_end.wait)

    def __enter__(self) -> Installation:
        self.start()
        assert self._is_ready.wait(30)
        assert self.url, "the gateway did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._may_end.set()
        self.join(30)

    def client(self, role: str) -> tenfold.Client:
        return tenfold.Client(self.url, self.api_keys[role])


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    home = tmp_path_factory.mktemp("installation")
    with RedisServer(tmp_path_factory.mktemp("redis")) as server, Installation(server, home) as installation:
        stack = Stack(server, home, TENFOLD_INTERNAL_SECRET=SECRET)
        try:
            stack.start("worker")
            yield installation
        finally:
            stack.close()


@pytest.fixture
def app(installation: Installation) -> Iterator[tenfold.Client]:
    with installation.client("app") as client:
        yield client


@pytest.fixture
def officer(installation: Installation) -> Iterator[tenfold.Client]:
    with installation.client("officer") as client:
        yield client


@pytest.fixture
def custodian(installation: Installation) -> Iterator[tenfold.Client]:
    with installation.client("custodian") as client:
        yield client


class Blurred(tenfold.Result):
    image: tenfold.File
    note: tenfold.File | None


PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


class TestOperations:
    def test_fields_arrive_and_results_come_back(self, app: tenfold.Client) -> None:
        job = app.call("diagnostic", "noop", {"text": "hälló", "seed": 7})
        assert job.result is not None
        assert (job.result["text"], job.result["seed"]) == ("hälló", 7)

    def test_a_picture_and_a_document(self, app: tenfold.Client) -> None:
        job = app.call("diagnostic", "blur", files={"image": PICTURE, "note": b'{"a": 1}'})
        result = job.result_as(Blurred)
        with PIL.Image.open(io.BytesIO(result.image.read())) as picture:
            assert picture.size == (30, 20)
        assert result.note is not None
        assert b'"a"' in result.note.read()

    @pytest.mark.parametrize("note", [None, b'{"a": 1}'])
    def test_a_stored_picture_alone_and_beside_a_document(self, app: tenfold.Client, note: bytes | None) -> None:
        stored = app.files.upload(PICTURE)
        assert (stored.width, stored.height, stored.media_type) == (30, 20, "image/png")
        result = app.call("diagnostic", "blur", {}, {"image": stored, "note": note}).result_as(Blurred)
        assert result.image.width == 30
        assert (result.note is None) == (note is None)

    def test_a_long_one_is_followed_by_its_events(self, app: tenfold.Client) -> None:
        job = app.submit("diagnostic", "sleep", {"seconds": 0.5, "steps": 5})
        events = [*app.jobs.stream(job.id, wait_s=30)]
        assert [event.data["step"] for event in events if event.kind == "progress"][-1] == 5
        assert [event.data["state"] for event in events if event.kind == "state"][-1] == "succeeded"
        assert app.jobs.wait(job.id, wait_s=30).result == {"units_done": 0, "units_of_this_attempt": 0}

    def test_one_that_outlasts_the_wait_goes_on(self, app: tenfold.Client) -> None:
        with pytest.raises(tenfold.TimedOut) as raised:
            app.call("diagnostic", "sleep", {"seconds": 1.0, "steps": 20}, wait_s=0.3)
        assert raised.value.job_id is not None
        assert app.jobs.wait(raised.value.job_id, wait_s=30).state == "succeeded"

    def test_one_that_fails(self, app: tenfold.Client) -> None:
        with pytest.raises(tenfold.InvalidInput) as raised:
            app.call("diagnostic", "fail", {"how": "problem"})
        problem = raised.value
        assert (problem.code, problem.extras["how"]) == ("diagnostic_refused", "problem")
        assert problem.request_id is not None
        assert problem.job_id is not None
        job = app.jobs.get(problem.job_id)
        assert job.problem is not None
        assert (job.state, job.problem.code) == ("failed", problem.code)

    def test_one_that_is_cancelled(self, app: tenfold.Client) -> None:
        job = app.submit("diagnostic", "sleep", {"seconds": 20, "steps": 2000})
        assert app.jobs.cancel(job.id).state in ("cancelling", "cancelled")
        with pytest.raises(tenfold.Conflict) as raised:
            app.jobs.wait(job.id, wait_s=30)
        assert raised.value.code == "job_cancelled"

    def test_the_same_idempotency_key_is_the_same_job(self, app: tenfold.Client) -> None:
        once, again = (app.call("diagnostic", "noop", {"text": "a"}, idempotency_key="once") for _ in range(2))
        assert once.id == again.id
        with pytest.raises(tenfold.Conflict) as raised:
            app.call("diagnostic", "noop", {"text": "b"}, idempotency_key="once")
        assert raised.value.code == "idempotency_conflict"

    @pytest.mark.parametrize(
        ("operation", "fields", "kind", "code"),
        [
            ("noop", {"color": "red"}, tenfold.InvalidInput, "invalid_request"),
            ("noop", {"seed": -1}, tenfold.InvalidInput, "invalid_request"),
            ("noise", {}, tenfold.NotFound, "operation_not_found"),
            ("whisper", {}, tenfold.NotAllowed, "scope_missing"),
        ],
    )
    def test_what_is_refused(
        self, app: tenfold.Client, operation: str, fields: dict[str, Any], kind: type[tenfold.Problem], code: str
    ) -> None:
        with pytest.raises(kind) as raised:
            app.call("diagnostic", operation, fields)
        assert raised.value.code == code

    def test_many_at_once(self, installation: Installation) -> None:
        async def all_of_them() -> Any:
            async with tenfold.AsyncClient(installation.url, installation.api_keys["app"]) as client:
                calls = (client.call("diagnostic", "noop", {"text": str(n)}) for n in range(20))
                return await asyncio.gather(*calls)

        assert [job.result["text"] for job in asyncio.run(all_of_them())] == [str(n) for n in range(20)]


class TestTheRest:
    def test_files(self, app: tenfold.Client, tmp_path: Path) -> None:
        content = bytes(range(256)) * 3000
        file = app.files.upload(content, media_type="application/zip")
        assert app.files.get(file.file).sha256 == file.sha256
        assert app.files.download(file, tmp_path / "file.zip").read_bytes() == content
        app.files.delete(file)
        with pytest.raises(tenfold.NotFound):
            app.files.get(file)

    def test_the_same_upload_sent_twice_is_one_file(self, app: tenfold.Client) -> None:
        once, again = (app.files.upload(b"abc", idempotency_key="upload") for _ in range(2))
        assert once.file == again.file

    def test_jobs_are_listed_newest_first(self, app: tenfold.Client) -> None:
        made = [app.submit("diagnostic", "noop").id for _ in range(3)]
        listed = [job.id for _, job in zip(range(3), app.jobs.list(), strict=False)]
        assert listed == made[::-1]

    def test_methods_and_models(self, app: tenfold.Client) -> None:
        (method,) = (method for method in app.methods.list() if method.method == "diagnostic")
        assert method.available
        assert {"noop", "blur", "train"} <= {operation.name for operation in app.methods.get("diagnostic").operations}
        assert [*app.models.list("diagnostic")] == []
        with pytest.raises(tenfold.NotFound):
            app.models.get("diagnostic/none")

    def test_health(self, installation: Installation) -> None:
        with tenfold.Client(installation.url) as anybody:
            assert anybody.health().ready
            with pytest.raises(tenfold.AuthenticationFailed) as raised:
                next(anybody.jobs.list())
        assert raised.value.code == "api_key_missing"

    def test_keys_and_their_trail(
        self, custodian: tenfold.Client, officer: tenfold.Client, app: tenfold.Client
    ) -> None:
        key = custodian.keys.create(label="court", idempotency_key="court")
        assert custodian.keys.create(label="court", idempotency_key="court").key_id == key.key_id
        assert custodian.keys.rotate(key.key_id).key_version == 2
        assert custodian.keys.disable(key.key_id).state == "disabled"
        assert custodian.keys.enable(key.key_id).state == "active"
        assert custodian.keys.destroy(key.key_id, reason="asked for", grace_days=7).destroy_at is not None
        assert custodian.keys.cancel_destroy(key.key_id).state == "disabled"
        assert key.key_id in [known.key_id for known in custodian.keys.list()]
        entries = [entry for entry in officer.audit.list() if getattr(entry, "key_id", None) == key.key_id]
        assert {"key.create", "key.rotate", "key.disable", "key.enable"} <= {entry.action for entry in entries}
        with pytest.raises(tenfold.NotAllowed) as raised:
            app.keys.create()
        assert raised.value.extras["scope"] == "keys"
