"""DiT-SR: photographs four times as large, in a few steps of a diffusion transformer."""

from __future__ import annotations

from typing import Any

from tenfold import _constants as bounds
from tenfold._context import Context, F
from tenfold._effects import Plan
from tenfold._inputs import FileInput
from tenfold._operations import GuardAction, call_for
from tenfold._surface import AsyncCalls, Calls, awaited, blocking
from tenfold.methods._restoration import OutputFormat, Restored, Upscaled
from tenfold.types import StoredFile


def upscale(
    context: Context[F],
    image: FileInput | StoredFile | None = None,
    archive: FileInput | StoredFile | None = None,
    *,
    steps: int | None = None,
    seed: int | None = None,
    output_format: OutputFormat = "png",
    model: str = "dit-sr/small",
    guard: str | None = None,
    guard_action: GuardAction = "flag",
    wait_s: float = bounds.WAIT_S,
    idempotency_key: str | None = None,
) -> Plan[Upscaled[F]]:
    """Enlarge a photograph four times, and remove blur, noise and JPEG artifacts on the way. Needs the scope `use`.

    image            the photograph
    archive          or a zip or tar of photographs
    steps            denoising steps for each tile, 1..15; the model's own number by default
    seed             same picture and seed, same result; drawn by default
    output_format    png and webp are lossless
    model            `dit-sr/name` or `dit-sr/name@version`
    guard            a detector, `dlsr/name`: is this picture like those that it knows? `result.guard` answers
    guard_action     refuse: what it finds strange is refused, and nothing is computed
    wait_s           seconds to wait in all; past them `TimedOut`, and the job goes on
    idempotency_key  the same key with the same request is the same job; a new one by default
    """
    fields: dict[str, Any] = {"steps": steps, "seed": seed, "output_format": output_format, "model": model}
    fields |= {"guard": guard, "guard_action": guard_action}
    return call_for(
        context,
        "dit-sr",
        "upscale",
        Upscaled[F],
        fields,
        {"image": image, "archive": archive},
        key=None,
        wait_s=wait_s,
        idempotency_key=idempotency_key,
    )


def restore(
    context: Context[F],
    image: FileInput | StoredFile,
    *,
    steps: int | None = None,
    seed: int | None = None,
    output_format: OutputFormat = "png",
    model: str = "dit-sr/small",
    guard: str | None = None,
    guard_action: GuardAction = "flag",
    wait_s: float = bounds.WAIT_S,
    idempotency_key: str | None = None,
) -> Plan[Restored[F]]:
    """Restore a portrait at the size it has. Needs the scope `use`.

    image            the portrait
    steps            denoising steps for each tile, 1..15; the model's own number by default
    seed             same picture and seed, same result; drawn by default
    output_format    png and webp are lossless
    model            `dit-sr/name` or `dit-sr/name@version`
    guard            a detector, `dlsr/name`: is this picture like those that it knows? `result.guard` answers
    guard_action     refuse: what it finds strange is refused, and nothing is computed
    wait_s           seconds to wait in all; past them `TimedOut`, and the job goes on
    idempotency_key  the same key with the same request is the same job; a new one by default
    """
    fields: dict[str, Any] = {"steps": steps, "seed": seed, "output_format": output_format, "model": model}
    fields |= {"guard": guard, "guard_action": guard_action}
    return call_for(
        context,
        "dit-sr",
        "restore",
        Restored[F],
        fields,
        {"image": image},
        key=None,
        wait_s=wait_s,
        idempotency_key=idempotency_key,
    )


class DitSr(Calls):
    """Four-fold super-resolution by a diffusion transformer."""

    upscale = blocking(upscale)
    restore = blocking(restore)


class AsyncDitSr(AsyncCalls):
    """Four-fold super-resolution by a diffusion transformer."""

    upscale = awaited(upscale)
    restore = awaited(restore)
