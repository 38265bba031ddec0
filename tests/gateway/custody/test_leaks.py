"""T6, T7, T8: secrets are in no file of Redis, no command on the wire, no broker, no log, no answer, no audit entry.

A scan that finds nothing proves nothing by itself: the first tests leak on purpose.
"""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
from redis import Redis

from gateway.custody import audit as audit_module
from gateway.custody import redeeming
from gateway.custody.envelope import Envelope, SecretName, Wrapped
from gateway.custody.service import Custody
from gateway.custody.store import KeyState
from shared.keyderivation import method_key
from shared.problems import Problem
from shared.secretbytes import SecretBytes
from tests.gateway.custody.leaks import files_under, leaks, shapes
from tests.gateway.custody.support import (
    INTERNAL_SECRET,
    Http,
    Person,
    anonymized,
    job_for,
    key_for,
    person,
    public_app,
    recovered,
    settings_for,
)
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio
SECRET = bytes(range(100, 132))


class TestTheScanItself:
    @pytest.mark.parametrize(
        "leak",
        [
            SECRET,
            b"xx" + SECRET + b"yy",
            SECRET.hex().encode(),
            SECRET.hex().upper().encode(),
            *(base64.b64encode(bytes(prefix) + SECRET) for prefix in range(7)),
            base64.urlsafe_b64encode(SECRET),
            json.dumps({"key": base64.b64encode(b"{" + SECRET).decode()}).encode(),
            SECRET[:16],
        ],
    )
    def test_finds_a_leak(self, leak: bytes) -> None:
        assert leaks({"s": SECRET}, iter([("place", b"before" + leak + b"after")])) == ["s in place"]

    def test_finds_nothing_in_something_else(self) -> None:
        other = bytes(range(32)) * 100
        octets = other + base64.b64encode(other) + other.hex().encode()
        assert leaks({"s": SECRET}, iter([("place", octets)])) == []
        assert len(shapes(SECRET)) >= 8


class Scene:
    """A whole life of a key on servers of its own, with everything overheard."""

    def __init__(self, home: Path, custody: Custody, server: RedisServer, broker: RedisServer) -> None:
        self.home, self.custody, self.server, self.broker = home, custody, server, broker
        self.secrets: dict[str, bytes] = {}
        self.contexts: list[str] = []
        self.people: dict[str, Person] = {}

    async def play(self) -> None:
        custody = self.custody
        people = {role: await person(custody, role) for role in ("app", "officer", "custodian")}
        app, officer, custodian = people.values()
        self.people = people
        second = await person(custody, "custodian")
        for who in (*people.values(), second):
            self.secrets[f"api key of {who.principal.role}"] = who.api_key.split("_", 2)[2].encode()
        state = await key_for(custody, custodian, default=True)
        octets, record = await anonymized(custody, app)
        self.secrets |= {"image key": bytes(octets[:512]), "second image key": bytes(octets[512:])}
        job = await job_for(custody, app, "anonymize")
        self.contexts.append(job.context.signed(INTERNAL_SECRET))
        self.secrets["file key"] = bytes(await custody.redeeming.file_key(job.context, job.lease))
        state = await custody.keys.rotate(custodian.caller, state.key_id)
        await self._know(state)
        await recovered(custody, officer, record)
        with suppress(Problem):
            await recovered(custody, officer, {**record, "v": 2})
        await custody.keys.disable(custodian.caller, state.key_id)
        await custody.keys.enable(custodian.caller, state.key_id)
        await custody.keys.destroy(custodian.caller, state.key_id, reason="x")
        await custody.keys.cancel_destroy(second.caller, state.key_id)
        await custody.sweep()

    async def _know(self, state: KeyState) -> None:
        for version in range(1, state.version + 1):
            async with self.custody._opener.open(state, version, "recover") as secret:
                self.secrets[f"secret {version}"] = bytes(secret.octets)
        roots = self.custody._roots
        self.secrets |= {
            name: bytes(root.octets)
            for name, root in {
                "metadata root": roots.metadata,
                "audit root": roots.audit,
                "tenant root": roots.tenant_ref,
                "lease root": roots.lease,
            }.items()
        }
        self.secrets["signing root"] = roots.signing[0].private.private_bytes_raw()
        kek = json.loads((self.home / "kek.json").read_text())
        self.secrets["kek"] = base64.b64decode(kek["1"])


@pytest.fixture
async def scene(home: Path, tmp_path: Path) -> AsyncIterator[Scene]:
    server, broker = RedisServer(tmp_path / "custody").start(), RedisServer(tmp_path / "broker").start()
    custody = await Custody.connect(settings_for(home, server.url, broker.url))
    yield Scene(home, custody, server, broker)
    await custody.close()
    server.stop()
    broker.stop()


@contextmanager
def overheard(server: RedisServer, into: Path) -> Iterator[None]:
    """Write every command that the server gets into a file."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection, into.open("wb") as file:
        connection.sendall(b"MONITOR\r\n")
        file.write(connection.recv(5))

        def listen() -> None:
            while octets := connection.recv(65536):
                file.write(octets)

        thread = threading.Thread(target=listen)
        thread.start()
        yield
        connection.shutdown(socket.SHUT_RDWR)
        thread.join(10)


async def test_no_file_of_redis_and_no_command_holds_a_secret(scene: Scene, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    heard.mkdir()
    with overheard(scene.server, heard / "custody"), overheard(scene.broker, heard / "broker"):
        await scene.play()
    with Redis.from_url(scene.server.url) as redis:
        redis.save()
    assert len(scene.secrets) == 14
    assert (scene.server.folder / "dump.rdb").stat().st_size > 1000
    assert (heard / "custody").stat().st_size > 10_000
    assert leaks(scene.secrets, files_under(scene.server.folder, heard)) == []


async def test_custody_says_nothing_to_the_broker(scene: Scene, tmp_path: Path) -> None:
    with overheard(scene.broker, tmp_path / "heard"):
        await scene.play()
    assert (tmp_path / "heard").read_bytes() == b"+OK\r\n"
    contexts = [("context", base64.urlsafe_b64decode(text.partition(".")[0])) for text in scene.contexts]
    assert contexts
    assert leaks(scene.secrets, iter(contexts)) == []


async def test_the_trail_and_the_rest_of_the_home_hold_none(scene: Scene) -> None:
    await scene.play()
    (scene.home / "kek.json").rename(scene.home.parent / "kek.json")
    assert (scene.home / "audit" / "checkpoints.jsonl").exists()
    assert leaks(scene.secrets, files_under(scene.home)) == []


class Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


FAULTS = {
    "wrap": ("gateway.custody.envelope.Envelope", "wrap"),
    "unwrap": ("gateway.custody.envelope.Envelope", "unwrap"),
    "commit": ("gateway.custody.database.Database", "commit"),
    "script": ("gateway.custody.database.Database", "run"),
    "read": ("gateway.custody.database.Database", "hash"),
    "audit": ("gateway.custody.audit.AuditTrail", "append"),
    "count": ("gateway.custody.leases.Leases", "redeem"),
    "sign": ("gateway.custody.records.Records", "sign"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_log_no_traceback_and_no_answer_holds_one_whatever_fails(
    scene: Scene, fault: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each step fails in turn, from its second call on, with everything logged that logging can log."""
    recorder = Recorder()
    root = logging.getLogger()
    root.addHandler(recorder)
    monkeypatch.setattr(root, "level", logging.DEBUG)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))
    try:
        await scene.play()
        target, name = FAULTS[fault]
        module, _, cls = target.rpartition(".")
        owner = getattr(__import__(module, fromlist=[cls]), cls)
        real = getattr(owner, name)
        shown: list[str] = []

        async def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
            await real(self, *args, **kwargs)
            raise RuntimeError(f"{name} failed with {args!r} {kwargs!r}")

        def failing_now(self: Any, *args: Any, **kwargs: Any) -> Any:
            real(self, *args, **kwargs)
            raise RuntimeError(f"{name} failed with {args!r} {kwargs!r}")

        monkeypatch.setattr(owner, name, failing_now if fault == "sign" else failing)
        custody = scene.custody
        state = (await custody.keys.list("acme") if fault != "read" else [None])[0]
        app, custodian = scene.people["app"], scene.people["custodian"]
        for asked in (
            key_for(custody, custodian),
            custody.keys.rotate(custodian.caller, state.key_id if state else "key_" + "0" * 26),
            anonymized(custody, app),
        ):
            try:
                await asked
            except Exception as error:  # noqa: BLE001  whatever comes is shown
                root.exception("it failed", exc_info=error)
                shown.append(repr(error))
        assert shown, "the fault was met"
        out = capfd.readouterr()
        places = [("log", "\n".join(recorder.lines)), ("stdout", out.out), ("stderr", out.err), ("errors", str(shown))]
        assert leaks(scene.secrets, ((place, text.encode()) for place, text in places)) == []
    finally:
        root.removeHandler(recorder)
        structlog.reset_defaults()


async def test_no_answer_over_http_holds_one(scene: Scene) -> None:
    await scene.play()
    custody = scene.custody
    custodian, officer = await person(custody, "custodian"), await person(custody, "officer")
    paths = ("/v1/keys", "/v1/audit?limit=1000", "/.well-known/tenfold-record-keys.json", "/openapi.json")
    async with Http(public_app(custody)) as http:
        answers = [await http.get(path, who) for who in (custodian, officer) for path in paths]
        [key] = (await http.get("/v1/keys", custodian)).json()["keys"]
        steps = ("rotate", "disable", "enable")
        answers += [await http.post(f"/v1/keys/{key['key_id']}/{step}", custodian) for step in steps]
    texts = [(str(answer.url), answer.content) for answer in answers]
    assert sum(len(text) for _, text in texts) > 5000
    assert leaks(scene.secrets, iter(texts)) == []


class TestWiping:
    async def test_a_new_secret_is_wiped_when_it_is_wrapped(
        self, custody: Custody, custodian: Person, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrapped: list[SecretBytes] = []
        real = Envelope.wrap

        async def wrap(self: Envelope, name: SecretName, secret: SecretBytes) -> Wrapped:
            wrapped.append(secret)
            assert not secret.is_wiped
            return await real(self, name, secret)

        monkeypatch.setattr(Envelope, "wrap", wrap)
        state = await key_for(custody, custodian)
        await custody.keys.rotate(custodian.caller, state.key_id)
        assert len(wrapped) == 2
        assert all(secret.is_wiped for secret in wrapped)

    async def test_image_keys_are_wiped_once_they_are_joined(
        self, custody: Custody, custodian: Person, app: Person, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        derived: list[bytearray] = []

        def derive(*args: Any, **kwargs: Any) -> bytearray:
            derived.append(method_key(*args, **kwargs))
            return derived[-1]

        monkeypatch.setattr(redeeming, "method_key", derive)
        await key_for(custody, custodian, default=True)
        octets = await (await job_for(custody, app, "anonymize")).redeem()
        assert len(derived) == 2
        assert any(octets)
        assert not any(any(face) for face in derived)

    async def test_closing_wipes_the_roots_and_what_is_remembered(self, home: Path, scene: Scene) -> None:
        await scene.play()
        roots = scene.custody._roots
        held = [root.octets for root in (roots.metadata, roots.audit, roots.tenant_ref, roots.lease)]
        held += [secret.octets for secret, _ in scene.custody._opener._cache.values()]
        assert len(held) == 5
        await scene.custody.close()
        assert not any(any(octets) for octets in held)


def test_the_trail_has_no_field_that_a_secret_could_travel_in() -> None:
    assert not {name for name in audit_module.FIELDS if "secret" in name or "octets" in name or name == "nonces"}
