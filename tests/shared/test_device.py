from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import device as device_module
from shared.batcher import Batcher, Item
from shared.device import Device, Pulse

Work = Callable[[Device], Any]


class Bench:
    """A device that runs calls given to it, with a log of what ran."""

    def __init__(self) -> None:
        self.batcher = Batcher(self._run)
        self.device = Device(self.batcher, Pulse())
        self.log: list[str] = []
        self.threads: set[int] = set()

    def _run(self, items: list[Item]) -> None:
        self.threads.add(threading.get_ident())
        for item in items:
            try:
                item.done.set_result(item.payload(self.device))
            except Exception as error:  # noqa: BLE001
                item.done.set_exception(error)

    def put(self, method: str, work: Work, group: Any = None) -> Future[Any]:
        item = Item(method, group, work, limit=1, wait_s=0)
        self.batcher.announce(method)
        self.batcher.put(item)
        self.device.wake()
        return item.done

    def note(self, text: str) -> Work:
        return lambda _: self.log.append(text)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(device_module, "YIELD_AFTER_S", 0.02)
    bench = Bench()
    bench.device.start()
    yield bench
    bench.device.close()


class TestTurns:
    def test_all_work_runs_on_one_thread_that_is_not_the_callers(self, bench: Bench) -> None:
        for future in [bench.put(str(i % 3), bench.note("x")) for i in range(20)]:
            future.result(5)
        assert len(bench.threads) == 1
        assert threading.get_ident() not in bench.threads

    def test_a_long_job_lets_another_method_in_between_its_units(self, bench: Bench) -> None:
        started = threading.Event()

        def long(device: Device) -> None:
            for unit in range(6):
                started.set()
                time.sleep(0.03)
                bench.log.append(f"unit {unit}")
                device.turn_over()

        done = bench.put("archive", long)
        assert started.wait(5)
        bench.put("other", bench.note("other")).result(5)
        done.result(5)
        assert bench.log.index("other") <= 2
        assert [entry for entry in bench.log if entry != "other"] == [f"unit {i}" for i in range(6)]

    def test_short_work_is_not_set_aside(self, bench: Bench) -> None:
        def short(device: Device) -> None:
            bench.log.append("begin")
            device.turn_over()
            bench.log.append("end")

        futures = [bench.put("a", short), bench.put("b", short)]
        for future in futures:
            future.result(5)
        assert bench.log == ["begin", "end"] * 2

    def test_neither_a_long_job_nor_short_ones_of_its_own_method_starve(self, bench: Bench) -> None:
        stop = threading.Event()

        def long(device: Device) -> int:
            for _ in range(5):
                time.sleep(0.03)
                device.turn_over()
            return 1

        def feed() -> None:
            while not stop.is_set():
                bench.put("m", bench.note("short"))
                time.sleep(0.002)

        feeder = threading.Thread(target=feed)
        done = bench.put("m", long)
        feeder.start()
        try:
            assert done.result(10) == 1
        finally:
            stop.set()
            feeder.join()
        assert bench.log, "short work ran meanwhile"

    def test_the_device_works_for_others_while_one_waits_outside(self, bench: Bench) -> None:
        release = threading.Event()
        waiting = bench.put("custody", lambda device: device.outside(lambda: release.wait(5)))
        bench.put("other", bench.note("other")).result(5)
        assert not waiting.done()
        release.set()
        assert waiting.result(5) is True

    def test_what_is_raised_outside_is_raised_inside(self, bench: Bench) -> None:
        def fail() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            bench.put("m", lambda device: device.outside(fail)).result(5)

    def test_only_work_on_the_device_can_be_set_aside(self, bench: Bench) -> None:
        with pytest.raises(RuntimeError):
            bench.device.turn_over()

    def test_closing_waits_for_suspended_work(self) -> None:
        bench = Bench()
        bench.device.start()

        def slowly() -> str:
            time.sleep(0.1)
            return "done"

        done = bench.put("m", lambda device: device.outside(slowly))
        bench.device.close()
        assert done.result(0) == "done"


def gather(batcher: Batcher, method: str) -> list[list[Item]]:
    batches: list[list[Item]] = []
    batcher._run = batches.append
    while call := batcher.take(method):
        call()
    return batches


class TestBatches:
    @given(groups=st.lists(st.integers(0, 3), max_size=60), limit=st.integers(1, 8))
    def test_a_batch_holds_one_group_in_order_and_no_more_than_its_limit(self, groups: list[int], limit: int) -> None:
        batcher = Batcher(lambda _: None)
        items = [Item("m", group, place, limit, wait_s=0) for place, group in enumerate(groups)]
        for item in items:
            batcher.announce("m")
            batcher.put(item)
        batches = gather(batcher, "m")
        assert sorted(item.payload for batch in batches for item in batch) == list(range(len(groups)))
        for group in range(4):
            order = [item.payload for batch in batches for item in batch if item.group == group]
            assert order == sorted(order)
        for batch in batches:
            assert len({item.group for item in batch}) == 1
            assert len(batch) <= limit

    @settings(deadline=None)
    @given(wait_s=st.floats(0.01, 1.0))
    def test_an_item_waits_for_company_only_while_some_is_on_its_way(self, wait_s: float) -> None:
        batcher = Batcher(lambda _: None)
        item = Item("m", 0, None, 8, wait_s, since=100.0)
        batcher.announce("m")
        batcher.announce("m")
        batcher.put(item)
        assert batcher.ready(100.0) == []
        assert batcher.next_due(100.0) == pytest.approx(wait_s)
        assert batcher.ready(100.0 + wait_s) == ["m"]
        batcher.withdraw("m")
        assert batcher.ready(100.0) == ["m"]

    def test_a_full_batch_does_not_wait(self) -> None:
        batcher = Batcher(lambda _: None)
        for _ in range(3):
            batcher.announce("m")
        for _ in range(2):
            batcher.put(Item("m", 0, None, 2, wait_s=10, since=0.0))
        assert batcher.ready(0.0) == ["m"]
