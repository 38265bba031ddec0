"""Sidecars: what they keep, that they give it back to the bit, and that nothing else opens or passes for one."""

from __future__ import annotations

import json
import secrets
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.ifadit import forensic
from services.ifadit.service import MAX_SIDECAR_BYTES, SIDECAR_MAGIC, SidecarTooLarge
from shared.faces import Matrix, Pixels, mask_support, paste
from shared.images import pixel_sha256
from shared.keyderivation import forensic_aad, wrap
from shared.leases import WRAPPED_DEK_BYTES
from shared.problems import SidecarInvalid

RECORD_ID = "rec_0123456789abcdef0123456789"
WRAPPED = bytes(range(WRAPPED_DEK_BYTES))
SIZE = 64


def matrix(scale: float, x: float, y: float) -> Matrix:
    """A crop of SIZE px whose corner lies at (x, y), `scale` crop pixels a pixel of the photograph."""
    return np.array([[scale, 0, -scale * x], [0, scale, -scale * y]])


@pytest.fixture(scope="module")
def mask() -> NDArray[np.float64]:
    at = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    distance = np.hypot(at, at[:, None])
    return np.clip((0.45 - distance) / 0.1, 0, 1)


@pytest.fixture(scope="module")
def photo() -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)


class Kept:
    """A photograph whose faces were drawn over, and the sidecar of its originals."""

    def __init__(self, photo: Pixels, matrices: dict[int, Matrix], mask: NDArray[np.float64]) -> None:
        self.photo, self.anonymized, self.dek = photo, photo, secrets.token_bytes(32)
        for of_face in matrices.values():
            self.anonymized = paste(self.anonymized, np.full((SIZE, SIZE, 3), 77, np.uint8), of_face, mask)
        self.sha256 = pixel_sha256(self.anonymized)
        self.originals = forensic.encrypted(
            photo, matrices, mask, dek=self.dek, record_id=RECORD_ID, pixel_sha256=self.sha256
        )
        self.sidecar = forensic.written(RECORD_ID, WRAPPED, self.originals)
        digests = forensic.digests(self.originals)
        redacted = {"i": 9, "mode": "redacted_irreversibly"}
        faces = [{"i": i, "mode": "forensic", "sidecar": digest} for i, digest in digests.items()]
        self.record: dict[str, Any] = {"record_id": RECORD_ID, "faces": [*faces, redacted]}

    def restored(self, **other: Any) -> Pixels:
        read = forensic.read(self.sidecar, self.record)
        return forensic.restored(self.anonymized, read, **{"dek": self.dek, "pixel_sha256": self.sha256, **other})


@pytest.fixture(scope="module")
def kept(photo: Pixels, mask: NDArray[np.float64]) -> Kept:
    return Kept(photo, {0: matrix(1.4, 10, 12), 2: matrix(1.1, 55, 20)}, mask)


def test_the_photograph_comes_back_to_the_bit(kept: Kept) -> None:
    assert not np.array_equal(kept.anonymized, kept.photo)
    assert np.array_equal(kept.restored(), kept.photo)


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    scale=st.floats(0.4, 8),
    turn=st.floats(-3.2, 3.2),
    x=st.floats(-80, 150),
    y=st.floats(-80, 120),
)
def test_wherever_the_face_lies(
    photo: Pixels, mask: NDArray[np.float64], scale: float, turn: float, x: float, y: float
) -> None:
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    linear = np.array([[c, s], [-s, c]])
    of_face = np.column_stack([linear, -linear @ (x, y)])
    kept = Kept(photo, {0: of_face}, mask)
    assert np.array_equal(kept.restored(), photo)


def test_it_keeps_no_pixel_that_the_anonymized_picture_shows(photo: Pixels, mask: NDArray[np.float64]) -> None:
    support = mask_support(photo.shape[:2], matrix(1.4, 10, 12), mask)
    left, top, original = forensic.crop(photo, support)
    assert original.alpha is not None
    height, width = original.alpha.shape
    assert (height, width) < photo.shape[:2]
    assert np.array_equal(original.alpha == 255, support[top : top + height, left : left + width])
    assert support.sum() == (original.alpha == 255).sum()
    assert not original.pixels[original.alpha == 0].any()
    assert (original.alpha == 0).any()


class TestWhatDoesNotOpen:
    def test_another_key_another_picture_another_record(self, kept: Kept) -> None:
        for other in ({"dek": secrets.token_bytes(32)}, {"pixel_sha256": "0" * 64}):
            with pytest.raises(SidecarInvalid):
                kept.restored(**other)
        with pytest.raises(SidecarInvalid):
            forensic.read(kept.sidecar, {**kept.record, "record_id": "rec_another"})

    @settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_an_altered_bit_is_refused_before_or_by_the_wrapped_key(self, kept: Kept, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(kept.sidecar) - 1))
        altered = bytearray(kept.sidecar)
        altered[at] ^= 1 << data.draw(st.integers(0, 7))
        try:
            read = forensic.read(bytes(altered), kept.record)
        except SidecarInvalid:
            return
        # Only the wrapped data key may differ and still be read: custody refuses that one. Hex has two cases.
        assert dict(read.originals) == kept.originals
        dek = f'"dek":"{WRAPPED.hex()}"'.encode()
        start = kept.sidecar.index(dek)
        assert start <= at < start + len(dek)

    @settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
    @given(cut=st.integers(0, 400), more=st.binary(max_size=9))
    def test_what_is_cut_off_or_has_a_tail(self, kept: Kept, cut: int, more: bytes) -> None:
        for broken in (kept.sidecar[:cut], kept.sidecar[: -cut - 1], kept.sidecar + more + b"\0", more):
            with pytest.raises(SidecarInvalid):
                forensic.read(broken, kept.record)

    @pytest.mark.parametrize(
        "change",
        [
            {"v": 2},
            {"alg": "none"},
            {"faces": []},
            {"faces": {}},
            {"faces": [{"i": 0, "bytes": -1}]},
            {"faces": [{"i": 0, "bytes": 10**12}]},
            {"dek": "00"},
            {"dek": None},
        ],
    )
    def test_a_header_of_another_kind(self, kept: Kept, change: dict[str, Any]) -> None:
        start = len(SIDECAR_MAGIC) + 4
        (length,) = struct.unpack(">I", kept.sidecar[len(SIDECAR_MAGIC) : start])
        header = json.dumps({**json.loads(kept.sidecar[start : start + length]), **change}).encode()
        forged = SIDECAR_MAGIC + struct.pack(">I", len(header)) + header + kept.sidecar[start + length :]
        with pytest.raises(SidecarInvalid):
            forensic.read(forged, kept.record)

    @pytest.mark.parametrize(
        "faces", [None, [], [{"i": 0, "mode": "parametric"}], [7], [{"i": [], "mode": "forensic"}]]
    )
    def test_a_record_that_promises_something_else(self, kept: Kept, faces: Any) -> None:
        with pytest.raises(SidecarInvalid):
            forensic.read(kept.sidecar, {**kept.record, "faces": faces})

    def test_two_faces_that_changed_places(self, kept: Kept) -> None:
        first, second = kept.originals.values()
        swapped = {0: second, 2: first}
        faces = [{"i": i, "mode": "forensic", "sidecar": d} for i, d in forensic.digests(swapped).items()]
        read = forensic.read(forensic.written(RECORD_ID, WRAPPED, swapped), {**kept.record, "faces": faces})
        with pytest.raises(SidecarInvalid):  # even with a record that allows it: the number is authenticated
            forensic.restored(kept.anonymized, read, dek=kept.dek, pixel_sha256=kept.sha256)

    @pytest.mark.parametrize("plaintext", [b"", bytes(40), bytes(40) + b"no picture", bytes(40) + b"\x89PNG\r\n\x1a\n"])
    def test_what_was_encrypted_but_is_no_original(self, kept: Kept, plaintext: bytes) -> None:
        nonce = secrets.token_bytes(12)
        aad = forensic_aad(record_id=RECORD_ID, face=0, pixel_sha256=kept.sha256)
        sidecar = forensic.Sidecar(RECORD_ID, WRAPPED, {0: nonce + wrap(kept.dek, nonce, plaintext, aad)})
        with pytest.raises(SidecarInvalid):
            forensic.restored(kept.anonymized, sidecar, dek=kept.dek, pixel_sha256=kept.sha256)

    def test_an_original_that_lies_outside_the_picture(self, kept: Kept) -> None:
        small = kept.anonymized[:30, :30]
        with pytest.raises(SidecarInvalid):
            forensic.restored(small, forensic.read(kept.sidecar, kept.record), dek=kept.dek, pixel_sha256=kept.sha256)


def test_one_that_recovery_would_not_take_back_is_not_made() -> None:
    with pytest.raises(SidecarTooLarge):
        forensic.written(RECORD_ID, WRAPPED, {0: bytes(MAX_SIDECAR_BYTES)})
