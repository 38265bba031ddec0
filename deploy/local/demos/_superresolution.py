"""What DiT-SR and TAD-SR are shown by: a photograph is made small, and enlarged again."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploy.local.exhibit import Exhibit, Visitors

SCALE = 4
BOX = (40, 20, 552, 372)  # of the coffee: cup, spoon and table
QUALITY = 85  # of the JPEG that the small picture travels in
FAITHFUL_DB = 24.0  # PSNR of the result, made small again, to what was sent


async def show_enlarging(method: str, visitors: Visitors, exhibit: Exhibit) -> None:
    """Reduce a photograph to a quarter, let the method enlarge it, and compare."""
    with Image.open(visitors.samples / "coffee.png") as picture:
        original = picture.convert("RGB").crop(BOX)
    small = original.resize((original.width // SCALE, original.height // SCALE), Image.Resampling.BICUBIC)
    sent = _encoded(small, "JPEG", quality=QUALITY)
    with Image.open(io.BytesIO(sent)) as picture:
        seen = picture.convert("RGB")
    enlarge = getattr(visitors.app, method).upscale

    with exhibit.timed("upscale"):
        made = await enlarge(sent, seed=1)
    result = await made.image.read()
    again = await (await enlarge(sent, seed=1)).image.read()
    with Image.open(io.BytesIO(result)) as picture:
        enlarged = picture.convert("RGB")

    exhibit.picture(f"What is sent: {small.width} x {small.height} px, a JPEG.", sent)
    exhibit.picture("The same, enlarged bicubically.", _encoded(seen.resize(original.size, Image.Resampling.BICUBIC)))
    exhibit.picture(f"What comes back, {made.steps} step{'s' * (made.steps > 1)}.", result)
    exhibit.picture("The original.", _encoded(original))
    exhibit.check(
        "the picture has exactly four times the sides",
        enlarged.size == original.size,
        f"{enlarged.width} x {enlarged.height} px",
    )
    reduced = enlarged.resize(small.size, Image.Resampling.BOX)
    likeness = _psnr(_pixels(reduced), _pixels(seen))
    exhibit.check("made small again it is what was sent", likeness > FAITHFUL_DB, f"{likeness:.1f} dB")
    exhibit.check("the same seed gives the same picture", result == again)


def _encoded(picture: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def _pixels(picture: Image.Image) -> NDArray[np.float64]:
    return np.asarray(picture, dtype=np.float64)


def _psnr(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(10 * np.log10(255**2 / np.mean((one - other) ** 2)))
