"""TAD-SR: a small picture becomes four times as large in one step."""

from __future__ import annotations

from deploy.local.demos._superresolution import show_enlarging
from deploy.local.exhibit import Exhibit, Visitors


async def show(visitors: Visitors, exhibit: Exhibit) -> None:
    """Enlarge, and compare."""
    exhibit.title = "Four-fold super-resolution in one diffusion step"
    await show_enlarging("tad_sr", visitors, exhibit)
