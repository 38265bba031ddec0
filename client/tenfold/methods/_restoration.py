"""Results that both super-resolution methods give."""

from __future__ import annotations

from typing import Generic, Literal

from tenfold._context import F
from tenfold.types import Result

OutputFormat = Literal["png", "webp", "jpeg"]


class Upscaled(Result, Generic[F]):
    """An enlarged picture, or an archive of them, and what it takes to get it again."""

    image: F | None
    """Four times as wide and as high; gray and alpha as they were. None for an archive."""
    archive: F | None
    """For an archive: a zip with the pictures and `results.jsonl`, one line each."""
    model: str
    """What enlarged it, `method/name@version`."""
    seed: int
    """Same picture, model and seed, same result."""
    steps: int
    """Evaluations of the denoiser for each tile."""
    tiles: int | None
    """How many tiles the picture was taken apart into. None for an archive."""


class Restored(Result, Generic[F]):
    """A restored picture, and what it takes to get it again."""

    image: F
    """As large as it was; gray and alpha as they were."""
    model: str
    """What restored it, `method/name@version`."""
    seed: int
    """Same picture, model and seed, same result."""
    steps: int
    """Evaluations of the denoiser for each tile."""
    tiles: int
    """How many tiles the picture was taken apart into."""
