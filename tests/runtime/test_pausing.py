"""A method that has enough in flight leaves its queue, and takes it up again in whatever order Celery hears of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.service import Service
from shared.settings import WorkerSettings
from shared.worker import Worker
from tests.diagnostic.service import service as diagnostic
from tests.stack import SECRET


class Consumer:
    """Celery's consumer as far as queues go: what it is told soon, it does later, in any order (kombu keeps a set)."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.queues = {"diagnostic", "other"}

    def call_soon(self, call: Callable[..., None], *arguments: Any) -> None:
        self.soon.append(lambda: call(*arguments))

    def cancel_task_queue(self, queue: str) -> None:
        self.queues.discard(queue)

    def add_task_queue(self, queue: str) -> None:
        self.queues.add(queue)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    settings = WorkerSettings(broker_url="redis://127.0.0.1:1/0", home=tmp_path, internal_secret=SECRET)
    other = Service("other", title="Other", pipeline="nowhere:Nothing", operations=diagnostic.operations)
    worker = Worker([diagnostic, other], settings)
    worker._celery = SimpleNamespace(consumer=Consumer())
    yield worker
    worker.execution.close()


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "the other way round"])
def test_a_pause_that_is_over_before_celery_heard_of_it_leaves_the_queue_open(worker: Worker, order: int) -> None:
    consumer = worker._celery.consumer
    for change in [1] * worker._limit("diagnostic") + [-1]:
        worker._pause_if_full("diagnostic", change)
    assert len(consumer.soon) == 2
    for call in consumer.soon[::order]:
        call()
    assert consumer.queues == {"diagnostic", "other"}


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "the other way round"])
def test_a_method_that_has_enough_is_left_alone_until_it_has_room(worker: Worker, order: int) -> None:
    consumer, limit = worker._celery.consumer, worker._limit("diagnostic")
    for change in [1] * limit + [-1, 1]:
        worker._pause_if_full("diagnostic", change)
    for call in consumer.soon[::order]:
        call()
    assert consumer.queues == {"other"}
    worker._pause_if_full("diagnostic", -1)
    consumer.soon[-1]()
    assert consumer.queues == {"diagnostic", "other"}
