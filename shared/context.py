"""Who calls a service, and for which job: the header that only the gateway can sign."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import asdict, dataclass

from shared import ids
from shared.limits import NO_LIMITS, Limits
from shared.problems import CallNotSigned

HEADER = "x-tenfold-context"
DOOR_HEADER = "x-tenfold-door"
CALL_SKEW_S = 60.0  # a service takes a call at once, so a header that is older is somebody's copy
DOOR_SKEW_S = 60.0  # a door call is refused when its time differs by more


@dataclass(frozen=True)
class CallContext:
    """What the gateway vouches for. Times are seconds since the epoch."""

    tenant: str
    principal: str
    scopes: tuple[str, ...]
    method: str
    operation: str
    job_id: str
    request_id: str
    expires_at: float
    lease: str | None = None
    limits: Limits = NO_LIMITS
    """What the principal may use."""

    def signed(self, secret: str) -> str:
        """The header value: base64url of the JSON, a dot, base64url of its HMAC-SHA-256."""
        payload = base64.urlsafe_b64encode(json.dumps(asdict(self), separators=(",", ":")).encode())
        return f"{payload.decode()}.{_tag(secret, payload)}"

    @staticmethod
    def verified(header: str | None, secret: str, now: float | None = None) -> CallContext:
        """Read a header value back. Raises `CallNotSigned` unless it is ours and unexpired."""
        payload, _, tag = (header or "").partition(".")
        if not hmac.compare_digest(tag.encode(), _tag(secret, payload.encode()).encode()):
            raise CallNotSigned
        fields = json.loads(base64.urlsafe_b64decode(payload))
        limits = Limits(*fields.get("limits", ()))  # a job that was accepted before there were any has none
        context = CallContext(**{**fields, "scopes": tuple(fields["scopes"]), "limits": limits})
        if context.expires_at < (time.time() if now is None else now):
            raise CallNotSigned("The call has expired.")
        return context

    def check_fresh(self, now: float | None = None) -> None:
        """Raise `CallNotSigned` for a call whose job was named more than a minute ago.

        A header counts once: a job's name is taken while its record lives, which is longer than a minute.
        """
        try:
            age_s = (time.time() if now is None else now) - ids.born_at(self.job_id)
        except ValueError as error:
            raise CallNotSigned("The call names no job.") from error
        if abs(age_s) > CALL_SKEW_S:
            raise CallNotSigned("The call was signed too long ago.")


def _tag(secret: str, payload: bytes) -> str:
    digest = hmac.digest(secret.encode(), b"tenfold/context/v1\0" + payload, hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode()


def door_signature(secret: str, path: str, body: bytes, now: float) -> str:
    """The value of `DOOR_HEADER`: the time and an HMAC over time, path and body. A dump of the broker opens nothing."""
    stamp = f"{now:.3f}"
    message = b"tenfold/door/v1\0" + stamp.encode() + b"\0" + path.encode() + b"\0" + body
    return f"{stamp}.{hmac.digest(secret.encode(), message, hashlib.sha256).hex()}"


def check_door_signature(secret: str, path: str, body: bytes, header: str | None, now: float) -> None:
    """Raise `CallNotSigned` unless `door_signature` made `header` for this path and body within the last minute."""
    stamp, _, _ = (header or "").rpartition(".")
    try:
        then = float(stamp)
    except ValueError:
        raise CallNotSigned from None
    if abs(now - then) > DOOR_SKEW_S or not hmac.compare_digest(
        (header or "").encode(), door_signature(secret, path, body, then).encode()
    ):
        raise CallNotSigned
