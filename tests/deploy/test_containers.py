"""The containers of docker-compose.yml as local processes (`containers.py` says how), and the main job through them."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
import skimage.data
from PIL import Image

from deploy.docker.compose import render
from deploy.methods import METHODS, load_service
from tests.deploy.containers import Containers

DIAGNOSTIC = "tests.diagnostic.service:service"  # a second method, and one that trains


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="tenfold-containers-"))  # pytest's own are closed to other users
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def containers(folder: Path) -> Iterator[Containers]:
    places = [*METHODS.values(), DIAGNOSTIC]
    made = Containers(folder, render({place: load_service(place) for place in places}))
    try:
        made.set_up()
        made.up()
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="module")
def keys(containers: Containers) -> dict[str, str]:
    """API keys by role, as an operator makes the first ones."""
    made = containers.services["gateway"].run("tenfold-admin", "tenants", "create", "acme")
    assert made.returncode == 0, made.stderr
    return dict(line.split("\t") for line in made.stdout.splitlines())


def client(containers: Containers, key: str) -> httpx.Client:
    url = f"http://{containers.services['gateway'].address}:8080"
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}", "Prefer": "wait=60"}, timeout=90)


def broker(containers: Containers, service: str) -> redis.Redis:
    """The broker, as the user of a service."""
    address = (containers.services[service].root / "run/secrets/tenfold_broker_url").read_text()
    return redis.Redis.from_url(address, decode_responses=True)


def test_everything_that_compose_starts_turns_healthy(containers: Containers) -> None:
    names = {one.name for one in containers.active()}
    assert names == {
        "broker-redis", "custody-redis", "gateway", "trainer",
        *(f"{method}-{kind}" for method in (*METHODS, "diagnostic") for kind in ("api", "worker")),
    }  # fmt: skip
    assert all(one.is_healthy() for one in containers.active())


def test_the_main_job(containers: Containers, keys: dict[str, str]) -> None:
    stream = io.BytesIO()
    Image.fromarray(skimage.data.astronaut()).save(stream, "PNG")
    with client(containers, keys["app"]) as app, client(containers, keys["officer"]) as officer:
        job = app.post("/v1/ifadit/anonymize", files={"image": ("a.png", stream.getvalue())})
        assert job.status_code == 200, job.text
        assert [face["action"] for face in job.json()["result"]["faces"]] == ["anonymized"]
        picture = app.get(job.json()["result"]["image"]["url"]).content

        sent = {"files": {"image": ("b.png", picture)}, "data": {"purpose": "court order 17"}}
        refused = app.post("/v1/ifadit/recover", **sent)  # type: ignore[arg-type]
        assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing")
        back = officer.post("/v1/ifadit/recover", **sent)  # type: ignore[arg-type]
        assert back.status_code == 200, back.text
        assert back.json()["result"]["record_match"] is True
        assert "court order 17" in officer.get("/v1/audit").text


def test_a_training_runs_in_the_trainer_and_its_model_is_listed(containers: Containers, keys: dict[str, str]) -> None:
    with client(containers, keys["app"]) as app:
        job = app.post("/v1/diagnostic/train", json={"name": "tally", "steps": 3}).json()
        end = time.monotonic() + 60
        while app.get(job["url"]).json()["state"] != "succeeded":
            assert time.monotonic() < end, containers.services["trainer"].said()
            time.sleep(0.1)
        assert "diagnostic/tally@1" in app.get("/v1/models").text


def test_the_operators_container_lists_the_weights(containers: Containers) -> None:
    admin = containers.services["admin"]
    admin.lay()
    listed = admin.run(*admin.command)
    assert listed.returncode == 0, listed.stderr
    assert "ifadit/small" in listed.stdout


class TestBroker:
    def test_a_method_reaches_its_own_keys(self, containers: Containers) -> None:
        with broker(containers, "ifadit-worker") as ifadit:
            assert ifadit.zcard("tf:ifadit:workers") == 1
            assert ifadit.llen("ifadit") == 0

    @pytest.mark.parametrize(
        "words",
        [
            ("HGETALL", "tf:diagnostic:job:job_1"),
            ("ZRANGE", "tf:diagnostic:workers", "0", "-1"),
            ("LRANGE", "diagnostic", "0", "-1"),
            ("LPUSH", "diagnostic", "forged"),
            ("LPUSH", "diagnostic.train", "forged"),
            ("HGETALL", "unacked.diagnostic"),
            ("ZRANGE", "unacked_index.diagnostic", "0", "-1"),
            ("SADD", "_kombu.binding.diagnostic", "forged"),
            ("PUBLISH", "tf:diagnostic:cancel", "job_1"),
            ("GET", "tf:gateway:idempotency:prn_1:1"),
            ("SET", "tf:janitor", "me"),
            ("KEYS", "*"),
            ("SCAN", "0"),
            ("RANDOMKEY",),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("CLIENT", "LIST"),
            ("MONITOR",),
            ("ACL", "LIST"),
            ("EVAL", "return 1", "0"),
            ("COPY", "tf:diagnostic:workers", "tf:ifadit:copy"),
        ],
        ids=" ".join,
    )
    def test_and_nothing_else(self, containers: Containers, words: tuple[str, ...]) -> None:
        with broker(containers, "ifadit-worker") as ifadit, pytest.raises(redis.exceptions.NoPermissionError):
            ifadit.execute_command(*words)

    def test_a_script_reaches_no_further_than_its_user(self, containers: Containers) -> None:
        with broker(containers, "ifadit-worker") as ifadit:
            script = ifadit.register_script("return redis.call('HGETALL', 'tf:diagnostic:job:job_1')")
            with pytest.raises(redis.exceptions.ResponseError, match="ACL failure in script"):
                script()

    def test_without_a_password_there_is_only_ping(self, containers: Containers) -> None:
        with (
            redis.Redis(containers.services["broker-redis"].address) as nobody,
            pytest.raises(redis.exceptions.AuthenticationError),
        ):
            nobody.ping()
        with (
            redis.Redis(containers.services["broker-redis"].address, username="health", password="") as health,
            pytest.raises(redis.exceptions.NoPermissionError),
        ):
            health.get("tf:ifadit:stats")

    def test_the_brokers_passwords_do_not_open_custody(self, containers: Containers) -> None:
        for service in ("ifadit-worker", "gateway"):
            with broker(containers, service) as known:
                login = known.connection_pool.connection_kwargs
            custody = redis.Redis(
                containers.services["custody-redis"].address, username=login["username"], password=login["password"]
            )
            with custody, pytest.raises(redis.exceptions.AuthenticationError):
                custody.ping()


def test_one_worker_for_all_methods_takes_their_jobs(containers: Containers, keys: dict[str, str]) -> None:
    shared = containers.services["worker-gpu-shared"]
    shared.start(TENFOLD_DEVICE="cpu")
    shared.until_healthy()
    alone = containers.services["diagnostic-worker"]
    assert alone.stop() == 0
    with client(containers, keys["app"]) as app:
        answer = app.post("/v1/diagnostic/noop", json={"text": "hello"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["result"]["text"] == "hello"
    assert shared.stop() == 0


def test_each_stays_within_its_limits_and_writes_only_into_its_mounts(containers: Containers) -> None:
    for one in containers.active():
        if one.process is None or one.process.poll() is not None:
            continue
        assert one.most_memory_bytes() < _bytes(one.text["mem_limit"]), one.name
        assert one.threads() < one.text["pids_limit"], one.name
        allowed = {one.root / "tmp", one.root / "run"}
        written = {path for path in one.root.rglob("*") if path.is_file() and not allowed & {*path.parents}}
        assert not written, one.name
        if os.geteuid() == 0:
            assert os.stat(f"/proc/{one.process.pid}").st_uid == 10001


def test_a_restart_keeps_everything_and_stops_clean(containers: Containers, keys: dict[str, str]) -> None:
    with client(containers, keys["app"]) as app:
        before = [job["id"] for job in app.get("/v1/jobs").json()["jobs"]]
    statuses = containers.down()
    assert set(statuses.values()) == {0}, statuses
    secrets = {path: path.read_bytes() for path in (containers.folder / ".containers/secrets").iterdir()}
    containers.set_up()  # again: as after a method was added
    assert {path: path.read_bytes() for path in secrets} == secrets
    stores = [containers.services[name] for name in ("broker-redis", "custody-redis", "gateway")]
    containers.up(stores[:2])
    containers.up(stores[2:])
    with client(containers, keys["app"]) as app:
        assert [job["id"] for job in app.get("/v1/jobs").json()["jobs"]] == before


def _bytes(size: str) -> int:
    return int(size[:-1]) * {"m": 2**20, "g": 2**30}[size[-1]]
