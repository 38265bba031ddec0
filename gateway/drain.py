"""The last seconds of a gateway: no longer ready, streams told to come back elsewhere, answers still given."""

from __future__ import annotations

import asyncio


class Drain:
    """Whether this process is about to end. `begin` is called by whoever receives the signal, on the event loop."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()

    @property
    def has_begun(self) -> bool:
        return self._begun.is_set()

    def begin(self) -> None:
        self._begun.set()

    async def wait(self) -> None:
        """Return once it has begun."""
        await self._begun.wait()
