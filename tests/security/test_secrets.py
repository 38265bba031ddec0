"""While a face is anonymized and recovered, no secret is written down anywhere: not by either Redis, not in a log.

A scan that finds nothing proves nothing by itself: the first tests leak on purpose, in every place, in every writing.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.custody.service import Custody
from services.ifadit.configuration_small import SMALL
from services.ifadit.service import service as ifadit
from shared.keyderivation import method_key
from shared.settings import GatewaySettings
from tests.gateway.custody.leaks import leaks
from tests.main_job.conftest import Installation, new_officers
from tests.redis_server import RedisServer
from tests.security import places
from tests.security.places import Place

SECRET = bytes(range(100, 132))


def _at(alignment: int, encode: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """As base64 of longer octets, in which the secret begins at this alignment."""
    return lambda secret: encode(b"x" * alignment + secret)


WRITINGS: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "hex": lambda secret: secret.hex().encode(),
    "HEX": lambda secret: secret.hex().upper().encode(),
    **{f"base64 +{n}": _at(n, base64.b64encode) for n in range(3)},
    **{f"base64url +{n}": _at(n, base64.urlsafe_b64encode) for n in range(3)},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("leaky")) as server:
        yield server


class TestTheScanFinds:
    @pytest.mark.parametrize("writing", WRITINGS)
    def test_a_secret_in_a_redis(self, server: RedisServer, tmp_path: Path, writing: str) -> None:
        """In the value of a key of each type, in the name of a key, in the append-only file, in the dump."""
        leak = b"before " + WRITINGS[writing](SECRET) + b" after"
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
            client.set("string", leak)
            client.hset("hash", "field", leak)
            client.hset("fields", leak, "value")
            client.rpush("list", leak)
            client.sadd("set", leak)
            client.zadd("zset", {leak: 1})
            client.xadd("stream", {"field": leak})
            client.set(leak, "value")
            names = {"string", "hash", "fields", "list", "set", "zset", "stream"}
        with places.copy_of(server.folder, tmp_path) as copy:
            found = leaks({"s": SECRET}, places.dump(copy, "r"))
        assert {f"s in r: {name.encode()!r}" for name in names} <= set(found)
        assert [line for line in found if line.endswith(".aof")]
        assert "s in r: dump.rdb" in found
        assert len(found) >= len(names) + 3, "the key whose name is the secret, too"

    @pytest.mark.parametrize("writing", WRITINGS)
    @pytest.mark.parametrize("folder", ["log", "files", "models", "audit"])
    def test_a_secret_in_a_file(self, tmp_path: Path, folder: str, writing: str) -> None:
        (tmp_path / folder / "xy").mkdir(parents=True)
        (tmp_path / folder / "xy" / "file").write_bytes(bytes(5000) + WRITINGS[writing](SECRET) + bytes(5000))
        assert leaks({"s": SECRET}, places.files(tmp_path)) == [f"s in {folder}/file"]

    @pytest.mark.parametrize("writing", WRITINGS)
    def test_a_secret_in_an_answer(self, fortress: Installation, writing: str) -> None:
        """One that a caller sends on purpose, and the service gives back."""
        answers = Answers(fortress)
        text = WRITINGS[writing](SECRET).decode("latin-1")
        answers.call("POST", "/v1/diagnostic/noop", "app", json={"text": text})
        found = leaks({"s": SECRET}, answers.places())
        assert found == ["s in answer to POST /v1/diagnostic/noop"]

    def test_a_secret_in_the_list_of_processes(self, fortress: Installation) -> None:
        shown = str(fortress.home).encode()  # what every process of ours is told, in place of a secret
        assert leaks({"s": shown}, places.processes(fortress.home))


class Answers:
    """Calls of an installation, with every octet that came back."""

    def __init__(self, fortress: Installation) -> None:
        self._fortress = fortress
        self._seen: list[Place] = []

    def call(self, verb: str, path: str, role: str, **kwargs: Any) -> Any:
        headers = self._fortress.headers(role) | kwargs.pop("headers", {})
        response = self._fortress.http.request(verb, path, headers=headers, **kwargs)
        head = "\n".join(f"{name}: {value}" for name, value in response.headers.items()).encode()
        self._seen.append((f"answer to {verb} {path}", head + b"\n\n" + response.content))
        return response

    def places(self) -> Iterator[Place]:
        yield from self._seen


class Scene:
    """The main job, once, with all that it left behind, and all that must not be found in it."""

    def __init__(self, fortress: Installation, folder: Path) -> None:
        self.fortress, self.home, self._folder = fortress, fortress.home, folder
        self.answers = Answers(fortress)
        self.secrets: dict[str, bytes] = {}
        self.at_rest: list[Place] = []
        self.afterwards: list[Place] = []

    def play(self, photograph: bytes, officer: str) -> None:
        call = self.answers.call
        self.secrets["the photograph"] = photograph[len(photograph) // 2 :][:64]
        self.secrets["another officer's API key"] = officer.encode()[12:]
        self.key_id = call("POST", "/v1/keys", "custodian", json={"label": "scanned"}).json()["key_id"]
        self.job_id = self._anonymized_late(photograph)
        job = self._until_done(self.job_id)
        picture = call("GET", job["result"]["image"]["url"], "app").content
        record = call("GET", job["result"]["record"]["url"], "app").content
        for purpose, given in (("a scan", record), ("a forgery", record.replace(b"per_image", b"per_key"))):
            files = {"image": ("a.png", picture), "record": ("r.json", given)}
            headers = {"Authorization": f"Bearer {officer}"}
            done = call("POST", "/v1/ifadit/recover", "app", headers=headers, files=files, data={"purpose": purpose})
            if done.status_code == 200:
                call("GET", done.json()["result"]["image"]["url"], "app", headers=headers)
        assert done.status_code == 422
        for step in ("rotate", "disable", "enable"):
            assert call("POST", f"/v1/keys/{self.key_id}/{step}", "custodian", json={}).status_code == 200
        for path, role in (("/v1/keys", "custodian"), ("/v1/audit?limit=1000", "officer"), ("/v1/jobs", "app")):
            assert call("GET", path, role).status_code == 200
        self.afterwards = list(self._places("afterwards"))

    def _anonymized_late(self, photograph: bytes) -> str:
        """Accepted while the worker stands still, so that what lies in the store and in the queue can be looked at."""
        (worker,) = places.pids(self.home, "deploy.run\0worker")
        os.kill(worker, signal.SIGSTOP)
        try:
            accepted = self.answers.call(
                "POST",
                f"/v1/ifadit/anonymize?key={self.key_id}",
                "app",
                headers={"Prefer": "respond-async"},
                files={"image": ("p.png", photograph)},
            )
            assert accepted.status_code == 202, accepted.text
            self.at_rest = list(self._places("at_rest"))
        finally:
            os.kill(worker, signal.SIGCONT)
        job_id: str = accepted.json()["id"]
        return job_id

    def _until_done(self, job_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            job: dict[str, Any] = self.answers.call("GET", f"/v1/jobs/{job_id}", "app").json()
            if job["state"] not in ("queued", "running"):
                assert job["state"] == "succeeded", job
                return job
            time.sleep(0.1)
        raise AssertionError(f"{job_id} is not done")

    def _places(self, moment: str) -> Iterator[Place]:
        for role in ("broker", "custody"):
            with places.copy_of(self.home / "redis" / role, self._folder / moment / role) as copy:
                yield from places.dump(copy, role)
        yield from places.files(self.home)
        yield from places.processes(self.home)
        for name, octets in (("up.log", (self.home.parent / "up.log")),):
            yield name, octets.read_bytes()

    async def learn(self) -> None:
        """Ask custody, with the installation's own key-encryption key, for everything that it keeps secret."""
        for path in (self.home / "secrets").iterdir():
            if path.name.endswith(("_secret", "_pepper", "_password")):
                self.secrets[path.name] = path.read_text().strip().encode()
        for path in (self.home / "keys").iterdir():
            text = path.read_text().strip()[12:]
            self.secrets[f"API key of the {path.name}"] = text.encode()
            self.secrets[f"API key of the {path.name}, decoded"] = base64.urlsafe_b64decode(text + "=")
        self.secrets["kek"] = base64.b64decode(json.loads((self.home / "kek.json").read_text())["1"])
        custody = await Custody.connect(GatewaySettings(_secrets_dir=self.home / "secrets"))
        try:
            await self._ask(custody)
        finally:
            await custody.close()

    async def _ask(self, custody: Custody) -> None:
        state = await custody.keys.get("local", self.key_id)
        for version in range(1, state.version + 1):
            async with custody._opener.open(state, version, "recover") as secret:
                self.secrets[f"method secret {version}"] = bytes(secret.octets)
        roots = custody._roots
        for name in ("metadata", "audit", "tenant_ref", "lease"):
            self.secrets[f"root {name}"] = bytes(getattr(roots, name).octets)
        self.secrets["signing root"] = roots.signing[0].private.private_bytes_raw()
        url = (self.home / "secrets" / "tenfold_broker_url").read_text()
        with redis.Redis.from_url(url, decode_responses=True) as broker:
            for name in broker.scan_iter(match=f"tf:{ifadit.name}:job:*", _type="hash", count=1000):
                lease = str(broker.hget(name, "lease") or "")
                if lease and not name.endswith(":units"):
                    self.secrets[f"file key of {name}"] = bytes(await custody.file_key(lease))
        record = json.loads(self._record())
        self.secrets["image key"] = bytes(
            method_key(
                self.secrets["method secret 1"],
                tenant="local",
                key_id=self.key_id,
                model_id=record["model_id"],
                image_nonce=bytes.fromhex(record["faces"][0]["nonce"]),
                dim=SMALL.key_dim,
            )
        )

    def _record(self) -> bytes:
        job = self.fortress.get(f"/v1/jobs/{self.job_id}").json()
        return self.fortress.download(job["result"]["record"])


@pytest.fixture(scope="module")
async def scene(fortress: Installation, astronaut: bytes, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("copies")
    scene = Scene(fortress, folder)
    (officer,) = new_officers(fortress, 1)
    scene.play(astronaut, officer)
    await scene.learn()
    shutil.rmtree(folder)
    return scene


@pytest.mark.anyio
class TestTheMainJob:
    async def test_was_seen_whole(self, scene: Scene) -> None:
        kinds = {name.split(" ")[0] for name in scene.secrets}
        assert {"kek", "root", "signing", "method", "image", "file", "API", "tenfold_internal_secret"} <= kinds
        for seen in (scene.at_rest, scene.afterwards):
            names = " ".join(name for name, _ in seen)
            for place in (
                "broker: dump.rdb",
                "custody: dump.rdb",
                ".aof",
                "log/gateway.log",
                "log/worker.log",
                "files/",
            ):
                assert place in names
        assert any(scene.job_id.encode() in octets for _, octets in scene.at_rest)

    async def test_leaves_no_secret_while_it_waits(self, scene: Scene) -> None:
        assert leaks(scene.secrets, iter(scene.at_rest)) == []

    async def test_leaves_no_secret_when_it_is_over(self, scene: Scene) -> None:
        assert leaks(scene.secrets, iter(scene.afterwards)) == []

    async def test_tells_no_secret(self, scene: Scene) -> None:
        seen = list(scene.answers.places())
        assert sum(len(octets) for _, octets in seen) > 100_000
        assert leaks(scene.secrets, iter(seen)) == []


def test_no_process_would_write_its_memory_to_disk(fortress: Installation) -> None:
    ours = places.pids(fortress.home, "deploy.run")
    assert len(ours) >= 2
    for pid in ours:
        assert re.search(r"Max core file size +0 +0 ", Path(f"/proc/{pid}/limits").read_text())
