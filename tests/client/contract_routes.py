"""The routes of the contract's service."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.datastructures import UploadFile

from shared.ids import ordered_id
from tests.client.contract_state import API_KEY, FINISHED, KEPT_BYTES, Call, Kept, State, call_of


def _problem(status: int, code: str, **extras: Any) -> JSONResponse:
    body = {"code": code, "status": status, "title": "No.", "detail": f"It is {code}.", "request_id": "req_1", **extras}
    return JSONResponse(body, status, media_type="application/problem+json")


def app(contract: State) -> FastAPI:
    api = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    tasks: set[asyncio.Task[None]] = set()

    @api.middleware("http")
    async def door(request: Request, call_next: Any) -> Response:
        request.state.call = call_of(request)
        contract.calls.append(request.state.call)
        if request.url.path != "/readyz" and request.headers.get("authorization") != f"Bearer {API_KEY}":
            return _problem(401, "api_key_invalid")
        response: Response = await call_next(request)
        return response

    @api.get("/readyz")
    async def ready() -> Response:
        checks = {"gateway": "ok", "broker": "ok" if contract.is_ready else "failed"}
        if not contract.is_ready:
            return _problem(503, "service_unavailable", checks=checks, unavailable_methods=["ifadit"])
        return JSONResponse({"status": "ready", "checks": checks, "unavailable_methods": []})

    @api.get("/v1/jobs")
    async def list_jobs(limit: int = Query(20, le=200), before: str | None = None) -> Response:
        names = sorted((name for name in contract.jobs if before is None or name < before), reverse=True)
        page = [contract.jobs[name].record for name in names[:limit]]
        return JSONResponse({"jobs": page, "next": page[-1]["id"] if len(names) > limit else None})

    @api.get("/v1/jobs/{name}")
    async def read_job(name: str) -> Response:
        job = contract.jobs.get(name)
        return JSONResponse(job.record) if job else _problem(404, "job_not_found")

    @api.post("/v1/jobs/{name}/cancel")
    async def cancel(name: str) -> Response:
        job = contract.jobs.get(name)
        if job is None:
            return _problem(404, "job_not_found")
        if job.record["state"] not in FINISHED:
            job.tell("state", state="cancelled")
        return JSONResponse(job.record, 202)

    @api.get("/v1/jobs/{name}/events", response_class=EventSourceResponse)
    async def follow(name: str, last_event_id: str | None = Header(None)) -> AsyncIterator[ServerSentEvent]:
        job = contract.jobs[name]
        n = int((last_event_id or "0-0").partition("-")[0])
        while True:
            while n < len(job.events):
                kind, data = job.events[n]
                n += 1
                yield ServerSentEvent(event=kind, id=f"{n}-0", data=data)
                if kind == "state" and data["state"] in FINISHED:
                    return
            await asyncio.sleep(0.01)

    @api.post("/v1/files")
    async def upload(request: Request) -> Response:
        digest, size, content = hashlib.sha256(), 0, b""
        async for chunk in request.stream():
            digest.update(chunk)
            size += len(chunk)
            content = content + chunk if size <= KEPT_BYTES else b""
        media_type = request.headers["content-type"]
        kept = Kept(media_type, size, digest.hexdigest(), lambda a, b: content[a:b])
        return JSONResponse(contract.keep(kept), 201)

    @api.api_route("/v1/files/{name}", methods=["GET", "HEAD"])
    async def read_file(name: str, request: Request) -> Response:
        kept = contract.files.get(name)
        if kept is None:
            return _problem(404, "file_not_found")
        start, status = 0, 200
        headers = {"ETag": f'"{kept.sha256}"'}
        if (wanted := re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))) and request.headers.get(
            "if-range", headers["ETag"]
        ) == headers["ETag"]:
            start, status = int(wanted[1]), 206
            headers["Content-Range"] = f"bytes {start}-{kept.size - 1}/{kept.size}"
        headers["Content-Length"] = str(kept.size - start)
        if request.method == "HEAD":
            return Response(None, status, headers, kept.media_type)

        def chunks() -> Iterator[bytes]:
            for place in range(start, kept.size, 65536):
                yield kept.read(place, min(place + 65536, kept.size))

        return StreamingResponse(chunks(), status, headers, kept.media_type)

    @api.delete("/v1/files/{name}", status_code=204)
    async def delete_file(name: str) -> Response:
        return Response(status_code=204) if contract.files.pop(name, None) else _problem(404, "file_not_found")

    @api.get("/v1/methods")
    async def list_methods() -> Response:
        return JSONResponse({"methods": [_METHOD]})

    @api.get("/v1/methods/{name}")
    async def read_method(name: str) -> Response:
        return JSONResponse(_METHOD) if name == "ifadit" else _problem(404, "method_not_found")

    @api.get("/v1/models")
    async def list_models(method: str | None = None) -> Response:
        return JSONResponse({"models": [model for model in contract.models if method in (None, model["method"])]})

    @api.api_route("/v1/models/{method}/{name}", methods=["GET", "DELETE"])
    async def one_model(method: str, name: str, request: Request) -> Response:
        found = [model for model in contract.models if (model["method"], model["name"]) == (method, name)]
        if not found:
            return _problem(404, "model_not_found")
        if request.method == "GET":
            return JSONResponse(found[0])
        if found[0]["kind"] != "trained":
            return _problem(409, "model_protected")
        contract.models.remove(found[0])
        return Response(status_code=204)

    @api.post("/v1/keys", status_code=201)
    async def create_key(request: Request) -> Response:
        said = await request.json()
        key = {
            "key_id": ordered_id("key"),
            "key_version": 1,
            "state": "active",
            "label": said.get("label", ""),
            "purposes": said.get("purposes", ["anonymize", "recover"]),
            "default": said.get("default", False),
            "created_at": "2026-03-01T12:00:00Z",
            "created_by": "prn_1",
            "not_after": said.get("not_after"),
            "destroy_at": None,
        }
        contract.keys[key["key_id"]] = key
        return JSONResponse(key, 201)

    @api.get("/v1/keys")
    async def list_keys() -> Response:
        return JSONResponse({"keys": list(contract.keys.values())})

    @api.get("/v1/keys/{name}")
    async def read_key(name: str) -> Response:
        return JSONResponse(contract.keys[name]) if name in contract.keys else _problem(404, "key_not_found")

    @api.post("/v1/keys/{name}/{step}")
    async def change_key(name: str, step: str, request: Request) -> Response:
        if name not in contract.keys:
            return _problem(404, "key_not_found")
        key = contract.keys[name]
        request.state.call.fields = await request.json()
        states = {"disable": "disabled", "enable": "active", "destroy": "pending_destroy", "cancel-destroy": "disabled"}
        key |= {"state": states[step]} if step in states else {"key_version": key["key_version"] + 1}
        return JSONResponse(key)

    @api.get("/v1/audit")
    async def read_audit(after: int = -1, limit: int = 200) -> Response:
        seq = len(contract.audit)
        event = {"action": "audit.read", "actor": "prn_1", "seq": seq, "time": "2026-03-01T12:00:00.000Z"}
        contract.audit.append({"event": json.dumps(event), "mac": "00"})
        page = contract.audit[after + 1 :][:limit]
        return JSONResponse({"entries": page, "next_after": after + len(page), "checkpoint": None})

    @api.post("/v1/{method}/{operation}")
    async def operate(method: str, operation: str, request: Request) -> Response:
        call: Call = request.state.call
        if request.headers["content-type"].startswith("multipart/form-data"):
            async with request.form() as form:
                for name, part in form.multi_items():
                    if isinstance(part, UploadFile):
                        call.files[name].append(await part.read())
                        call.names[name] = part.filename or ""
                    else:
                        call.fields[name] = part
        else:
            call.fields = await request.json()
        is_new = call.headers["idempotency-key"] not in contract.by_key
        job = contract.start(method, operation, call)
        if is_new:
            tasks.add(task := asyncio.create_task(contract.work(job, call)))
            task.add_done_callback(tasks.discard)
        prefers = re.search(r"wait=([\d.]+)", call.headers.get("prefer", ""))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(job.finished.wait(), float(prefers[1]) if prefers and contract.holds else 0)
        if job.record["state"] not in FINISHED:
            return JSONResponse(job.record, 202, {"Location": job.record["url"], "Retry-After": "1"})
        if job.record["state"] != "succeeded":
            error = job.record["error"]
            return _problem(error["status"], error["code"], job_id=job.record["id"])
        return JSONResponse(job.record)

    return api


_METHOD = {
    "method": "ifadit",
    "title": "Reversible face anonymization",
    "default_model": "ifadit/small",
    "operations": [{"name": "anonymize", "summary": "Replace faces.", "kind": "compute", "request_schema": {}}],
    "live": {"workers": 1},
    "available": True,
}
