"""Requests that may share one call, gathered while the device is busy."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Item:
    """One job's request on its way through the device."""

    method: str
    group: Hashable
    payload: Any
    limit: int
    """Requests that one batch of this group may hold."""
    wait_s: float
    """How long this item waits for company that is on its way."""
    done: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """First in, first out within a group; the group whose first item waits longest goes first within a method.

    A batch runs when it is full, when no further request of its method is on its way, or when its first item has
    waited `wait_s`. It is taken only when the device is free, so a busy device fills batches by itself.
    """

    def __init__(self, run: Callable[[list[Item]], None]) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._groups: dict[str, OrderedDict[Hashable, deque[Item]]] = {}
        self._coming: dict[str, int] = {}

    def announce(self, method: str) -> None:
        """A request of this method is being decoded."""
        with self._lock:
            self._coming[method] = self._coming.get(method, 0) + 1

    def withdraw(self, method: str) -> None:
        """An announced request will not come."""
        with self._lock:
            self._coming[method] -= 1

    def put(self, item: Item) -> None:
        """Add an announced request."""
        with self._lock:
            self._coming[item.method] -= 1
            self._groups.setdefault(item.method, OrderedDict()).setdefault(item.group, deque()).append(item)

    def ready(self, now: float) -> list[str]:
        with self._lock:
            return [method for method in self._groups if self._due(method, now) <= 0]

    def next_due(self, now: float) -> float | None:
        with self._lock:
            return min((self._due(method, now) for method in self._groups), default=None)

    def take(self, method: str) -> Callable[[], None] | None:
        """Up to a batch of the oldest group, as a call."""
        with self._lock:
            groups = self._groups.get(method)
            if not groups:
                return None
            group = min(groups, key=lambda name: groups[name][0].since)
            waiting = groups[group]
            batch = [waiting.popleft() for _ in range(min(waiting[0].limit, len(waiting)))]
            if not waiting:
                del groups[group]
            if not groups:
                del self._groups[method]
        return lambda: self._run(batch)

    def _due(self, method: str, now: float) -> float:
        """Seconds until the method has a batch to run; 0 or less: now."""
        full = any(len(items) >= items[0].limit for items in self._groups[method].values())
        if full or not self._coming.get(method):
            return 0.0
        return min(items[0].since + items[0].wait_s for items in self._groups[method].values()) - now
