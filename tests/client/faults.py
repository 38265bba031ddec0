"""What can go wrong between a client and the contract's service."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import Response

from tests.client.contract import Contract, Fault, Send


def answers(status: int, code: str, **headers: str) -> Fault:
    """Answer with this problem instead."""

    async def fault(contract: Contract, scope: Any, receive: Any, send: Send) -> None:
        body = {"type": f"/problems/{code}", "code": code, "status": status, "title": "No.", "detail": "Not this time."}
        headers.setdefault("X-Request-ID", "req_fault")
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await Response(json.dumps(body), status, named, "application/problem+json")(scope, receive, send)

    return fault


def cuts(after_bytes: int | None = None) -> Fault:
    """Do what was asked, but cut the connection: before the answer, or so many bytes into its body."""

    async def fault(contract: Contract, scope: Any, receive: Any, send: Send) -> None:
        left = after_bytes

        async def cutting(message: Any) -> None:
            nonlocal left
            cycle = send.__self__  # type: ignore[attr-defined] # uvicorn's own; nothing else knows the connection
            if left is None:
                cycle.transport.abort()
            elif message["type"] == "http.response.body" and len(message["body"]) >= left:
                await send({**message, "body": message["body"][:left], "more_body": True})
                cycle.transport.close()
                left = None
            else:
                left -= len(message.get("body", b""))
                await send(message)

        await contract.app(scope, receive, cutting)

    return fault


def is_silent(seconds: float) -> Fault:
    """Say nothing for a while, and then nothing of use."""

    async def fault(contract: Contract, scope: Any, receive: Any, send: Send) -> None:
        await asyncio.sleep(seconds)
        await Response(status_code=503)(scope, receive, send)

    return fault
