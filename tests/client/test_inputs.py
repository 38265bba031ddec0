"""What may be given where a file is wanted."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold._inputs import upload_of


def content(value: Any) -> bytes:
    with upload_of(value).open() as file:
        return file.read()


def pixels(value: Any) -> PIL.Image.Image:
    with PIL.Image.open(io.BytesIO(content(value))) as picture:
        picture.load()
        return picture


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_opened_anew_for_every_try(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "Anna Example.JPG"
    path.write_bytes(b"abc")
    upload = upload_of(kind(path))
    for _ in range(2):
        with upload.open() as file:
            assert file.read() == b"abc"
    assert upload.media_type == "image/jpeg"


def test_the_name_of_a_file_stays_with_the_caller() -> None:
    assert upload_of("Anna Example.JPG").suffix == ".jpg"
    assert upload_of("Anna.Example").suffix == ""


def test_a_path_that_is_not_there_is_found_out_at_opening() -> None:
    with pytest.raises(FileNotFoundError):
        content("nowhere.png")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_sent_as_they_were_when_given(kind: Any) -> None:
    given = bytearray(b"abc")
    upload = upload_of(kind(given))
    given[0] = 0
    with upload.open() as file:
        assert file.read() == b"abc"


@given(data=st.binary(max_size=100), start=st.integers(0, 120), size=st.integers(1, 50))
def test_an_open_file_is_sent_from_where_it_stood_every_time(data: bytes, start: int, size: int) -> None:
    given = io.BytesIO(data)
    given.seek(start)
    upload = upload_of(given)
    for _ in range(2):
        with upload.open() as file:
            assert file.seek(0, os.SEEK_END) == len(data[start:])
            assert file.seek(0) == file.tell() == 0
            assert b"".join(iter(lambda: file.read(size), b"")) == data[start:]
    assert not given.closed


def test_a_pipe_can_be_sent_twice() -> None:
    end, begin = os.pipe()
    os.write(begin, b"abc")
    os.close(begin)
    with os.fdopen(end, "rb", buffering=0) as pipe:
        upload = upload_of(pipe)
        for _ in range(2):
            with upload.open() as file:
                assert file.read() == b"abc"


def test_a_thing_that_can_only_be_read_is_enough() -> None:
    class Source:
        def __init__(self) -> None:
            self.left = [b"abc", b""]

        def read(self, size: int = -1) -> bytes:
            return self.left.pop(0)

    assert content(Source()) == b"abc"


def test_a_file_in_text_mode_is_refused() -> None:
    with pytest.raises(TypeError, match="binary mode"):
        upload_of(io.StringIO("abc"))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, 3, object(), {"file": "file_1"}])
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be sent as a file"):
        upload_of(value)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_the_first_bytes_of_a_picture_tell_its_type(form: str) -> None:
    out = io.BytesIO()
    PIL.Image.new("RGB", (2, 2)).save(out, form)
    assert upload_of(out.getvalue()).media_type == f"image/{form.lower()}"


def test_other_bytes_are_only_bytes_and_the_caller_knows_best() -> None:
    assert upload_of(b"abc").media_type == "application/octet-stream"
    assert upload_of(b"abc", "application/zip").media_type == "application/zip"


class TestPictures:
    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr", "F"])
    def test_any_mode_of_pillow_arrives(self, mode: str) -> None:
        picture = PIL.Image.new(mode, (3, 2))
        assert pixels(picture).size == (3, 2)

    def test_the_copy_is_lossless(self) -> None:
        values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
        np.testing.assert_array_equal(np.asarray(pixels(PIL.Image.fromarray(values))), values)

    def test_a_picture_that_lies_on_its_side_is_set_upright_and_its_metadata_stay_here(self) -> None:
        picture = PIL.Image.new("RGB", (3, 2))
        exif = picture.getexif()
        exif[0x0112] = 6  # turned by a quarter
        exif[0x010E] = "where Anna lives"
        out = io.BytesIO()
        picture.save(out, "JPEG", exif=exif)
        with PIL.Image.open(out) as turned:
            arrived = pixels(turned)
        assert arrived.size == (2, 3)
        assert not dict(arrived.getexif())

    def test_a_picture_is_encoded_once(self) -> None:
        picture = PIL.Image.new("RGB", (3, 2))
        upload = upload_of(picture)
        with upload.open() as first:
            before = first.read()
        picture.putpixel((0, 0), (255, 0, 0))
        with upload.open() as second:
            assert second.read() == before

    @pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
    def test_an_array_arrives_as_it_is(self, shape: tuple[int, ...]) -> None:
        values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(np.asarray(pixels(values)).reshape(shape), values)

    @pytest.mark.parametrize("values", [np.zeros((4, 6, 3)), np.zeros((4, 6), np.int64), np.zeros((4, 6), bool)])
    def test_an_array_without_an_agreed_range_is_refused(self, values: Any) -> None:
        with pytest.raises(ValueError, match=r"0\.\.255"):
            upload_of(values)

    @pytest.mark.parametrize("shape", [(4,), (4, 6, 2), (3, 4, 6), (2, 4, 6, 3), (0, 6, 3)])
    def test_an_array_that_is_no_picture_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="no picture"):
            upload_of(np.zeros(shape, np.uint8))


IMPORTS = """
import sys
import tenfold, tenfold.cli
upload = tenfold._inputs.upload_of(b"abc")
loaded = {"numpy", "PIL", "torch", "shared", "gateway", "services", "deploy"} & set(sys.modules)
assert not loaded, loaded
import numpy
sys.modules["PIL"] = None
try:
    tenfold._inputs.upload_of(numpy.zeros((2, 2), "uint8"))
except ImportError as error:
    assert "pip install pillow" in str(error), error
else:
    raise AssertionError("an array was encoded without Pillow")
"""


def test_neither_numpy_nor_pillow_is_needed_until_it_is_given() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, timeout=60, env=environment)
