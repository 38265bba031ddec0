"""What custody's HTTP routes take and give. No field of any answer holds key material."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from gateway.custody.secretkeys import GRACE_DAYS, GRACE_DAYS_MAX, GRACE_DAYS_MIN, PURPOSES, NewKey
from gateway.custody.store import KeyState, Purpose
from shared.leases import WRAPPED_DEK_BYTES

Label = Annotated[str, Field(max_length=200, description="Free text to tell keys apart; no names of people.")]
NotAfter = Annotated[
    AwareDatetime | None, Field(description="When the key stops working (it is disabled then, never destroyed).")
]
_PURPOSES_TEXT = (
    "What the key may be used for, for good. `forensic`, together with the others, lets requests keep the original "
    "pixels of faces, encrypted, for exact recovery; without it they cannot."
)
Tenant = Annotated[str | None, Field(description="Only ever the API key's own tenant; another one is refused.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    tenant: Tenant = None


class KeyRequest(_Body):
    """A new secret key. The secret is made here and never leaves."""

    label: Label = ""
    not_after: NotAfter = None
    purposes: Annotated[frozenset[Purpose], Field(min_length=1, description=_PURPOSES_TEXT)] = PURPOSES
    default: bool = Field(default=False, description="Let this key serve requests that name none.")

    def to_new_key(self) -> NewKey:
        not_after = None if self.not_after is None else self.not_after.timestamp()
        return NewKey(self.label, not_after, self.purposes, self.default)


class EnableRequest(_Body):
    """What may change when a key is enabled."""

    not_after: NotAfter = None


class DestroyRequest(_Body):
    """Why a key is destroyed, and how long it can still be called off."""

    reason: str = Field(min_length=1, max_length=200)
    grace_days: int = Field(GRACE_DAYS, ge=GRACE_DAYS_MIN, le=GRACE_DAYS_MAX)


class SecretKey(BaseModel):
    """A secret key as its tenant's custodians see it."""

    key_id: str = Field(examples=["key_1f3k9v0e6d8t2q4s7w5y1x3z9a"])
    key_version: int = Field(description="The version that new pictures are made with; older ones still recover.")
    state: Literal["active", "disabled", "pending_destroy", "destroyed"]
    label: str
    purposes: list[Purpose]
    default: bool = Field(description="Whether it serves requests that name no key.")
    created_at: datetime
    created_by: str = Field(description="The principal that made it.")
    not_after: datetime | None
    destroy_at: datetime | None = Field(description="When the secrets can be deleted, once the end is confirmed.")
    destroy_requested_by: str | None
    destroy_approved_by: str | None = Field(description="The second custodian; without one nothing is deleted.")

    @staticmethod
    def of(state: KeyState, default: str | None) -> SecretKey:
        return SecretKey(
            key_id=state.key_id,
            key_version=state.version,
            state=state.status,
            label=state.label,
            purposes=sorted(state.purposes),
            default=state.key_id == default,
            created_at=datetime.fromtimestamp(state.created_at, UTC),
            created_by=state.created_by,
            not_after=_moment(state.not_after),
            destroy_at=_moment(state.destroy_at),
            destroy_requested_by=state.destroy_requested_by,
            destroy_approved_by=state.destroy_approved_by,
        )


class SecretKeyList(BaseModel):
    keys: list[SecretKey]


class AuditEntry(BaseModel):
    """One entry of the trail: the exact text that is under the MAC, and the MAC of the chain up to it."""

    event: str
    mac: str


class AuditPage(BaseModel):
    """Entries of the caller's tenant, and a signed statement about the whole chain for safe keeping."""

    entries: list[AuditEntry]
    next_after: int = Field(description="Ask again with `after=` this number.")
    checkpoint: dict[str, Any] | None


class RecordKeys(BaseModel):
    """The public keys that verify records (RFC 7517, RFC 8037), oldest first; the last one signs."""

    keys: list[dict[str, Any]]


# The internal door

Attempt = Annotated[int, Field(ge=1, le=100)]
Unit = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class _DoorBody(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    context: str


class LeaseBody(_DoorBody):
    """Of calls that are about the lease as a whole."""


class RedeemBody(_DoorBody):
    attempt: Attempt
    unit: Unit
    model: Name
    model_digest: Name
    key_scheme: Literal["v1-uniform", "v2-gauss"]
    dim: int = Field(ge=1, le=2040)
    purpose: str | None = None
    forensic: bool = False
    wrapped_dek: str | None = Field(None, pattern=rf"^[0-9a-f]{{{2 * WRAPPED_DEK_BYTES}}}$")
    nonces: list[str] | None = None
    record: dict[str, Any] | None = None


class ImageBody(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    w: int = Field(ge=1)
    h: int = Field(ge=1)
    pixel_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class DraftBody(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model_id: Name
    model_digest: Name
    key_scheme: Literal["v1-uniform", "v2-gauss"]
    linkage: Literal["per_image", "per_key"]
    image: ImageBody
    faces: list[dict[str, Any]] = Field(max_length=1000)


class SealBody(_DoorBody):
    attempt: Attempt
    unit: Unit
    draft: DraftBody


class CheckBody(_DoorBody):
    record: dict[str, Any]


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
