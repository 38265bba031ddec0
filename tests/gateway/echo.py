"""A small service that speaks the service contract and says what reached it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from shared.context import HEADER, CallContext

SECRET = "s" * 32


def operation(name: str, **changes: Any) -> dict[str, Any]:
    """An operation, as a service describes it."""
    known: dict[str, Any] = {"name": name, "summary": name, "kind": "compute", "wait_s": 2.0, "deadline_s": 600.0}
    return {**known, "scope": "use", "lease": None, "sensitive": "nothing", **changes}


class Echo:
    """An ASGI application with the operations `mirror`, `drip`, `silent`, `hide` and `abrupt`.

    mirror  says what it received: headers, query, count and digest of the body, the verified context
    drip    sends three chunks, the later ones only after `go_on` is set
    silent  takes the body and never answers
    hide    needs the scope `recover` and a lease
    abrupt  fails in the middle of its answer
    """

    def __init__(self, method: str = "echo", secret: str = SECRET) -> None:
        self.method = method
        self.secret = secret
        self.operations = [
            operation("mirror"),
            operation("drip"),
            operation("silent"),
            operation("abrupt"),
            operation("hide", scope="recover", lease="recover", sensitive="everything"),
            operation("veil", lease="anonymize", sensitive="inputs"),
        ]
        self.descriptions = 0
        self.forget()

    def forget(self) -> None:
        """Be as if no call had come yet."""
        self.go_on = asyncio.Event()
        self.was_called = asyncio.Event()
        self.has_begun = asyncio.Event()
        self.was_left = asyncio.Event()
        self.calls = 0
        self.largest_chunk_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        paths = {
            f"/v1/methods/{self.method}": self.description,
            "/openapi.json": self.openapi,
        }
        if scope["method"] == "GET" and scope["path"] in paths:
            await _answer(send, paths[scope["path"]]())
            return
        self.calls += 1
        self.was_called.set()
        name = scope["path"].rpartition("/")[2]
        await getattr(self, f"_{name}")(scope, receive, send)

    def description(self) -> dict[str, Any]:
        """What the catalogue reads."""
        self.descriptions += 1
        return {
            "method": self.method,
            "title": "Echo",
            "default_model": None,
            "operations": self.operations,
            "live": {"workers": 1, "queued": 0, "running": 0, "mean_service_s": None},
        }

    def openapi(self) -> dict[str, Any]:
        """What the merged document takes up."""
        reference = {"$ref": "#/components/schemas/Mirrored"}
        answers = {"200": {"description": "Done.", "content": {"application/json": {"schema": reference}}}}
        return {
            "openapi": "3.1.0",
            "info": {"title": "Echo", "version": "1"},
            "paths": {
                f"/v1/{self.method}/{one['name']}": {"post": {"operationId": one["name"], "responses": answers}}
                for one in self.operations
            },
            "components": {
                "schemas": {
                    "Mirrored": {"type": "object", "properties": {"next": {"$ref": "#/components/schemas/Inner"}}},
                    "Inner": {"type": "object"},
                    "Unused": {"type": "object"},
                }
            },
        }

    async def _mirror(self, scope: Scope, receive: Receive, send: Send) -> None:
        digest, count = hashlib.sha256(), 0
        async for chunk in _body(receive):
            self.largest_chunk_bytes = max(self.largest_chunk_bytes, len(chunk))
            digest.update(chunk)
            count += len(chunk)
        headers = Headers(scope=scope)
        context = CallContext.verified(headers.get(HEADER), self.secret)
        seen = {
            "path": scope["path"],
            "query": scope["query_string"].decode(),
            "headers": [[name, value] for name, value in headers.items()],
            "bytes": count,
            "sha256": digest.hexdigest(),
            "context": context.__dict__,
        }
        job = f"/v1/jobs/{context.job_id}"
        more = {"location": job, "link": f'<{job}>; rel="job"', "x-request-id": "forged", "connection": "close"}
        await _answer(send, seen, headers=more)

    async def _drip(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await self.go_on.wait()
        await send({"type": "http.response.body", "body": b"two", "more_body": True})
        await send({"type": "http.response.body", "body": b"three"})

    async def _silent(self, scope: Scope, receive: Receive, send: Send) -> None:
        async for _ in _body(receive):
            pass
        self.has_begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        self.was_left.set()

    async def _abrupt(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("the service broke")

    _hide = _veil = _mirror


async def _body(receive: Receive) -> Any:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _answer(send: Send, value: Any, *, headers: Mapping[str, str] | None = None) -> None:
    body = json.dumps(value).encode()
    fixed = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    raw = [(name.encode(), text.encode()) for name, text in fixed.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})
    await send({"type": "http.response.body", "body": body})
