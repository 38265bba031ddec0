"""Sidecars: the original pixels of a picture's faces, encrypted, for recovery bit by bit (key-custody.md 6.1).

    sidecar  = "IFX1" | length of the header (4 bytes, big-endian) | header (JSON) | original_0 | original_1 | …
    header   = {"v": 1, "alg": "A256GCM", "record_id", "dek": the wrapped data key in hex, "faces": [{"i", "bytes"}, …]}
    original = nonce (12 bytes) | AES-256-GCM(data key, nonce, plaintext, aad = record | face | anonymized pixels)
    plaintext = left, top (4 bytes each, big-endian) | SHA-256 of the crop's samples | PNG, RGBA

A crop is the bounding rectangle of what its face's mask reaches. Alpha is 255 where the mask may have changed a pixel;
elsewhere the crop is empty: nothing is kept that the anonymized picture shows anyway. The record names the SHA-256 of
each original, so a sidecar that was altered is refused before anybody asks custody for its key.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.ifadit.service import MAX_FACES, MAX_SIDECAR_BYTES, SIDECAR_MAGIC, SidecarTooLarge
from shared import images
from shared.faces import Matrix, Pixels, mask_support
from shared.images import Picture
from shared.keyderivation import NONCE_BYTES, Octets, WrongKey, forensic_aad, unwrap, wrap
from shared.leases import WRAPPED_DEK_BYTES
from shared.problems import ImageTooLarge, ImageUnreadable, SidecarInvalid

VERSION = 1
ALGORITHM = "A256GCM"
_HEADER_MAX_BYTES = 64 * 1024  # 64 faces take 3 KB
_PLACE = struct.Struct(">II32s")


@dataclass(frozen=True)
class Sidecar:
    """A sidecar that was read. Nothing of it is proven before it was opened."""

    record_id: str
    wrapped_dek: bytes
    originals: Mapping[int, bytes]
    """By the number of the face in the record; encrypted."""


def crop(pixels: Pixels, support: NDArray[np.bool_]) -> tuple[int, int, Picture]:
    """Left, top and crop of the pixels (H, W, 3) that `support` (H, W) marks; one empty pixel where it marks none."""
    rows, columns = np.flatnonzero(support.any(1)), np.flatnonzero(support.any(0))
    top, bottom = (rows[0], rows[-1] + 1) if rows.size else (0, 1)
    left, right = (columns[0], columns[-1] + 1) if columns.size else (0, 1)
    kept = support[top:bottom, left:right]
    alpha = np.where(kept, 255, 0).astype(np.uint8)
    return int(left), int(top), Picture(np.where(kept[..., None], pixels[top:bottom, left:right], 0), alpha)


def encrypted(
    pixels: Pixels,
    matrices: Mapping[int, Matrix],
    mask: NDArray[np.floating],
    *,
    dek: Octets,
    record_id: str,
    pixel_sha256: str,
) -> dict[int, bytes]:
    """The originals of faces, by their numbers in the record.

    pixels        (H, W, 3)  the photograph before faces were drawn over
    matrices      photograph to crop, by number of the face
    mask          (S, S)  the soft mask that the faces are pasted under
    pixel_sha256  of the anonymized pixels, in hex
    """
    found = {}
    for number, matrix in matrices.items():
        left, top, original = crop(pixels, mask_support(pixels.shape[:2], matrix, mask))
        plaintext = _PLACE.pack(left, top, _samples(original)) + images.encode(original, "image/png")
        nonce = secrets.token_bytes(NONCE_BYTES)
        aad = forensic_aad(record_id=record_id, face=number, pixel_sha256=pixel_sha256)
        found[number] = nonce + wrap(dek, nonce, plaintext, aad)
    return found


def digests(originals: Mapping[int, bytes]) -> dict[int, str]:
    """What the record says of each original: SHA-256 of its octets as they lie in the sidecar."""
    return {number: hashlib.sha256(octets).hexdigest() for number, octets in originals.items()}


def written(record_id: str, wrapped_dek: bytes, originals: Mapping[int, bytes]) -> bytes:
    """The sidecar's octets. Raises `SidecarTooLarge` for one that recovery would not take back."""
    header = {
        "v": VERSION,
        "alg": ALGORITHM,
        "record_id": record_id,
        "dek": wrapped_dek.hex(),
        "faces": [{"i": number, "bytes": len(octets)} for number, octets in originals.items()],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    sidecar = b"".join([SIDECAR_MAGIC, struct.pack(">I", len(text)), text, *originals.values()])
    if len(sidecar) > MAX_SIDECAR_BYTES:
        raise SidecarTooLarge(
            f"The originals would take {len(sidecar)} bytes; without `mode=forensic` nothing is kept.",
            limit_bytes=MAX_SIDECAR_BYTES,
        )
    return sidecar


def read(sidecar: bytes, record: Mapping[str, Any]) -> Sidecar:
    """A sidecar that has what its record promises. Raises `SidecarInvalid`."""
    try:
        found = _parsed(sidecar)
        promised = {face["i"]: face["sidecar"] for face in record["faces"] if face.get("mode") == "forensic"}
        if not promised or found.record_id != record["record_id"] or digests(found.originals) != promised:
            raise SidecarInvalid
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise SidecarInvalid from error
    return found


def restored(pixels: Pixels, sidecar: Sidecar, *, dek: Octets, pixel_sha256: str) -> Pixels:
    """A copy of the anonymized pixels (H, W, 3) with the originals in their places. Raises `SidecarInvalid`."""
    out = pixels.copy()
    for number, octets in sidecar.originals.items():
        aad = forensic_aad(record_id=sidecar.record_id, face=number, pixel_sha256=pixel_sha256)
        try:
            plaintext = bytes(unwrap(dek, octets[:NONCE_BYTES], octets[NONCE_BYTES:], aad))
            left, top, promised = _PLACE.unpack_from(plaintext)
            original = images.decode(io.BytesIO(plaintext[_PLACE.size :]))
        except (WrongKey, struct.error, ImageUnreadable, ImageTooLarge) as error:
            raise SidecarInvalid from error
        height, width = original.pixels.shape[:2]
        there = out[top : top + height, left : left + width]
        if original.alpha is None or _samples(original) != promised or there.shape != original.pixels.shape:
            raise SidecarInvalid
        there[original.alpha == 255] = original.pixels[original.alpha == 255]
    return out


def _parsed(sidecar: bytes) -> Sidecar:
    start = len(SIDECAR_MAGIC) + 4
    (length,) = struct.unpack(">I", sidecar[len(SIDECAR_MAGIC) : start])
    if not sidecar.startswith(SIDECAR_MAGIC) or not 0 < length <= _HEADER_MAX_BYTES:
        raise ValueError("not a sidecar")
    header = json.loads(sidecar[start : start + length])
    faces: Sequence[Mapping[str, Any]] = header["faces"]
    if (header["v"], header["alg"]) != (VERSION, ALGORITHM) or not 1 <= len(faces) <= MAX_FACES:
        raise ValueError("a sidecar of another kind")
    at, originals = start + length, {}
    for face in faces:
        originals[int(face["i"])] = sidecar[at : at + face["bytes"]]
        at += face["bytes"]
    wrapped = bytes.fromhex(header["dek"])
    if at != len(sidecar) or len(originals) != len(faces) or len(wrapped) != WRAPPED_DEK_BYTES:
        raise ValueError("a sidecar of another length")
    return Sidecar(str(header["record_id"]), wrapped, originals)


def _samples(original: Picture) -> bytes:
    """SHA-256 over size and samples, RGB and then alpha."""
    height, width = original.pixels.shape[:2]
    alpha = original.alpha if original.alpha is not None else np.zeros((0, 0), np.uint8)
    return hashlib.sha256(struct.pack(">II", width, height) + original.pixels.tobytes() + alpha.tobytes()).digest()
