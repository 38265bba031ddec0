"""iFADIT: replace faces by other people's, and, with the secret key, bring them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal

from tenfold import _constants as bounds
from tenfold._context import Context, F
from tenfold._effects import Plan
from tenfold._inputs import FileInput
from tenfold._operations import GuardAction, call_for, guard_fields
from tenfold._surface import AsyncCalls, Calls, awaited, blocking
from tenfold.types import Box, Facts, Result, StoredFile

Linkage = Literal["per_image", "per_key"]
OutputFormat = Literal["png", "webp", "jpeg"]
Mode = Literal["parametric", "forensic"]


class Face(Facts):
    """What was done to one face."""

    box: Box
    """Where it is."""
    action: str
    """`anonymized`, `recovered`, or `redacted_irreversibly`: too small or too turned, so it was blurred for good."""
    score: float | None = None
    """How sure the face finder was, 0..1; None for a box that was given."""


class Anonymized(Result, Generic[F]):
    """A picture whose faces are other people's, and what brings them back."""

    image: F
    """The picture. A PNG holds the record; keep the record beside any other format."""
    record: F
    """The signed record: which key, model and faces. No secret, and of no use without the key."""
    sidecar: F | None = None
    """With mode forensic: the original pixels of the faces, encrypted. Keep it: exact recovery needs it."""
    faces: tuple[Face, ...]
    """One entry a face, as found."""
    model: str
    """What replaced them, `ifadit/name@version`."""
    key_id: str
    """The secret key that brings them back."""
    key_version: int
    """Its version at that time."""
    linkage: Linkage
    """Whether the same face becomes the same person in other pictures too."""
    expected_recovery: dict[str, float]
    """Mean likeness (cosine, -1..1) of recovered and original faces of people in no training, by output format."""


class Recovered(Result, Generic[F]):
    """A picture with its own faces again, as near as the model comes. Save it: it is gone after 15 minutes."""

    image: F
    """The picture."""
    faces: tuple[Face, ...]
    """One entry a face."""
    fidelity: str
    """`parametric`: the model's reconstruction. `forensic`: the original pixels, exactly."""
    expected_fidelity: float | None = None
    """Of a parametric recovery: mean likeness (cosine, -1..1) with the originals, of people in no training."""
    record_match: bool
    """Whether the picture is, to the pixel, the one that the record was made for."""
    model: str
    """What brought them back, `ifadit/name@version`."""
    key_id: str
    """The secret key that was used."""
    key_version: int
    """Its version."""


class Verified(Result):
    """What could be established. None: that was not asked, or cannot be told."""

    record_valid: bool | None = None
    """Whether this installation signed the record."""
    record_match: bool | None = None
    """Whether the picture is, to the pixel, the one that the record was made for."""
    cosine: float | None = None
    """Likeness of the faces of two pictures, -1..1."""


def anonymize(
    context: Context[F],
    image: FileInput | StoredFile,
    *,
    key: str | None = None,
    linkage: Linkage = "per_image",
    faces: Sequence[Box | Mapping[str, float]] | None = None,
    output_format: OutputFormat = "png",
    mode: Mode = "parametric",
    model: str = "ifadit/small",
    guard: str | None = None,
    guard_action: GuardAction = "flag",
    wait_s: float = bounds.WAIT_S,
    idempotency_key: str | None = None,
) -> Plan[Anonymized[F]]:
    """Replace the faces of a picture by other people's. Needs an API key with the scope `use`.

    image            the picture
    key              the secret key that can bring them back, `key_…`; by default the tenant's default key
    linkage          per_image: another person in every picture; per_key: the same face, the same person
    faces            boxes in pixels, `{"x": …, "y": …, "width": …, "height": …}`; by default every face that is found
    output_format    png holds the record inside; of webp and jpeg, keep the record beside
    mode             forensic: also give the original pixels, encrypted, for exact recovery, if the secret key allows it
    model            `ifadit/name` or `ifadit/name@version`
    guard            a detector, `dlsr/name`: are these faces like those that it knows? `result.guard` answers
    guard_action     refuse: what it finds strange is refused, and nothing is computed
    wait_s           seconds to wait in all; past them `TimedOut`, and the job goes on
    idempotency_key  the same key with the same request is the same job; a new one by default
    """
    fields = {"linkage": linkage, "faces": faces, "output_format": output_format, "mode": mode, "model": model}
    fields |= guard_fields(guard, guard_action)
    return call_for(
        context,
        "ifadit",
        "anonymize",
        Anonymized[F],
        fields,
        {"image": image},
        key=key,
        wait_s=wait_s,
        idempotency_key=idempotency_key,
    )


def recover(
    context: Context[F],
    image: FileInput | StoredFile,
    record: FileInput | StoredFile | None = None,
    sidecar: FileInput | StoredFile | None = None,
    *,
    purpose: str,
    key: str | None = None,
    allow_modified: bool = False,
    output_format: OutputFormat = "png",
    guard: str | None = None,
    guard_action: GuardAction = "flag",
    wait_s: float = bounds.WAIT_S,
    idempotency_key: str | None = None,
) -> Plan[Recovered[F]]:
    """Bring the faces of an anonymized picture back. Needs an API key with the scope `recover`; every call is audited.

    image            the anonymized picture
    record           its record, where the picture is no PNG that holds it
    sidecar          what a forensic anonymization gave beside the picture: recover the very pixels
    purpose          why, in 1 to 200 characters; the audit trail keeps it
    key              the secret key, `key_…`; the record names it, and this must be the same if given
    allow_modified   recover also from a picture that was changed since, as well as that goes; not with a sidecar
    output_format    png, webp or jpeg; with a sidecar png or webp
    guard            a detector, `dlsr/name`: are these faces like those that it knows? `result.guard` answers
    guard_action     refuse: what it finds strange is refused, and nothing is computed
    wait_s           seconds to wait in all; past them `TimedOut`, and the job goes on
    idempotency_key  the same key with the same request is the same job; a new one by default
    """
    fields = {"purpose": purpose, "allow_modified": allow_modified, "output_format": output_format}
    fields |= guard_fields(guard, guard_action)
    return call_for(
        context,
        "ifadit",
        "recover",
        Recovered[F],
        fields,
        {"image": image, "record": record, "sidecar": sidecar},
        key=key,
        wait_s=wait_s,
        idempotency_key=idempotency_key,
    )


def verify(
    context: Context[Any],
    image: FileInput | StoredFile,
    record: FileInput | StoredFile | None = None,
    other: FileInput | StoredFile | None = None,
    *,
    model: str = "ifadit/small",
    guard: str | None = None,
    guard_action: GuardAction = "flag",
    wait_s: float = bounds.WAIT_S,
    idempotency_key: str | None = None,
) -> Plan[Verified]:
    """Check a record against its picture (scope `verify`), or compare the faces of two pictures (scope `recover`).

    image            the picture
    record           its record, where the picture is no PNG that holds it
    other            a second picture, in place of a record: do both show the same person?
    model            `ifadit/name` or `ifadit/name@version`
    guard            a detector, `dlsr/name`: are these faces like those that it knows? `result.guard` answers
    guard_action     refuse: what it finds strange is refused, and nothing is computed
    wait_s           seconds to wait in all; past them `TimedOut`, and the job goes on
    idempotency_key  the same key with the same request is the same job; a new one by default
    """
    return call_for(
        context,
        "ifadit",
        "verify",
        Verified,
        {"model": model, **guard_fields(guard, guard_action)},
        {"image": image, "record": record, "other": other},
        key=None,
        wait_s=wait_s,
        idempotency_key=idempotency_key,
    )


class Ifadit(Calls):
    """Reversible face anonymization."""

    anonymize = blocking(anonymize)
    recover = blocking(recover)
    verify = blocking(verify)


class AsyncIfadit(AsyncCalls):
    """Reversible face anonymization."""

    anonymize = awaited(anonymize)
    recover = awaited(recover)
    verify = awaited(verify)
