"""DiT-SR: a small picture becomes four times as large in a few diffusion steps."""

from __future__ import annotations

from deploy.local.demos._superresolution import show_enlarging
from deploy.local.exhibit import Exhibit, Visitors


async def show(visitors: Visitors, exhibit: Exhibit) -> None:
    """Enlarge, and compare."""
    exhibit.title = "Four-fold super-resolution by a diffusion transformer"
    await show_enlarging("dit_sr", visitors, exhibit)
