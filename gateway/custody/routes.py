"""Custody over HTTP: secret keys for custodians, the audit trail for officers, public keys for everybody.

The tenant is the API key's. A request that names another one is refused and audited, wherever it names it.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from gateway.custody import trail
from gateway.custody.canonical import LARGEST_INTEGER
from gateway.custody.schemas import (
    AuditEntry,
    AuditPage,
    DestroyRequest,
    EnableRequest,
    KeyRequest,
    RecordKeys,
    SecretKey,
    SecretKeyList,
)
from gateway.custody.secretkeys import Caller
from gateway.custody.service import Custody
from gateway.custody.store import KeyState
from gateway.principals import Principal
from shared.problems import MalformedIdempotencyKey, ScopeMissing, TenantMismatch

AUDIT_PAGE = 200
AUDIT_PAGE_MAX = 1000

_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{8,64}")


@dataclass(frozen=True)
class Call:
    """One authenticated request."""

    custody: Custody
    caller: Caller

    @property
    def tenant(self) -> str:
        return self.caller.principal.tenant

    async def only_for(self, tenant: str | None) -> None:
        """Raise `TenantMismatch` where the request names a tenant that is not the API key's."""
        if tenant not in (None, self.tenant):
            await self._refused("tenant_mismatch")
            raise TenantMismatch

    async def only_with(self, scope: str) -> None:
        if scope not in self.caller.principal.scopes:
            await self._refused("scope_missing")
            raise ScopeMissing(scope=scope)

    async def shown(self, state: KeyState) -> SecretKey:
        return SecretKey.of(state, await self.custody.keys.default(self.tenant))

    async def _refused(self, reason: str) -> None:
        principal = self.caller.principal
        await self.custody.audit.append(
            "authz.deny",
            tenant=principal.tenant,
            actor=principal.id,
            role=principal.role,
            reason=reason,
            decision="denied",
            request_id=self.caller.request_id or None,
        )


def keys_router(
    custody_of: Callable[[Request], Custody], principal_of: Callable[..., Awaitable[Principal]]
) -> APIRouter:
    """`/v1/keys…`, `/v1/audit` and `/.well-known/tenfold-record-keys.json`.

    principal_of  a FastAPI dependency that authenticates the request
    """
    router = APIRouter()

    async def call(request: Request, principal: Annotated[Principal, Depends(principal_of)]) -> Call:
        call = Call(custody_of(request), Caller(principal, _request_id(request)))
        await call.only_for(request.headers.get("x-tenfold-tenant"))
        await call.only_for(request.query_params.get("tenant"))
        return call

    async def custodian(response: Response, call: Annotated[Call, Depends(call)]) -> Call:
        response.headers["cache-control"] = "no-store"
        await call.only_with("keys")
        return call

    async def auditor(response: Response, call: Annotated[Call, Depends(call)]) -> Call:
        response.headers["cache-control"] = "no-store"
        await call.only_with("audit")
        return call

    @router.post("/v1/keys", status_code=201, tags=["keys"])
    async def create_key(
        body: KeyRequest,
        call: Annotated[Call, Depends(custodian)],
        idempotency_key: Annotated[str | None, Header()] = None,
    ) -> SecretKey:
        """Make a secret key for reversible anonymization.

        When this answers, the key is on disk and was read back. Repeated with the same `Idempotency-Key`, it answers
        with the same key.
        """
        await call.only_for(body.tenant)
        if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
            raise MalformedIdempotencyKey
        state = await call.custody.keys.create(call.caller, body.to_new_key(), idempotency_key=idempotency_key)
        return await call.shown(state)

    @router.get("/v1/keys", tags=["keys"])
    async def list_keys(call: Annotated[Call, Depends(custodian)]) -> SecretKeyList:
        """The tenant's keys, oldest first: what is known of them, never the keys themselves."""
        default = await call.custody.keys.default(call.tenant)
        return SecretKeyList(keys=[SecretKey.of(state, default) for state in await call.custody.keys.list(call.tenant)])

    @router.get("/v1/keys/{key_id}", tags=["keys"])
    async def get_key(key_id: str, call: Annotated[Call, Depends(custodian)]) -> SecretKey:
        """One key. Another tenant's key, a destroyed one and one that never was look alike."""
        return await call.shown(await call.custody.keys.get(call.tenant, key_id))

    @router.post("/v1/keys/{key_id}/rotate", tags=["keys"])
    async def rotate_key(key_id: str, call: Annotated[Call, Depends(custodian)]) -> SecretKey:
        """Use a new secret for new pictures. Older pictures are recovered with the version that made them."""
        return await call.shown(await call.custody.keys.rotate(call.caller, key_id))

    @router.post("/v1/keys/{key_id}/disable", tags=["keys"])
    async def disable_key(key_id: str, call: Annotated[Call, Depends(custodian)]) -> SecretKey:
        """Stop a key at once: jobs that wait with it fail. Enabling it again undoes this."""
        return await call.shown(await call.custody.keys.disable(call.caller, key_id))

    @router.post("/v1/keys/{key_id}/enable", tags=["keys"])
    async def enable_key(
        key_id: str, call: Annotated[Call, Depends(custodian)], body: EnableRequest | None = None
    ) -> SecretKey:
        """Let a disabled key work again; one whose time is over needs a new `not_after`."""
        await call.only_for(body.tenant if body else None)
        not_after = body.not_after.timestamp() if body and body.not_after else None
        return await call.shown(await call.custody.keys.enable(call.caller, key_id, not_after=not_after))

    @router.post("/v1/keys/{key_id}/destroy", tags=["keys"])
    async def destroy_key(key_id: str, body: DestroyRequest, call: Annotated[Call, Depends(custodian)]) -> SecretKey:
        """Ask for a key to be destroyed, or confirm what another custodian asked for.

        The key stops at once. Its secrets are deleted when a second custodian has confirmed *and* the grace period is
        over; until then `cancel-destroy` calls it off. After that no picture made with it can be recovered, by anybody.
        """
        await call.only_for(body.tenant)
        state = await call.custody.keys.destroy(call.caller, key_id, reason=body.reason, grace_days=body.grace_days)
        return await call.shown(state)

    @router.post("/v1/keys/{key_id}/cancel-destroy", tags=["keys"])
    async def cancel_destroy(key_id: str, call: Annotated[Call, Depends(custodian)]) -> SecretKey:
        """Call off a key's end. It stays disabled until it is enabled."""
        return await call.shown(await call.custody.keys.cancel_destroy(call.caller, key_id))

    @router.get("/v1/audit", tags=["audit"])
    async def read_audit(
        call: Annotated[Call, Depends(auditor)],
        after: Annotated[int, Query(ge=-1, le=LARGEST_INTEGER)] = -1,
        limit: Annotated[int, Query(ge=1, le=AUDIT_PAGE_MAX)] = AUDIT_PAGE,
    ) -> AuditPage:
        """The tenant's entries of the audit trail, oldest first, each with the MAC of the chain.

        Reading is itself audited. Keep the checkpoint somewhere else: with it, `tenfold-admin custody audit verify`
        finds a trail that was cut off or written anew.
        """
        principal = call.caller.principal
        await call.custody.audit.append(
            "audit.read",
            tenant=principal.tenant,
            actor=principal.id,
            role=principal.role,
            after=after,
            decision="allowed",
            request_id=call.caller.request_id or None,
        )
        found = await run_in_threadpool(trail.read, call.custody.audit.folder, after, limit, call.tenant)
        return AuditPage(
            entries=[AuditEntry(event=entry.event, mac=entry.mac.hex()) for entry in found],
            next_after=found[-1].seq if found else after,
            checkpoint=call.custody.checkpoints.newest,
        )

    @router.get("/.well-known/tenfold-record-keys.json", tags=["keys"])
    async def record_keys(request: Request) -> RecordKeys:
        """The public keys that verify the records of anonymized pictures."""
        return RecordKeys(keys=custody_of(request).records.public_keys())

    return router


def _request_id(request: Request) -> str:
    """The id that the gateway gave this request, or a sane one that the caller sent."""
    given = getattr(request.state, "request_id", None) or request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else ""
