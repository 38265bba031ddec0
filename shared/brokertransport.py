"""Celery's way to the broker: kombu's Redis transport, but for a client that is kept.

kombu makes a Redis client anew for every message that it takes and for every one that it acknowledges. With redis-py 8
that is 0.2 ms of CPU each time, a fifth of what a worker spends on a job that computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kombu.transport import redis

TRANSPORT = "shared.brokertransport:Transport"


class Channel(redis.Channel):
    """A channel whose client lives as long as its pool of connections, which kombu replaces when the broker fails."""

    _kept: Any = None

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        if client is None:
            client = self._kept
            if client is None or client.connection_pool is not self.pool:
                client = self._kept = self._create_client()  # type: ignore[no-untyped-call]
        yield client


class Transport(redis.Transport):
    """What `TRANSPORT` names."""

    Channel = Channel
