"""Whole photographs: which faces are replaced, where they lie, and what a record keeps of that (ifadit.md 3.1, 6).

Positions are kept as text with six decimals, because a record is signed in canonical form; the very numbers that the
text says are used to cut out and to paste, so that recovery cuts out what anonymization pasted.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.ifadit.service import MAX_FACES, MIN_EYE_DISTANCE_PX, Box, NoFace, TooManyFaces
from shared.faces import (
    Face,
    FaceFinder,
    Matrix,
    Pixels,
    aligned_template,
    blur_region,
    paste,
    similarity,
    warp_crop,
)
from shared.problems import InvalidRequest, RecordInvalid

MASK = "mean_face"  # the model's ellipse in the aligned crop: nobody finds 68 landmarks here. Pinned with its weights
MAX_OFFSET_PX = 1e7  # beyond it a stored matrix points nowhere near a picture
SCALES = (1e-3, 1e3)  # crop pixels a photograph pixel that a stored matrix may have


@dataclass(frozen=True, eq=False)
class Place:
    """One face of a photograph. `matrix` takes photograph to crop; None: it is made unrecognizable for good."""

    box: tuple[float, float, float, float]
    """x, y, width, height in pixels of the upright photograph."""
    matrix: Matrix | None
    score: float | None

    def reported_box(self) -> Box:
        x, y, width, height = (round(value, 1) for value in self.box)
        return Box(x=x, y=y, width=max(width, 0.1), height=max(height, 0.1))


def find(pixels: Pixels, finder: FaceFinder, boxes: Sequence[Box] | None, size: int) -> list[Place]:
    """The faces of a photograph (H, W, 3) that are to be replaced, from left to right.

    boxes  faces that the caller names; None: all that are found
    size   side of the aligned crop in pixels

    Raises `NoFace`, `TooManyFaces`.
    """
    # A face that is passed over stays for all to see, so the picture is searched from all sides.
    faces = finder.find(pixels, turned="always") if boxes is None else boxes
    if not faces:
        raise NoFace("No face was found in the photograph; `faces` can name them by their boxes.")
    if len(faces) > MAX_FACES:
        raise TooManyFaces(f"There are {len(faces)} faces.", limit=MAX_FACES)
    places = [_place(face, size) if isinstance(face, Face) else _named(pixels, finder, face, size) for face in faces]
    return sorted(places, key=lambda place: (place.box[0], place.box[1]))


def _place(face: Face, size: int) -> Place:
    matrix: Matrix | None = None
    if face.eye_distance_px >= MIN_EYE_DISTANCE_PX:
        try:
            matrix = _kept(similarity(face.landmarks, aligned_template(size)))
        except (ValueError, np.linalg.LinAlgError):
            matrix = None
    return Place(face.box, matrix, face.score)


def _named(pixels: Pixels, finder: FaceFinder, box: Box, size: int) -> Place:
    """The face in a box that the caller names; without landmarks in it, its matrix is None."""
    height, width = pixels.shape[:2]
    named = (box.x, box.y, box.width, box.height)
    if not np.isfinite(named).all():
        raise InvalidRequest("A box must have finite numbers.", errors=[{"place": "faces", "message": "not finite"}])
    if not (box.x < width and box.y < height and box.x + box.width > 0 and box.y + box.height > 0):
        raise NoFace(f"The box {named} lies outside the photograph.", boxes=[box.model_dump()])
    face = finder.face_at(pixels, named)
    return Place(named, None if face is None else _place(face, size).matrix, None)


def crops(pixels: Pixels, matrices: Sequence[Matrix], size: int) -> Pixels:
    """The aligned faces, (N, size, size, 3)."""
    cut = [warp_crop(pixels, matrix, size) for matrix in matrices]
    return np.stack(cut) if cut else np.zeros((0, size, size, 3), np.uint8)


def pasted(
    pixels: Pixels, matrices: Sequence[Matrix], drawn: Pixels, mask: NDArray[np.floating], redacted: Sequence[Place]
) -> Pixels:
    """A copy of the photograph with faces (N, size, size, 3) put back under the soft mask, and others blurred for good.

    Pixels outside masks and blurred boxes stay as they are, bit for bit.
    """
    for place in redacted:
        pixels = blur_region(pixels, place.box)
    for matrix, face in zip(matrices, drawn, strict=True):
        pixels = paste(pixels, face, matrix, mask)
    return pixels


def numbered(places: Sequence[Place]) -> dict[int, Matrix]:
    """The matrices of the faces that can be recovered, by their numbers in the record."""
    return {number: place.matrix for number, place in enumerate(places) if place.matrix is not None}


def entries(
    places: Sequence[Place], nonces: Sequence[str], originals: Mapping[int, str] | None = None
) -> list[dict[str, Any]]:
    """What the record keeps of the faces: neither who they are nor anything secret.

    nonces     of the faces that were anonymized, in order
    originals  SHA-256 of each one's encrypted original, by number, where a sidecar holds them
    """
    kept, next_nonce = [], iter(nonces)
    for number, place in enumerate(places):
        entry: dict[str, Any] = {"i": number, "box": [_text(value) for value in place.box]}
        if place.matrix is None:
            entry["mode"] = "redacted_irreversibly"
        else:
            entry |= {"mode": "parametric", "mask": MASK, "nonce": next(next_nonce)}
            entry |= {"mode": "forensic", "sidecar": originals[number]} if originals else {}
            entry["matrix"] = [_text(value) for value in place.matrix.ravel()]
        kept.append(entry)
    return kept


def from_entries(faces: Sequence[Mapping[str, Any]]) -> list[Place]:
    """The faces of a signed record, in its order.

    Raises `RecordInvalid` for what no anonymization writes: a signature tells who wrote a record, not that it is sane.
    """
    if not isinstance(faces, list) or not 1 <= len(faces) <= MAX_FACES:
        raise RecordInvalid
    try:
        return [_read(entry) for entry in faces]
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise RecordInvalid from error


def _read(entry: Mapping[str, Any]) -> Place:
    x, y, width, height = (float(text) for text in entry["box"])
    if not all(map(np.isfinite, (x, y, width, height))):
        raise ValueError("a box is not finite")
    matrix: Matrix | None = None
    if entry["mode"] in ("parametric", "forensic"):
        if entry["mask"] != MASK:
            raise ValueError("a face lies under an unknown mask")
        matrix = np.array([float(text) for text in entry["matrix"]]).reshape(2, 3)
        _check_matrix(matrix)
    elif entry["mode"] != "redacted_irreversibly":
        raise ValueError("a face was treated in an unknown way")
    return Place((x, y, width, height), matrix, None)


def _check_matrix(matrix: Matrix) -> None:
    """Raise `ValueError` unless the matrix is a similarity that leads into some picture."""
    (a, b, _), (c, d, _) = matrix
    scale = float(np.hypot(a, c))
    if not np.isfinite(matrix).all() or np.abs(matrix[:, 2]).max() > MAX_OFFSET_PX:
        raise ValueError("a matrix is out of range")
    if not SCALES[0] <= scale <= SCALES[1] or abs(a - d) + abs(b + c) > 1e-4 * scale + 4e-6:
        raise ValueError("a matrix is no similarity")


def _kept(matrix: Matrix) -> Matrix:
    """The matrix as its text in the record says it. Raises `ValueError` for one that cannot be kept."""
    kept = np.array([float(_text(value)) for value in matrix.ravel()]).reshape(2, 3)
    _check_matrix(kept)
    return kept


def _text(value: float) -> str:
    return f"{value:.6f}"


def split(items: Sequence[Any], counts: Sequence[int]) -> list[Sequence[Any]]:
    """`items` cut into runs of these lengths."""
    ends = list(itertools.accumulate(counts))
    return [items[end - count : end] for count, end in zip(counts, ends, strict=True)]
