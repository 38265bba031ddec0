"""Both clients against a real server: what is neither an operation nor a file, and the clients themselves."""

from __future__ import annotations

import asyncio
import io
import threading
from datetime import UTC, datetime
from typing import Any, BinaryIO, cast

import pytest

import tenfold
from tests.client.conftest import Way
from tests.client.contract import API_KEY, Contract
from tests.client.faults import answers


class TestLists:
    def test_methods(self, way: Way) -> None:
        (method,) = way(lambda c: c.methods.list())
        assert (method.method, method.default_model, method.live) == ("ifadit", "ifadit/small", {"workers": 1})
        assert way(lambda c: c.methods.get("ifadit")).operations[0].name == "anonymize"
        with pytest.raises(tenfold.NotFound):
            way(lambda c: c.methods.get("dlsr"))

    def test_models(self, way: Way) -> None:
        assert [model.model for model in way(lambda c: c.models.list())] == ["ifadit/small@1", "dlsr/mine@3"]
        assert [model.model for model in way(lambda c: c.models.list("dlsr"))] == ["dlsr/mine@3"]
        assert way(lambda c: c.models.get("dlsr/mine")).versions == (1, 2, 3)

    def test_deleting_models(self, way: Way, contract: Contract) -> None:
        assert way(lambda c: c.models.delete("dlsr/mine")) is None
        assert len(contract.models) == 1
        with pytest.raises(tenfold.Conflict) as raised:
            way(lambda c: c.models.delete("ifadit/small"))
        assert raised.value.code == "model_protected"

    def test_a_model_without_its_method_is_no_name(self, way: Way) -> None:
        with pytest.raises(ValueError, match="method/name"):
            way(lambda c: c.models.get("small"))

    def test_the_audit_trail_ends_although_reading_it_adds_to_it(self, way: Way, contract: Contract) -> None:
        way(lambda c: c.audit.list())
        for n in range(1, 230):
            contract.audit.append({"event": f'{{"action":"a","seq":{n},"time":"2026-03-01T12:00:00Z"}}', "mac": "ff"})
        entries = way(lambda c: c.audit.list())
        assert [entry.seq for entry in entries] == [*range(len(entries))]
        assert len(entries) == 233  # three pages, each of which was audited before it was read
        assert [entry.seq for entry in way(lambda c: c.audit.list(after=230))] == [231, 232, 233]
        assert (entries[5].action, entries[5].mac) == ("a", "ff")
        assert entries[5].time == datetime(2026, 3, 1, 12, tzinfo=UTC)


class TestKeys:
    def test_a_key_is_made_and_shown(self, way: Way, contract: Contract) -> None:
        end = datetime(2030, 1, 1, tzinfo=UTC)
        key = way(lambda c: c.keys.create(label="court", not_after=end, purposes=["recover"], default=True))
        assert (key.label, key.not_after, key.purposes, key.default) == ("court", end, ("recover",), True)
        assert way(lambda c: c.keys.get(key.key_id)) == key
        assert way(lambda c: c.keys.list()) == [key]
        assert "idempotency-key" in contract.called("POST /v1/keys")[0].headers

    def test_its_life(self, way: Way, contract: Contract) -> None:
        name = way(lambda c: c.keys.create()).key_id
        assert way(lambda c: c.keys.rotate(name)).key_version == 2
        assert way(lambda c: c.keys.disable(name)).state == "disabled"
        assert way(lambda c: c.keys.enable(name)).state == "active"
        assert way(lambda c: c.keys.destroy(name, reason="asked for")).state == "pending_destroy"
        assert way(lambda c: c.keys.cancel_destroy(name)).state == "disabled"
        said = [call.fields for call in contract.called(f"POST /v1/keys/{name}/")]
        assert said == [{}, {}, {}, {"reason": "asked for"}, {}]

    def test_a_moment_without_a_zone_is_refused(self, way: Way) -> None:
        with pytest.raises(ValueError, match="time zone"):
            way(lambda c: c.keys.create(not_after=datetime(2030, 1, 1)))
        with pytest.raises(ValueError, match="time zone"):
            way(lambda c: c.keys.enable("key_1", not_after=datetime(2030, 1, 1)))


class TestHealth:
    def test_ready(self, way: Way) -> None:
        health = way(lambda c: c.health())
        assert (health.ready, health.checks["broker"]) == (True, "ok")

    def test_not_ready_is_an_answer_and_no_exception(self, way: Way, contract: Contract) -> None:
        contract.is_ready = False
        health = way(lambda c: c.health())
        assert (health.ready, health.checks["broker"], health.unavailable_methods) == (False, "failed", ("ifadit",))
        assert len(contract.calls) == 1

    def test_what_is_no_answer_of_ours_is(self, way: Way, contract: Contract) -> None:
        contract.fail("GET /readyz", answers(404, "route_not_found"))
        with pytest.raises(tenfold.NotFound):
            way(lambda c: c.health())


class TestClients:
    def test_address_and_api_key_come_from_the_environment(
        self, contract: Contract, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TENFOLD_URL", contract.url + "/")
        monkeypatch.setenv("TENFOLD_API_KEY", API_KEY + "\n")
        with tenfold.Client() as client:
            assert list(client.jobs.list()) == []

    def test_what_is_given_comes_first(self, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TENFOLD_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("TENFOLD_API_KEY", "wrong")
        with tenfold.Client(contract.url, API_KEY) as client:
            assert list(client.jobs.list()) == []

    def test_without_either_it_is_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TENFOLD_URL", raising=False)
        monkeypatch.delenv("TENFOLD_API_KEY", raising=False)
        with tenfold.Client() as client:
            assert repr(client) == "Client('http://127.0.0.1:8080')"

    def test_a_wrong_api_key(self, way: Way) -> None:
        with pytest.raises(tenfold.AuthenticationFailed):
            way(lambda c: c.jobs.list(), api_key="wrong")

    def test_an_api_key_is_never_shown(self, way: Way, client: tenfold.Client) -> None:
        with pytest.raises(tenfold.AuthenticationFailed) as raised:
            way(lambda c: c.jobs.list(), api_key="tf_wrong_secret")
        shown = f"{way.client!r} {client!r} {raised.value!r} {vars(raised.value)} {client._driver.options!r}"
        assert "secret" not in shown
        assert API_KEY not in shown

    @pytest.mark.parametrize(
        "options",
        [
            {"base_url": "127.0.0.1:8080"},
            {"base_url": "ftp://host"},
            {"base_url": "https://"},
            {"base_url": "https://host?x=1"},
            {"base_url": "https://anna:secret@host"},
            {"api_key": "a\nb"},
            {"api_key": "ä"},
            {"timeout_s": 0},
            {"timeout_s": float("inf")},
            {"timeout_s": float("nan")},
            {"max_retries": -1},
            {"max_retries": 11},
        ],
    )
    def test_options_that_cannot_work_are_refused_at_once(
        self, options: dict[str, Any], client: tenfold.Client
    ) -> None:
        with pytest.raises(ValueError, match=next(iter(options))):
            tenfold.Client(**{"base_url": "http://127.0.0.1:1", **options})
        with pytest.raises(ValueError, match=next(iter(options))):
            client.with_options(**options)

    def test_other_options_leave_the_client_as_it_was(self, client: tenfold.Client) -> None:
        other = client.with_options(timeout_s=3, api_key="other")
        assert (other._driver.options.timeout_s, client._driver.options.timeout_s) == (3, 30)
        assert client._driver.options.api_key == API_KEY
        assert other._driver.http is client._driver.http

    def test_many_threads_share_a_client(self, contract: Contract, client: tenfold.Client, png: bytes) -> None:
        results: list[Any] = []
        threads = [
            threading.Thread(target=lambda: results.append(client.ifadit.anonymize(png).image.read())) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert results == [png] * 8
        assert len(contract.jobs) == 8

    def test_many_tasks_share_a_client(self, contract: Contract, png: bytes) -> None:
        async def one(client: tenfold.AsyncClient) -> bytes:
            result = await client.ifadit.anonymize(png)
            return await result.image.read()

        async def all_of_them() -> list[bytes]:
            async with tenfold.AsyncClient(contract.url, API_KEY) as client:
                return await asyncio.gather(*(one(client) for _ in range(16)))

        assert asyncio.run(all_of_them()) == [png] * 16

    def test_a_cancelled_task_lets_its_connection_go(self, contract: Contract, png: bytes) -> None:
        contract.takes_s = 30

        async def cancelled() -> tenfold.Health:
            async with tenfold.AsyncClient(contract.url, API_KEY) as client:
                task = asyncio.create_task(client.ifadit.anonymize(png))
                await asyncio.to_thread(contract.wait_for, "POST")
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                return await client.health()

        assert asyncio.run(cancelled()).ready

    def test_the_event_loop_goes_on_while_a_file_is_read(self, contract: Contract) -> None:
        started, may_go = threading.Event(), threading.Event()

        class Slow(io.RawIOBase):
            def read(self, size: int = -1) -> bytes:
                started.set()
                assert may_go.wait(10), "reading held up the event loop, which alone can let it go on"
                return b"abc"

        async def sent() -> int:
            async with tenfold.AsyncClient(contract.url, API_KEY) as client:
                task = asyncio.create_task(client.files.upload(cast(BinaryIO, Slow())))
                await asyncio.to_thread(started.wait, 10)
                may_go.set()
                return (await task).bytes

        assert asyncio.run(sent()) == 3
