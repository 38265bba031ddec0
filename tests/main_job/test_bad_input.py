"""What is no proper photograph, or no proper request, gets its answer and leaves nothing behind."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tests.main_job.conftest import Installation, png

ASTRONAUT = skimage.data.astronaut()


def saved(pixels: Any, kind: str, mode: str | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 px in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def rotated() -> bytes:
    """The photograph lying on its side, with the EXIF note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(np.ascontiguousarray(np.rot90(ASTRONAUT, 1)), "JPEG", exif=exif, quality=95)


def sixteen_bit() -> bytes:
    gray = ASTRONAUT.mean(2).astype(np.uint16) * 257
    return saved(gray, "PNG")


def animated() -> bytes:
    stream = io.BytesIO()
    frames = [Image.fromarray(np.full((64, 64, 3), value, np.uint8)) for value in (0, 255)]
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:])
    return stream.getvalue()


REFUSED: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "empty": (lambda: b"", 422, "image_unreadable"),
    "noise": (lambda: bytes(range(256)) * 40, 422, "image_unreadable"),
    "pdf": (lambda: b"%PDF-1.7\n" + bytes(200), 415, "unsupported_media_type"),
    "truncated png": (lambda: png(ASTRONAUT)[:20_000], 422, "image_unreadable"),
    "truncated jpeg": (lambda: saved(ASTRONAUT, "JPEG")[:9_000], 422, "image_unreadable"),
    "bomb": (bomb, 413, "image_too_large"),
    "one pixel": (lambda: png(np.zeros((1, 1, 3), np.uint8)), 422, "no_face"),
    "huge": (lambda: png(np.zeros((5_100, 5_000, 3), np.uint8)), 413, "photograph_too_large"),
    "animated": (animated, 422, "image_animated"),
    "no face": (lambda: png(skimage.data.coffee()), 422, "no_face"),
}

TAKEN: dict[str, Callable[[], bytes]] = {
    "16 bit": sixteen_bit,
    "CMYK": lambda: saved(ASTRONAUT, "JPEG", "CMYK"),
    "gray": lambda: saved(ASTRONAUT, "PNG", "L"),
    "EXIF-rotated": rotated,
    "alpha": lambda: saved(ASTRONAUT, "PNG", "RGBA"),
    "WebP": lambda: saved(ASTRONAUT, "WEBP"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_photograph_is_refused_and_leaves_nothing(installed: Installation, name: str) -> None:
    make, status, code = REFUSED[name]
    before = installed.files()
    response = installed.anonymize(make())
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert not installed.left_behind(before)


@pytest.mark.parametrize("name", TAKEN)
def test_an_unusual_photograph_has_its_defined_result(installed: Installation, name: str) -> None:
    response = installed.anonymize(TAKEN[name]())
    assert response.status_code == 200, response.text
    image = response.json()["result"]["image"]
    assert (image["width"], image["height"]) == (512, 512)
    with Image.open(io.BytesIO(installed.download(image))) as decoded:
        assert decoded.mode == ("RGBA" if name == "alpha" else "RGB")


class TestRequests:
    @pytest.mark.parametrize(
        ("kwargs", "status", "code"),
        [
            ({"data": {"linkage": "per_image"}, "files": {"x": b"1"}}, 422, "invalid_request"),
            ({"files": {"image": png(ASTRONAUT[:64, :64]), "picture": b"1"}}, 422, "invalid_request"),
            ({"json": {}}, 422, "invalid_request"),
            ({"json": {"image": "astronaut.png"}}, 422, "invalid_request"),
            ({"json": {"image": {"file": "file_" + "0" * 26}}}, 404, "file_not_found"),
            ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "bad_syntax"),
            ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media_type"),
            ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=y"}}, 400, "bad_syntax"),
            ({"files": {"image": b"1"}, "headers": {"Accept": "text/html"}}, 406, "not_acceptable"),
        ],
    )
    def test_a_bad_request_is_told_what_is_wrong(
        self, installed: Installation, kwargs: dict[str, Any], status: int, code: str
    ) -> None:
        before = installed.files()
        response = installed.post("/v1/ifadit/anonymize", **kwargs)
        assert (response.status_code, response.json()["code"]) == (status, code), response.text
        assert response.json()["request_id"]
        assert not installed.left_behind(before)

    @pytest.mark.parametrize(
        ("model", "status", "code"),
        [
            ("ifadit/unknown", 404, "model_not_found"),
            ("other/small", 422, "invalid_request"),
            ("small", 422, "invalid_request"),
            ("ifadit/paper", 409, "weights_missing"),
        ],
    )
    def test_a_model_that_cannot_be_had(
        self, installed: Installation, astronaut: bytes, model: str, status: int, code: str
    ) -> None:
        response = installed.anonymize(astronaut, model=model)
        assert (response.status_code, response.json()["code"]) == (status, code), response.text

    def test_a_missing_and_a_foreign_api_key(self, installed: Installation) -> None:
        missing = installed.http.post("/v1/ifadit/anonymize")
        assert (missing.status_code, missing.json()["code"]) == (401, "api_key_missing")
        foreign = installed.http.post(
            "/v1/ifadit/anonymize", headers={"Authorization": "Bearer tf_aaaaaaaa_" + "b" * 43}
        )
        assert (foreign.status_code, foreign.json()["code"]) == (401, "api_key_invalid")
        assert foreign.headers["www-authenticate"].startswith("Bearer")

    def test_an_oversized_body(self, installed: Installation) -> None:
        response = installed.post("/v1/ifadit/anonymize", files={"image": bytes(65 * 2**20)})
        assert (response.status_code, response.json()["code"]) == (413, "body_too_large")

    def test_a_forged_internal_header_changes_nothing(self, installed: Installation, astronaut: bytes) -> None:
        response = installed.anonymize(astronaut, headers={"x-tenfold-context": "e30.x"})
        assert response.status_code == 200
