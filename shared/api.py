"""A `Service` as a FastAPI app: read headers only, store files, enqueue a name, wait for the answer. No torch here."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, BinaryIO

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from shared import context as calls
from shared import forms, limits, metrics, openapi, tracing
from shared.context import CallContext
from shared.files import Owner, StoredFile
from shared.guard import Guard, check_model
from shared.http import OWN_TELEMETRY, install_problem_handlers, problem_response
from shared.jobs import JobRecord, NewJob
from shared.problems import (
    CallNotSigned,
    IdempotencyConflict,
    InvalidRequest,
    JobNotFound,
    MalformedIdempotencyKey,
    NotAcceptable,
    NoWorker,
    Problem,
    QueueFull,
    ScopeMissing,
    ServiceUnavailable,
)
from shared.runtime import Runtime
from shared.service import Operation, Service
from shared.types import Image, files_in

SENSITIVE_TTL_S = 15 * 60.0
INPUT_TTL_S = 3600.0  # beyond the job's deadline
MAX_WAIT_S = 300.0
RETRY_AFTER_S = 1  # of a 202: when to look at the job first
DOWNLOAD_BYTES = 256 * 1024

log = structlog.get_logger()


def create_app(service: Service, runtime: Runtime) -> FastAPI:
    """The API of one service. It is served as it is in a container, or mounted in the gateway's process."""
    app = FastAPI(title=service.title, openapi_url=None, docs_url=None, redoc_url=None, telemetry=OWN_TELEMETRY)
    app.router.redirect_slashes = False
    install_problem_handlers(app)
    document, description = openapi.document(service), service.description()

    for operation in service.operations.values():
        # A plain route: the endpoint reads the request by itself, so it needs none of what FastAPI does before one.
        endpoint = _endpoint(service, operation, runtime)
        app.add_route(f"/v1/{service.name}/{operation.name}", endpoint, methods=["POST"], include_in_schema=False)

    @app.get("/openapi.json")
    async def openapi_document() -> JSONResponse:
        return JSONResponse(document)

    @app.get(f"/v1/methods/{service.name}")
    async def describe() -> JSONResponse:
        live = await runtime.jobs.live(service.name)
        return JSONResponse({**description, "live": live})

    @app.get("/healthz")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        try:
            await runtime.ping()
        except RedisError as error:
            raise ServiceUnavailable("The job store does not answer.", retry_after_s=2) from error
        await runtime.check_files()
        return {"status": "ready"}

    @app.get("/metrics")
    async def series() -> Response:
        return Response(metrics.page(runtime.series.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _endpoint(service: Service, operation: Operation, runtime: Runtime) -> Callable[[Request], Awaitable[Response]]:
    secret = runtime.settings.internal_secret.get_secret_value()
    picture = openapi.picture_field(operation)
    series, names = runtime.series, (service.name, operation.name)

    async def endpoint(http: Request) -> Response:
        began = time.monotonic()
        status = 500
        span = tracing.begin(
            f"{service.name}/{operation.name}",
            http.headers.get(tracing.HEADER),
            kind="server",
            method=service.name,
            operation=operation.name,
        )
        try:
            with series.in_flight.labels(service.name).track_inprogress(), tracing.entered(span):
                context = CallContext.verified(http.headers.get(calls.HEADER), secret)
                context.check_fresh()
                if (context.method, context.operation) != names:
                    raise CallNotSigned("The call was signed for another operation.")
                http.state.request_id = context.request_id
                span.set(request_id=context.request_id)
                structlog.contextvars.bind_contextvars(request_id=context.request_id)
                response = await _Call(service, operation, runtime, context, http, picture).answer()
                status = response.status_code
                span.set(status=status)
                return response
        except Exception as error:
            status = getattr(error, "status", getattr(error, "status_code", 500))
            raise
        finally:
            series.requests.labels(*names, status).inc()
            series.seconds.labels(*names).observe(time.monotonic() - began)

    return endpoint


class _Call:
    """One call of an operation, from its headers to its answer."""

    def __init__(
        self,
        service: Service,
        operation: Operation,
        runtime: Runtime,
        context: CallContext,
        http: Request,
        picture: str | None,
    ) -> None:
        self.service, self.operation, self.runtime = service, operation, runtime
        self.context, self.http, self.picture = context, http, picture
        self.wait_s, self.wants_async = _preference(http.headers.get("prefer", ""), operation.wait_s)

    async def answer(self) -> Response:
        own, job_id = self.context.job_id, ""
        with self.runtime.expected(own) as news:
            try:
                self._check_scope(None if callable(self.operation.scope) else self.operation.scope)
                wants_picture = self._wants_picture()
                job_id = await self._accept()
            finally:
                if job_id != own:
                    await self._release_lease()
            wait_s = 0 if self.wants_async else self.wait_s
            record = await self.runtime.wait(self.service.name, job_id, wait_s, news if job_id == own else None)
        if not record.visible_to(self.context.tenant, self.context.principal, self.context.scopes):
            raise JobNotFound(f"There is no job {job_id}.")
        headers = {"Location": f"/v1/jobs/{record.id}", "X-Request-ID": self.context.request_id}
        if not record.is_finished:
            return JSONResponse(record.public(), 202, headers={**headers, "Retry-After": str(RETRY_AFTER_S)})
        if (problem := record.problem) is not None:
            problem.extras["job_id"] = record.id
            return problem_response(problem, self.context.request_id, headers)
        if wants_picture:
            return await self._picture(record, headers)
        return JSONResponse(record.public(), headers=headers)

    async def _release_lease(self) -> None:
        """The call was refused, or another job answers it: nobody will use its lease."""
        if not (lease := self.context.lease):
            return
        try:
            await run_in_threadpool(self.runtime.leases.release, lease, self.http.headers[calls.HEADER])
        except Problem as problem:  # it runs out by itself; the caller's answer is more important
            log.warning("lease.not_released", lease=lease, code=problem.code)

    def _check_scope(self, scope: str | None) -> None:
        if scope is not None and scope not in self.context.scopes:
            raise ScopeMissing(f"{self.operation.name} needs the scope {scope!r}.", scope=scope)

    def _wants_picture(self) -> bool:
        accept = self.http.headers.get("accept", "*/*")
        kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
        if any(kind in ("*/*", "application/*", "application/json", "") for kind in kinds):
            return False
        if self.picture and any(kind.startswith("image/") for kind in kinds):
            return True
        offered = ["application/json", *(["image/png"] if self.picture else [])]
        raise NotAcceptable(f"{self.operation.name} answers in other forms than {accept}.", offered=offered)

    # taking the request in

    async def _accept(self) -> str:
        sensitive = self.operation.sensitive != "nothing"
        ttl_s = min(self.operation.deadline_s, self.context.expires_at - time.time()) + INPUT_TTL_S
        owner = Owner(self.context.tenant, made_by=self.context.principal)
        key: bytearray | None = None
        if sensitive:
            ttl_s = SENSITIVE_TTL_S
            scope = self.operation.scope if isinstance(self.operation.scope, str) else "verify"
            principal = self.context.principal
            owner = Owner(self.context.tenant, principal, scope, self.context.lease, made_by=principal)
            key = await self._file_key(self.context.lease, self.http.headers[calls.HEADER])
        files = self.runtime.files.within(self.context.limits.stored_bytes)
        intake = forms.Intake(files, owner, ttl_s, self._may_see, key)
        accepted = ""
        try:
            with tracing.entered(tracing.current().child("read")):
                request = await forms.read(self.http, self.operation.request, intake)
            self._check_scope(self.operation.scope_of(request))
            job = await self._job(request, intake)
            with tracing.entered(tracing.current().child("enqueue", kind="producer", job_id=job.id)) as span:
                if span.traceparent is not None:  # what the worker does is a part of this
                    job = replace(job, fields={**job.fields, "traceparent": span.traceparent})
                accepted = await self._create(job)
            return accepted
        finally:
            if accepted != self.context.job_id:
                await intake.discard()
            if key is not None:
                key[:] = bytes(len(key))

    def _may_see(self, stored: StoredFile) -> bool:
        return stored.visible_to(self.context.tenant, self.context.principal, self.context.scopes)

    async def _file_key(self, lease: str | None, call: str) -> bytearray | None:
        if not lease:
            return None
        return await run_in_threadpool(self.runtime.leases.file_key, lease, call)

    async def _job(self, request: Any, intake: forms.Intake) -> NewJob:
        operation, context = self.operation, self.context
        # a training starts from nothing, unless its request names what it starts from
        model = getattr(request, "model", self.service.default_model if operation.kind == "compute" else None)
        pinned = ""
        if model:
            if model.partition("/")[0] != self.service.name:
                raise InvalidRequest(
                    f"model: {model} is no model of {self.service.name}.",
                    errors=[{"place": "model", "message": f"{self.service.name}/<name>", "kind": "model"}],
                )
            found = await run_in_threadpool(self.runtime.models.resolve, model, context.tenant)
            pinned = f"{found.method}/{found.name}@{found.version}"
        raw = request.model_dump(mode="json")
        fingerprint = _fingerprint(operation, raw)
        if "seed" in operation.request.model_fields and raw.get("seed") is None:
            raw["seed"] = secrets.randbelow(2**63)
        guard = await self._guard(request)
        replay_key = self._idempotency_key()
        everything = operation.sensitive == "everything"
        fields = {
            "operation": operation.name,
            "principal": context.principal,
            "request_id": context.request_id,
            "request": json.dumps(raw),
            "model": pinned,
            "attempts": str(operation.attempts),
            # only the internal door asks for it
            "call": self.http.headers[calls.HEADER] if context.lease or guard else "",
            "lease": context.lease or "",
            "scope": intake.owner.scope or "" if everything else "",
            "own_files": json.dumps([stored.id for stored in intake.stored]),
            "ttl_ms": str(int(1000 * (SENSITIVE_TTL_S if everything else self.runtime.settings.output_ttl_s))),
        }
        if "seed" in raw:
            fields["seed"] = str(raw["seed"])
        if guard is not None:
            fields["guard"] = guard.text()
        return NewJob(
            id=context.job_id,
            method=self.service.name,
            queue=operation.queue,
            tenant=context.tenant,
            fields=fields,
            deadline_s=min(operation.deadline_s, context.expires_at - time.time()),
            queue_limit=self.runtime.settings.queue_limit,
            needs_worker=operation.kind == "compute" and not self.wants_async,
            idempotency=f"{context.principal}:{replay_key}" if replay_key else "",
            fingerprint=fingerprint,
            limits=context.limits,
            pixels=sum(file.width * file.height for file in files_in(request) if file.width and file.height),
        )

    async def _guard(self, request: Any) -> Guard | None:
        """The guard that was asked for, its detector with a version. Raises `ModelNotFound`, `InvalidRequest`."""
        if (ref := getattr(request, "guard", None)) is None:
            return None
        check_model(ref)
        if self.operation.views is None and not any(isinstance(file, Image) for file in files_in(request)):
            raise InvalidRequest(
                "guard: there is no picture to look at.",
                errors=[{"place": "guard", "message": "needs a picture", "kind": "guard"}],
            )
        found = await run_in_threadpool(self.runtime.guards.resolve, ref, self.context.tenant)
        return Guard(found.id, request.guard_action)

    def _idempotency_key(self) -> str:
        key = self.http.headers.get("idempotency-key")
        if key is None:
            return ""
        if not re.fullmatch(r"[\x20-\x7e]{1,255}", key):
            raise MalformedIdempotencyKey
        return hashlib.sha256(key.encode()).hexdigest()

    async def _create(self, job: NewJob) -> str:
        outcome, value = await self.runtime.jobs.create(job)
        match outcome:
            case "created" | "replay":
                log.info(f"job.{outcome}", job_id=value, method=job.method, operation=self.operation.name)
                return value
            case "conflict":
                raise self._refused(IdempotencyConflict())
            case "taken":
                raise CallNotSigned("The call was made before.")
            case "no_worker":
                raise self._refused(NoWorker(f"No worker serves {job.method} at the moment.", retry_after_s=5))
            case "full":
                detail = f"{job.queue_limit} jobs of {job.method} wait already."
                raise self._refused(QueueFull(detail, retry_after_s=float(value)))
            case "jobs":
                raise self._refused(limits.too_much(limits.JOBS, job.limits, float(value)))
            case "pixels":
                raise self._refused(limits.too_much(limits.PIXELS, job.limits, float(value)))
        raise RuntimeError(f"jobs.lua answered {outcome!r}")

    def _refused(self, problem: Problem) -> Problem:
        self.runtime.series.refused.labels(self.service.name, problem.code).inc()
        return problem

    # giving the answer out

    async def _picture(self, record: JobRecord, headers: dict[str, str]) -> Response:
        result = record.result or {}
        picture = result[self.picture or ""]
        accept = self.http.headers.get("accept", "")
        if picture is None:
            raise NotAcceptable("The result is no picture.", offered=["application/json"], job_id=record.id)
        if not any(kind in accept for kind in (picture["media_type"], "image/*")):
            raise NotAcceptable(
                f"The picture is {picture['media_type']}.", offered=[picture["media_type"]], job_id=record.id
            )
        links = [f'</v1/jobs/{record.id}>; rel="job"']
        for name, value in result.items():
            if name != self.picture and isinstance(value, dict) and "url" in value:
                links.append(f'<{value["url"]}>; rel="{name}"')
        stored = await run_in_threadpool(self.runtime.files.stat, picture["file"])
        key = await self._file_key(stored.owner.lease, record.fields["call"])  # of the job, also in a replay
        stream = await run_in_threadpool(lambda: self.runtime.files.open(stored.id, key=key))
        headers |= {
            "Link": ", ".join(links),
            "Content-Length": str(stored.bytes),
            "ETag": f'"{stored.sha256}"',
            "Cache-Control": "private, no-store" if stored.owner.scope else "private",
        }
        return StreamingResponse(_chunks(stream), media_type=stored.media_type, headers=headers)


async def _chunks(stream: BinaryIO) -> AsyncIterator[bytes]:
    try:
        while chunk := await run_in_threadpool(stream.read, DOWNLOAD_BYTES):
            yield chunk
    finally:
        await run_in_threadpool(stream.close)


def _fingerprint(operation: Operation, raw: Any) -> str:
    """What makes two requests the same: the operation and its fields, files by content."""

    def by_content(value: Any) -> Any:
        if isinstance(value, dict):
            if "file" in value and "sha256" in value:
                return value["sha256"]
            return {name: by_content(item) for name, item in value.items()}
        return [by_content(item) for item in value] if isinstance(value, list) else value

    canonical = json.dumps([operation.name, by_content(raw)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _preference(prefer: str, default_s: float) -> tuple[float, bool]:
    """Seconds to wait, and whether the caller asked not to (RFC 7240)."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6}(?:\.\d+)?)", prefer)
    wait_s = min(float(found[1]), MAX_WAIT_S) if found else default_s
    return wait_s, "respond-async" in prefer
