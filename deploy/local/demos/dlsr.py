"""DLSR: a detector is fitted on pieces of a lawn, and finds what is no lawn."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploy.local.exhibit import Exhibit, Visitors
from tenfold import Problem

FIT, ASKED, SIDE = 240, 40, 96
GUARD = "dlsr/small-faces"
_SOUGHT_S = 600.0  # a trainer has one thread, on a machine that may be busy


async def show(visitors: Visitors, exhibit: Exhibit) -> None:
    """Fit on pieces of a lawn, score other pieces of it, and of other things."""
    exhibit.title = "Out-of-distribution detection: is this picture like those?"
    rng = np.random.default_rng(0)
    lawn = _texture("grass.png")
    exhibit.picture("The lawn, whose pieces are what is usual.", _png(lawn))

    with exhibit.timed("fit"):
        fitted = await visitors.app.dlsr.fit(_zipped(_pieces(lawn, FIT, rng)), name="lawn", seed=1, wait_s=_SOUGHT_S)
    exhibit.check("the pictures are split to fit, to stop and to calibrate", fitted.pictures.different == FIT)

    usual = list(_pieces(lawn, ASKED, rng))
    with exhibit.timed("score (other pieces)"):
        found = await visitors.app.dlsr.score(usual, model=fitted.model)
    alarms = sum(bool(one.is_ood) for one in found.results or ())
    exhibit.check("other pieces of the lawn are usual", alarms <= ASKED // 4, f"{alarms} of {ASKED} are called strange")

    strange = [piece for name in ("brick.png", "gravel.png") for piece in _pieces(_texture(name), ASKED // 2, rng)]
    with exhibit.timed("score (bricks and gravel)"):
        found = await visitors.app.dlsr.score(strange, model=fitted.model)
    caught = sum(bool(one.is_ood) for one in found.results or ())
    exhibit.picture("A piece of what is strange.", strange[0])
    exhibit.check("bricks and gravel are not", caught >= 0.9 * ASKED, f"{caught} of {ASKED} are called strange")

    with exhibit.timed("compare"):
        drifted = await visitors.app.dlsr.compare([*usual[: ASKED // 2], *strange[:ASKED]], model=fitted.model)
    exhibit.check("together they are a drift", drifted.is_drift, f"p = {drifted.p_value:.1g}")

    coffee, astronaut = ((visitors.samples / f"{name}.png").read_bytes() for name in ("coffee", "astronaut"))
    with exhibit.timed("ifadit/anonymize (guarded)"):
        made = await visitors.app.ifadit.anonymize(astronaut, guard=GUARD)
    p_value = made.guard.p_value if made.guard else None
    is_usual = made.guard is not None and made.guard.is_ood is False
    exhibit.check("the face service's guard knows a face", is_usual, f"p = {p_value}")
    refusal = ""
    try:
        await visitors.app.ifadit.anonymize(coffee, guard=GUARD, guard_action="refuse")
    except Problem as problem:
        refusal = problem.code
    exhibit.check("and refuses a cup of coffee", refusal == "out_of_distribution", refusal)


def _texture(name: str) -> NDArray[np.uint8]:
    """A picture that the package scikit-image brings. Raises `ValueError` where it does not."""
    package = find_spec("skimage")
    for place in (package.submodule_search_locations or []) if package else []:
        path = Path(place, "data", name)
        if path.is_file():
            with Image.open(path) as picture:
                return np.asarray(picture.convert("RGB"))
    raise ValueError(f"scikit-image does not bring {name}")


def _pieces(picture: NDArray[np.uint8], count: int, rng: np.random.Generator) -> Iterator[bytes]:
    height, width = picture.shape[:2]
    for _ in range(count):
        top, left = int(rng.integers(height - SIDE)), int(rng.integers(width - SIDE))
        yield _png(picture[top : top + SIDE, left : left + SIDE])


def _png(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _zipped(pictures: Iterator[bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number, picture in enumerate(pictures):
            archive.writestr(f"{number:04}.png", picture)
    return out.getvalue()
