"""The internal door: where workers redeem leases. On a port or socket of its own, never on the public one.

Every call is signed with the installation's internal secret over time, path and body, and carries the context that the
gateway signed for the job: a copy of the broker's data opens nothing here.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError

from gateway.custody.redeeming import Wish
from gateway.custody.schemas import CheckBody, LeaseBody, RedeemBody, SealBody
from gateway.custody.service import Custody
from shared.context import DOOR_HEADER, CallContext, check_door_signature
from shared.leases import OCTETS_VALID_S
from shared.problems import BodyTooLarge, InvalidRequest
from shared.secretbytes import wipe

BODY_LIMIT_BYTES = 4 * 2**20  # a record of a thousand faces with their masks

_Body = TypeVar("_Body", bound=BaseModel)
_OCTETS_HEADERS = {"cache-control": "no-store", "x-tenfold-valid-s": f"{OCTETS_VALID_S:.0f}"}


def door_router(custody_of: Callable[[Request], Custody], *, now: Callable[[], float] = time.time) -> APIRouter:
    """`/internal/…`. Secrets leave as octets, never as JSON: JSON ends in logs."""
    router = APIRouter(include_in_schema=False)

    async def entered(request: Request, shape: type[_Body]) -> tuple[Custody, CallContext, _Body]:
        custody = custody_of(request)
        return custody, *await signed(request, shape, custody.internal_secret, now())

    @router.post("/internal/leases/{lease}/file-key")
    async def file_key(lease: str, request: Request) -> Response:
        custody, context, _ = await entered(request, LeaseBody)
        return _octets(await custody.redeeming.file_key(context, lease))

    @router.post("/internal/leases/{lease}/release", status_code=204)
    async def release(lease: str, request: Request) -> None:
        custody, context, _ = await entered(request, LeaseBody)
        await custody.release_lease(context, lease)

    @router.post("/internal/leases/{lease}/redeem")
    async def redeem(lease: str, request: Request) -> Response:
        custody, context, body = await entered(request, RedeemBody)
        wish = Wish(
            attempt=body.attempt,
            unit=body.unit,
            model=body.model,
            model_digest=body.model_digest,
            key_scheme=body.key_scheme,
            dim=body.dim,
            nonces=None if body.nonces is None else tuple(body.nonces),
            record=body.record,
            purpose=body.purpose,
            forensic=body.forensic,
            wrapped_dek=None if body.wrapped_dek is None else bytes.fromhex(body.wrapped_dek),
        )
        return _octets(await custody.redeeming.redeem(context, lease, wish))

    @router.post("/internal/leases/{lease}/seal")
    async def seal(lease: str, request: Request) -> dict[str, Any]:
        custody, context, body = await entered(request, SealBody)
        draft = body.draft.model_dump()
        return await custody.sealing.seal(context, lease, unit=body.unit, attempt=body.attempt, draft=draft)

    @router.post("/internal/records/check")
    async def check(request: Request) -> dict[str, Any]:
        custody, context, body = await entered(request, CheckBody)
        return await custody.sealing.check(context, body.record)

    return router


async def signed(request: Request, shape: type[_Body], secret: str, now: float) -> tuple[CallContext, _Body]:
    """The body of a call at the door, and the job's context in it. Raises `CallNotSigned`, `InvalidRequest`."""
    raw = await _read(request)
    check_door_signature(secret, request.url.path, raw, request.headers.get(DOOR_HEADER), now)
    try:
        body = shape.model_validate_json(raw)
    except ValidationError as error:
        raise InvalidRequest(errors=_places(error)) from None
    return CallContext.verified(getattr(body, "context", None), secret, now), body


async def _read(request: Request) -> bytes:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > BODY_LIMIT_BYTES:
            raise BodyTooLarge(limit_bytes=BODY_LIMIT_BYTES)
    return bytes(raw)


def _octets(secret: bytearray) -> Response:
    """The answer keeps a copy until it is sent, which Python cannot wipe; ours is wiped here."""
    try:
        return Response(bytes(secret), media_type="application/octet-stream", headers=_OCTETS_HEADERS)
    finally:
        wipe(secret)


def _places(error: ValidationError) -> list[dict[str, Any]]:
    """Where the body is wrong and what would be right, without repeating what it said."""
    return [{"loc": list(found["loc"]), "msg": found["msg"]} for found in error.errors(include_input=False)]
