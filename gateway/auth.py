"""Who calls: the API key in `Authorization`, and the principal that it belongs to."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection, Request

from gateway.principals import Principal
from shared.problems import ApiKeyMissing, ScopeMissing

_bearer = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="An API key, as `Authorization: Bearer tf_…`.")


async def authenticate(connection: HTTPConnection) -> Principal:
    """The caller. Raises `ApiKeyMissing` or `ApiKeyInvalid`."""
    scheme, _, api_key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not api_key.strip():
        raise ApiKeyMissing
    principal: Principal = await connection.app.state.custody.principals.authenticate(api_key.strip())
    connection.scope["state"]["principal"] = principal.id
    return principal


Documented = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


async def principal_of(request: Request, _: Documented) -> Principal:
    """Dependency of every route that needs a caller. Raises `RateLimited`, but not where the caller makes room."""
    principal = await authenticate(request)
    if request.method != "DELETE" and not request.url.path.endswith("/cancel"):
        await request.app.state.parts.throttle.admit(request, principal)
    return principal


Caller = Annotated[Principal, Depends(principal_of)]


def require_scope(principal: Principal, scope: str | None) -> None:
    """Raise `ScopeMissing` unless `principal` may do what needs `scope`."""
    if scope is not None and scope not in principal.scopes:
        raise ScopeMissing(f"This needs the scope {scope!r}.", scope=scope)
