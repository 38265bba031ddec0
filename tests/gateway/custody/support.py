"""What the tests of custody share: a clock that can be moved, callers, and apps made of custody's own routers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from gateway.custody.door import door_router
from gateway.custody.redeeming import Wish
from gateway.custody.routes import keys_router
from gateway.custody.secretkeys import Caller, NewKey
from gateway.custody.service import Custody
from gateway.custody.store import KeyState
from gateway.principals import Principal, Role
from shared.context import DOOR_HEADER, CallContext, door_signature
from shared.ids import ordered_id
from shared.leases import image_nonce
from shared.problems import MEDIA_TYPE, ApiKeyMissing, Problem
from shared.settings import GatewaySettings

INTERNAL_SECRET = "internal-secret-of-the-tests-0123456789"
PEPPER = "pepper-of-the-tests-0123456789-0123456789"
MODEL = {"model": "ifadit/small@1", "model_digest": "sha256:0f" + "0" * 62, "key_scheme": "v2-gauss"}
DIM = 128


class Clock:
    """The time of day, moved by hand."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self._ahead_s

    def advance(self, seconds: float) -> None:
        self._ahead_s += seconds


def settings_for(
    home: Path, custody_url: str, broker_url: str = "redis://127.0.0.1:1/0", **other: Any
) -> GatewaySettings:
    return GatewaySettings.model_validate(
        {
            "home": home,
            "broker_url": broker_url,
            "custody_url": custody_url,
            "internal_secret": INTERNAL_SECRET,
            "api_key_pepper": PEPPER,
            "kek_path": home / "kek.json",
            **other,
        }
    )


@dataclass(frozen=True)
class Person:
    """A principal with its API key."""

    principal: Principal
    api_key: str

    @property
    def caller(self) -> Caller:
        return Caller(self.principal, "req_of_the_tests")


async def person(custody: Custody, role: Role, tenant: str = "acme") -> Person:
    return Person(*await custody.principals.create(tenant, role, f"a test's {role}"))


async def key_for(custody: Custody, custodian: Person, **new: Any) -> KeyState:
    return await custody.keys.create(custodian.caller, NewKey(**new))


@dataclass(frozen=True)
class Job:
    """A job with its lease, as a worker sees it."""

    custody: Custody
    context: CallContext
    lease: str

    def nonces(self, count: int = 2, unit: int = 0) -> tuple[str, ...]:
        return tuple(image_nonce(self.context.job_id, face, unit) for face in range(count))

    async def redeem(self, *, unit: int = 0, attempt: int = 1, count: int = 2, **wish: Any) -> bytearray:
        """Image keys of two faces, if nothing else is asked for."""
        if not {"nonces", "record"} & wish.keys():
            wish["nonces"] = self.nonces(count, unit)
        wish = {**MODEL, "dim": DIM, **wish}
        return await self.custody.redeeming.redeem(self.context, self.lease, Wish(unit=unit, attempt=attempt, **wish))

    async def seal(self, *, unit: int = 0, attempt: int = 1, count: int = 2, **draft: Any) -> dict[str, Any]:
        draft = draft_of(draft.pop("nonces", self.nonces(count, unit)), **draft)
        return await self.custody.sealing.seal(self.context, self.lease, unit=unit, attempt=attempt, draft=draft)


async def job_for(
    custody: Custody, who: Person, kind: Any, *, key_id: str | None = None, lasts_s: float = 3600.0
) -> Job:
    """Open a lease as the gateway does, and sign the context as the gateway does."""
    job_id = ordered_id("job")
    expires_at = custody.now() + lasts_s
    call = {"job_id": job_id, "method": "ifadit", "operation": kind, "request_id": "req_of_the_tests"}
    lease = await custody.open_lease(who.principal, kind=kind, key_id=key_id, expires_at=expires_at, **call)
    principal = who.principal
    context = CallContext(
        tenant=principal.tenant,
        principal=principal.id,
        scopes=tuple(sorted(principal.scopes)),
        expires_at=expires_at,
        lease=lease,
        **call,
    )
    return Job(custody, context, lease)


def draft_of(nonces: tuple[str, ...], **other: Any) -> dict[str, Any]:
    return {
        "model_id": MODEL["model"],
        "model_digest": MODEL["model_digest"],
        "key_scheme": MODEL["key_scheme"],
        "linkage": "per_image" if any(nonces) else "per_key",
        "image": {"w": 640, "h": 480, "pixel_sha256": "ab" * 32},
        "faces": [
            {"i": i, "nonce": nonce, "matrix": ["1.0", "0.0", "12.5", "0.0", "1.0", "7.25"], "mode": "parametric"}
            for i, nonce in enumerate(nonces)
        ],
        **other,
    }


async def anonymized(custody: Custody, app: Person, *, key_id: str | None = None) -> tuple[bytearray, dict[str, Any]]:
    """The octets and the record of a picture with two faces."""
    job = await job_for(custody, app, "anonymize", key_id=key_id)
    return await job.redeem(), await job.seal()


async def recovered(
    custody: Custody, officer: Person, record: Mapping[str, Any], *, key_id: str | None = None, **wish: Any
) -> bytearray:
    job = await job_for(custody, officer, "recover", key_id=key_id)
    return await job.redeem(record=record, **{"purpose": "court order 17", **wish})


def with_problems(app: FastAPI) -> FastAPI:
    @app.exception_handler(Problem)
    async def show(request: Request, problem: Problem) -> JSONResponse:
        return JSONResponse(problem.body(), problem.status, media_type=MEDIA_TYPE)

    return app


def public_app(custody: Custody) -> FastAPI:
    async def principal_of(request: Request) -> Principal:
        scheme, _, api_key = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer":
            raise ApiKeyMissing
        return await custody.principals.authenticate(api_key)

    app = with_problems(FastAPI())
    app.include_router(keys_router(lambda request: custody, principal_of))
    return app


def door_app(custody: Custody) -> FastAPI:
    app = with_problems(FastAPI())
    app.include_router(door_router(lambda request: custody, now=custody.now))
    return app


class Http:
    """Calls an app without a network."""

    def __init__(self, app: FastAPI) -> None:
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://custody")

    async def __aenter__(self) -> Http:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get(self, path: str, who: Person, **options: Any) -> httpx.Response:
        return await self._client.get(path, headers=_headers(who, options), **options)

    async def post(self, path: str, who: Person, **options: Any) -> httpx.Response:
        return await self._client.post(path, headers=_headers(who, options), **options)

    async def knock(
        self, path: str, body: Mapping[str, Any], now: float, secret: str = INTERNAL_SECRET
    ) -> httpx.Response:
        """Call the internal door with its signature."""
        content = json.dumps(body).encode()
        headers = {DOOR_HEADER: door_signature(secret, path, content, now)}
        return await self._client.post(path, content=content, headers=headers)


def _headers(who: Person, options: dict[str, Any]) -> dict[str, str]:
    return {"authorization": f"Bearer {who.api_key}", **options.pop("headers", {})}


def events(home: Path, action: str | None = None) -> list[dict[str, Any]]:
    """The audit trail's events, oldest first."""
    lines = [line for path in sorted((home / "audit").glob("*-*-*.jsonl")) for line in path.read_text().splitlines()]
    found = [json.loads(line.partition("\t")[0]) for line in lines]
    return [event for event in found if action in (None, event["action"])]


def break_trail(home: Path) -> None:
    """Put a file where the audit trail's folder was: nothing can be written to it."""
    (home / "audit").rename(home / "audit.away")
    (home / "audit").touch()
