"""The worker's client against a real door: custody behind uvicorn, on a socket file and on a port."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request

from gateway.custody.door import door_router
from gateway.custody.kek import InsecureFileKek
from gateway.custody.secretkeys import Caller, NewKey
from gateway.custody.service import Custody
from shared import leases
from shared.context import CallContext
from shared.ids import ordered_id
from shared.leases import LeaseClient, image_nonce
from shared.problems import CallNotSigned, LeaseExpired, RecordInvalid, SecretKeyDisabled, ServiceUnavailable
from shared.settings import GatewaySettings
from tests.gateway.custody.support import DIM, INTERNAL_SECRET, MODEL, draft_of, settings_for, with_problems
from tests.redis_server import RedisServer


class Door:
    """A gateway's internal door in a thread with a loop of its own, and what a gateway would hand to a worker."""

    def __init__(self, settings: GatewaySettings, **where: Any) -> None:
        self._settings = settings
        self._where = where
        self._loop = asyncio.new_event_loop()
        self._made = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    @contextmanager
    def open(self) -> Iterator[Door]:
        self._thread.start()
        assert self._made.wait(10)
        until = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < until
            time.sleep(0.01)
        try:
            yield self
        finally:
            self._server.should_exit = True
            self._thread.join(10)
            self._loop.close()

    async def _serve(self) -> None:
        self.custody = await Custody.connect(self._settings)
        app = with_problems(FastAPI())

        def custody_of(request: Request) -> Custody:
            return self.custody

        app.include_router(door_router(custody_of))
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", **self._where))
        self._made.set()
        try:
            await self._server.serve()
        finally:
            await self.custody.close()

    def run(self, asked: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result(10)

    def job(self, role: Any, kind: Any) -> tuple[str, str]:
        """A lease and the context that a worker gets with its job."""
        principal, _ = self.run(self.custody.principals.create("acme", role))
        call = {"job_id": ordered_id("job"), "method": "ifadit", "operation": kind, "request_id": "req_12345678"}
        expires_at = time.time() + 600
        lease = self.run(self.custody.open_lease(principal, kind=kind, key_id=None, expires_at=expires_at, **call))
        context = CallContext("acme", principal.id, (), expires_at=expires_at, lease=lease, **call)
        return lease, context.signed(INTERNAL_SECRET)

    def disable(self) -> None:
        self.run(self.custody.keys.disable(self._custodian, self.key_id))

    def make_key(self) -> None:
        principal, _ = self.run(self.custody.principals.create("acme", "custodian"))
        self._custodian = Caller(principal)
        self.key_id = self.run(self.custody.keys.create(self._custodian, NewKey(default=True))).key_id


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def settings(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> GatewaySettings:
    home = tmp_path_factory.mktemp("home")
    InsecureFileKek.create(home / "kek.json", environment="dev")
    return settings_for(home, redis_server.url)


@pytest.fixture
def door(settings: GatewaySettings) -> Iterator[Door]:
    with Door(settings, uds=str(settings.home / "door.sock")).open() as door:
        door.make_key()
        yield door


@pytest.fixture
def client(settings: GatewaySettings, door: Door) -> Iterator[LeaseClient]:
    with LeaseClient(f"unix://{settings.home / 'door.sock'}", INTERNAL_SECRET) as client:
        yield client


def redeem(client: LeaseClient, lease: str, context: str, **other: Any) -> list[Any]:
    wish: dict[str, Any] = {"attempt": 1, "unit": 0, "nonces": nonces_in(context), "dim": DIM, **MODEL, **other}
    return client.redeem(lease, context, **wish)


def nonces_in(context: str) -> tuple[str, ...]:
    """Those of two faces of the job that a context belongs to."""
    try:
        job_id = CallContext.verified(context, INTERNAL_SECRET).job_id
    except CallNotSigned:
        job_id = "job_of_nobody"
    return tuple(image_nonce(job_id, face) for face in range(2))


def test_a_picture_is_anonymized_sealed_checked_and_recovered(client: LeaseClient, door: Door) -> None:
    lease, context = door.job("app", "anonymize")
    faces = redeem(client, lease, context)
    assert [repr(face) for face in faces] == [f"<secret {4 * DIM} B>"] * 2
    record = client.seal(lease, context, attempt=1, unit=0, draft=draft_of(nonces_in(context)))
    assert record == client.seal(lease, context, attempt=1, unit=0, draft=draft_of(nonces_in(context)))
    _, verifying = door.job("app", "verify")
    assert client.check_record(verifying, record)["own_tenant"] is True
    lease, context = door.job("officer", "recover")
    again = redeem(client, lease, context, nonces=None, record=record, purpose="court order 17")
    assert again == faces


def test_the_file_key_is_the_gateways(client: LeaseClient, door: Door) -> None:
    lease, context = door.job("app", "anonymize")
    key = client.file_key(lease, context)
    assert isinstance(key, bytearray)
    assert key == door.run(door.custody.file_key(lease))


def test_the_same_over_a_port(settings: GatewaySettings) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    door = Door(settings, host="127.0.0.1", port=port)
    with door.open(), LeaseClient(f"http://127.0.0.1:{port}", INTERNAL_SECRET) as client:
        door.make_key()
        assert len(redeem(client, *door.job("app", "anonymize"))) == 2


def test_octets_can_be_read_for_two_minutes(client: LeaseClient, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    assert leases.OCTETS_VALID_S == 120
    monkeypatch.setattr(leases, "OCTETS_VALID_S", 0.05)
    face, _ = redeem(client, *door.job("app", "anonymize"))
    assert len(face.octets) == 4 * DIM
    time.sleep(0.06)
    with pytest.raises(ValueError, match="wiped"):
        _ = face.octets


class TestProblems:
    def test_the_doors_problem_is_raised(self, client: LeaseClient, door: Door) -> None:
        lease, context = door.job("app", "anonymize")
        for _ in range(3):
            redeem(client, lease, context)
        with pytest.raises(LeaseExpired, match="3 times"):
            redeem(client, lease, context)

    def test_a_disabled_key_is_said_to_be_one(self, client: LeaseClient, door: Door) -> None:
        lease, context = door.job("app", "anonymize")
        door.disable()
        with pytest.raises(SecretKeyDisabled):
            redeem(client, lease, context)

    def test_a_record_that_is_none_is_said_to_be_none(self, client: LeaseClient, door: Door) -> None:
        lease, context = door.job("officer", "recover")
        with pytest.raises(RecordInvalid):
            redeem(client, lease, context, nonces=None, record={"v": 1}, purpose="x")

    def test_with_another_secret_nothing_is_answered(self, settings: GatewaySettings, door: Door) -> None:
        client = LeaseClient(f"unix://{settings.home / 'door.sock'}", INTERNAL_SECRET[::-1])
        with client, pytest.raises(CallNotSigned):
            client.file_key(*door.job("app", "anonymize"))


@pytest.mark.filterwarnings(
    # httpcore leaves the socket of a failed connect to the collector
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)
class TestNoDoor:
    @pytest.mark.parametrize("url", ["unix:///nowhere/door.sock", "http://127.0.0.1:1"])
    def test_it_is_unavailable_after_a_few_tries(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        monkeypatch.setattr(leases, "_PAUSES_S", (0.01, 0.01))
        with LeaseClient(url, INTERNAL_SECRET) as client, pytest.raises(ServiceUnavailable):
            client.file_key("lease_x", "context")

    def test_a_door_that_opens_late_is_waited_for(self, settings: GatewaySettings) -> None:
        path = settings.home / "late.sock"
        door = Door(settings, uds=str(path))
        client = LeaseClient(f"unix://{path}", INTERNAL_SECRET)
        outcome: list[BaseException] = []

        def ask() -> None:
            try:
                client.file_key("lease_x", "context")
            except Exception as error:  # noqa: BLE001
                outcome.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.05)
        with door.open():
            asking.join(10)
        client.close()
        assert [type(error) for error in outcome] == [CallNotSigned], "it was reached, and refused a forged context"

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\noops", "answered 502"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 400\r\n\r\nshort", "broke off"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nshort", "no image key"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "no image key"),
        ],
    )
    def test_an_answer_that_is_none_is_unavailable_and_not_asked_for_twice(
        self, tmp_path: Path, answer: bytes, said: str
    ) -> None:
        with (
            speaking(tmp_path / "s", answer) as url,
            LeaseClient(url, INTERNAL_SECRET) as client,
            pytest.raises(ServiceUnavailable, match=said),
        ):
            redeem(client, "lease_x", "context")


@contextmanager
def speaking(path: Path, answer: bytes) -> Iterator[str]:
    """A socket that answers one call with these bytes and closes."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(10)

        def speak() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=speak)
        thread.start()
        yield f"unix://{path}"
        thread.join(10)
