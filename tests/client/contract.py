"""A small service that speaks the HTTP contract, on a real port, and fails where a test wants it to.

It is the counterpart of the client in the client's own tests: what it receives it keeps, what it answers has the form
that the gateway and the services answer in. It computes nothing: a picture comes back as it went in.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import uvicorn
from fastapi import Request

from tests.client import contract_routes
from tests.client.contract_state import API_KEY, Call, Kept, State, call_of

__all__ = ["API_KEY", "Call", "Contract", "Fault", "Kept", "Send"]

Send = Callable[[Any], Any]
Fault = Callable[["Contract", Any, Any, Send], Any]


class Contract(State):
    """The service. `url` is where it listens while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.app = contract_routes.app(self)
        self.url = ""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.faults: list[tuple[str, Fault]] = []

    def fail(self, path: str, *faults: Fault) -> None:
        """Let the next requests whose method and path match this expression come to these faults, in order."""
        self.faults += [(path, fault) for fault in faults]

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        where = f"{scope['method']} {scope['path']}"
        for n, (path, fault) in enumerate(self.faults):
            if re.search(path, where):
                del self.faults[n]
                if fault.__qualname__.startswith("answers"):
                    self.calls.append(call_of(Request(scope)))
                await fault(self, scope, receive, send)
                return
        await self.app(scope, receive, send)

    def __enter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            self, log_level="critical", lifespan="off", timeout_graceful_shutdown=1, loop="asyncio", ws="none"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        until = time.monotonic() + 10
        while not self._server.started and time.monotonic() < until:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
