"""One thread owns the models and the device. Long work on it takes turns with the work of other methods.

Every piece of work runs in a greenlet of that thread, so it can be set aside in mid-call (between the units of an
archive, or while custody is asked for a key) and taken up again, while torch sees a single thread: its caches, its
OpenMP pool and its inference mode are those of one thread. See docs/decisions/0002.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from greenlet import getcurrent, greenlet

from shared.schedule import FairShare

YIELD_AFTER_S = 2.0  # work shorter than this is not set aside at a unit boundary

_Result = TypeVar("_Result")


class Source(Protocol):
    """Where new work comes from: the batcher."""

    def ready(self, now: float) -> list[str]:
        """Methods that have a batch to run at this moment."""
        ...

    def next_due(self, now: float) -> float | None:
        """Seconds until a batch that is still waiting for more requests must run; None if none waits."""
        ...

    def take(self, method: str) -> Callable[[], None] | None:
        """The next batch of this method as a call that never raises, or None if it is gone."""
        ...


@dataclass
class _Task:
    method: str
    run: greenlet
    device_s: float = 0.0


@dataclass
class Pulse:
    """What the watchdog looks at."""

    busy: bool = False
    step: int = 0
    at: float = field(default_factory=time.monotonic)

    def beat(self) -> None:
        self.step += 1
        self.at = time.monotonic()


class Device(threading.Thread):
    """The device thread. `wake()` after new work has reached the source; `close()` ends it when nothing is left."""

    def __init__(
        self,
        source: Source,
        pulse: Pulse,
        *,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
        io_threads: int = 4,
        on_turn: Callable[[str, float], None] | None = None,
    ) -> None:
        """on_turn  is told the method and the seconds of every turn"""
        super().__init__(name="device", daemon=True)
        self.pulse = pulse
        self.fair = FairShare()
        self._source = source
        self._around = around
        self._on_turn = on_turn
        self._io = ThreadPoolExecutor(io_threads, thread_name_prefix="outside")
        self._changed = threading.Condition()
        self._resumable: dict[str, deque[_Task]] = {}
        self._resumed_last: set[str] = set()
        self._suspended = 0
        self._turn_began = 0.0
        self._closing = False
        self._current: _Task | None = None

    # called from any thread

    def wake(self) -> None:
        """Look at the source again."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """End when neither new nor suspended work is left."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self.join()
        self._io.shutdown()

    # called by work, on the device thread

    def turn_over(self) -> None:
        """Let other methods go first, if this piece of work has had its share. Call between units."""
        self.pulse.beat()
        task = self._task()
        if task.device_s + (time.monotonic() - self._turn_began) < YIELD_AFTER_S:
            return
        with self._changed:
            self._resumable.setdefault(task.method, deque()).append(task)
        task.run.parent.switch()

    def outside(self, call: Callable[[], _Result]) -> _Result:
        """Run a blocking call in another thread, and other work here meanwhile. Returns or raises what it does."""
        task = self._task()
        done: Future[_Result] = self._io.submit(call)

        def resume(_: Future[_Result]) -> None:
            with self._changed:
                self._suspended -= 1
                self._resumable.setdefault(task.method, deque()).appendleft(task)
                self._changed.notify()

        with self._changed:
            self._suspended += 1
        done.add_done_callback(resume)
        task.run.parent.switch()
        return done.result()

    def _task(self) -> _Task:
        task = self._current
        if task is None or getcurrent() is not task.run:
            raise RuntimeError("only work on the device thread can be set aside")
        return task

    # the thread itself

    def run(self) -> None:
        with self._around():
            while (task := self._next()) is not None:
                self._take_turn(task)

    def _next(self) -> _Task | None:
        with self._changed:
            while True:
                now = time.monotonic()
                waiting = {method: None for method, tasks in self._resumable.items() if tasks}
                fresh = self._source.ready(now)
                method = self.fair.choose([*waiting, *(m for m in fresh if m not in waiting)], now)
                # within a method new and suspended work alternate, so that neither a long job nor short ones starve
                if method is not None and method in fresh and (method not in waiting or method in self._resumed_last):
                    self._resumed_last.discard(method)
                    if (run := self._source.take(method)) is not None:
                        return _Task(method, greenlet(run))
                elif method is not None:
                    self._resumed_last.add(method)
                    return self._resumable[method].popleft()
                if self._closing and not self._suspended and self._source.next_due(now) is None:
                    return None
                self._changed.wait(self._source.next_due(now))

    def _take_turn(self, task: _Task) -> None:
        self._current, self._turn_began = task, time.monotonic()
        self.pulse.busy = True
        self.pulse.beat()
        task.run.switch()
        now = time.monotonic()
        self.pulse.busy = False
        self.pulse.beat()
        self._current = None
        seconds = now - self._turn_began
        task.device_s += seconds
        self.fair.charge(task.method, seconds, now)
        if self._on_turn is not None:
            self._on_turn(task.method, seconds)
