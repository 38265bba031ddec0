"""iFADIT: an astronaut becomes somebody else, and the officer brings her back."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploy.local.exhibit import Exhibit, Visitors
from tenfold import AsyncClient, Problem
from tenfold.types import Box

SAME_PERSON = 0.4  # cosine from which two pictures are taken to show one person
_REACH = 0.5  # how far beyond a face's box the new face is blended in, in widths and heights of the box


async def show(visitors: Visitors, exhibit: Exhibit) -> None:
    """Anonymize with the app's key, try what must not work, recover with the officer's, compare."""
    exhibit.title = "Reversible face anonymization under a secret key"
    original = (visitors.samples / "astronaut.png").read_bytes()
    exhibit.picture("The photograph.", original)

    with exhibit.timed("anonymize"):
        made = await visitors.app.ifadit.anonymize(original)
    anonymized, record = await made.image.read(), await made.record.read()
    exhibit.picture("What the app gets: somebody else.", anonymized)
    exhibit.check("one face is found and replaced", [face.action for face in made.faces] == ["anonymized"])

    with exhibit.timed("verify (two pictures)"):
        to_anonymized = await _likeness(visitors.officer, original, anonymized)
    exhibit.check("it is another person", to_anonymized < SAME_PERSON, f"cosine {to_anonymized:.2f}")
    outside = _share_kept_outside(original, anonymized, [face.box for face in made.faces])
    exhibit.check("nothing changes outside the face", outside == 1.0, f"{outside:.2%} of the pixels there are equal")

    with exhibit.timed("verify (record)"):
        checked = await visitors.app.ifadit.verify(anonymized, record=record)
    belongs = checked.record_valid is True and checked.record_match is True
    exhibit.check("the record is valid and belongs to the picture", belongs)

    refusal = await _refusal(visitors.app, anonymized)
    exhibit.check("the app's API key cannot recover", refusal == "scope_missing", refusal)
    other_key = await visitors.custodian.keys.create(label="demo: another key")
    refusal = await _refusal(visitors.officer, anonymized, key=other_key.key_id)
    exhibit.check("another secret key cannot recover it", bool(refusal), refusal)
    with exhibit.timed("anonymize (another key)"):
        stranger = await visitors.app.ifadit.anonymize(original, key=other_key.key_id)
    exhibit.picture("The same photograph under another key.", await stranger.image.read())

    with exhibit.timed("recover"):
        recovered = await visitors.officer.ifadit.recover(anonymized, purpose="demonstration")
    back = await recovered.image.read()
    exhibit.picture("What the officer gets back: a look-alike, drawn from the identity.", back)
    to_recovered = await _likeness(visitors.officer, original, back)
    exhibit.check(
        "the recovered face is nearer to the original",
        to_recovered > to_anonymized,
        f"cosine {to_recovered:.2f} instead of {to_anonymized:.2f}",
    )


async def _likeness(officer: AsyncClient, one: bytes, other: bytes) -> float:
    """Cosine of the people in two pictures, as the service sees them."""
    compared = await officer.ifadit.verify(one, other=other)
    if compared.cosine is None:
        raise ValueError("two pictures were compared, and the answer has no cosine")
    return compared.cosine


async def _refusal(client: AsyncClient, anonymized: bytes, key: str | None = None) -> str:
    """The code of the problem that recovery meets; empty if it works."""
    try:
        await client.ifadit.recover(anonymized, purpose="demonstration", key=key)
    except Problem as problem:
        return problem.code
    return ""


def _share_kept_outside(original: bytes, changed: bytes, boxes: tuple[Box, ...] | list[Box]) -> float:
    """Share of the pixels that are equal in both pictures, among those out of reach of every box."""
    before, after = _pixels(original), _pixels(changed)
    if before.shape != after.shape:
        return 0.0
    outside = np.ones(before.shape[:2], dtype=bool)
    for box in boxes:
        left, top = box.x - _REACH * box.width, box.y - _REACH * box.height
        right, bottom = box.x + (1 + _REACH) * box.width, box.y + (1 + _REACH) * box.height
        outside[max(0, round(top)) : max(0, round(bottom)), max(0, round(left)) : max(0, round(right))] = False
    return float((before == after).all(axis=2)[outside].mean())


def _pixels(octets: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(octets)) as picture:
        return np.asarray(picture.convert("RGB"))
