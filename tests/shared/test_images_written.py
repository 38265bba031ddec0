from __future__ import annotations

import hashlib
import io
import zlib
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.images import Picture, decode, encode, pixel_sha256, png_text
from shared.problems import ImageTooLarge, ImageUnreadable
from tests.shared import profiles
from tests.shared.pictures import (
    chunk,
    gradient,
    png,
    saved,
)


def decoded(data: bytes, **options: Any) -> Picture:
    return decode(io.BytesIO(data), **options)


def array(image: PIL.Image.Image) -> Any:
    return np.asarray(image)


pictures = st.builds(
    lambda pixels, alpha, gray: Picture(
        np.repeat(pixels[:, :, :1], 3, axis=2) if gray else pixels, alpha[: len(pixels), : pixels.shape[1]], gray
    ),
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))),
    hnp.arrays(np.uint8, (20, 20)),
    st.booleans(),
)


class TestEncode:
    @pytest.mark.parametrize("media_type", ["image/png", "image/webp"])
    @settings(max_examples=40, deadline=None)
    @given(picture=pictures)
    def test_what_is_lossless_comes_back_bit_for_bit(self, media_type: str, picture: Picture) -> None:
        back = decoded(encode(picture, media_type))
        np.testing.assert_array_equal(back.pixels, picture.pixels)
        if back.alpha is None:  # a WebP without a transparent pixel has no alpha
            assert picture.alpha is not None
            assert (picture.alpha == 255).all()
        else:
            np.testing.assert_array_equal(back.alpha, picture.alpha)
        assert back.gray == (picture.gray and media_type == "image/png")

    def test_without_alpha_there_is_none_after(self) -> None:
        for media_type in ("image/png", "image/webp"):
            assert decoded(encode(Picture(array(gradient())), media_type)).alpha is None

    def test_jpeg_is_close_and_better_with_quality(self) -> None:
        picture = Picture(array(PIL.Image.radial_gradient("L").convert("RGB")))
        errors = [
            np.abs(decoded(encode(picture, "image/jpeg", quality=q)).pixels.astype(int) - picture.pixels).mean()
            for q in (30, 95)
        ]
        assert errors[1] < 0.5 < errors[0]

    def test_transparent_pixels_of_a_jpeg_lie_over_white(self) -> None:
        pixels = np.full((16, 48, 3), 100, np.uint8)
        alpha = np.repeat(np.array([0, 128, 255], np.uint8), 16)[None].repeat(16, axis=0)
        back = decoded(encode(Picture(pixels, alpha), "image/jpeg", quality=100)).pixels
        for column, expected in ((4, 255), (24, 100 * 128 / 255 + 127), (44, 100)):
            np.testing.assert_allclose(back[:, column], expected, atol=2)

    def test_a_gray_picture_stays_gray_unless_it_was_painted(self) -> None:
        picture = decoded(saved(gradient(mode="L"), "PNG"))
        with PIL.Image.open(io.BytesIO(encode(picture, "image/png"))) as image:
            assert image.mode == "L"
        picture.pixels[3, 4] = (255, 0, 0)
        np.testing.assert_array_equal(decoded(encode(picture, "image/png")).pixels, picture.pixels)

    @pytest.mark.parametrize("media_type", ["image/png", "image/webp", "image/jpeg"])
    def test_no_metadata_of_the_input_is_left(self, media_type: str) -> None:
        secret = b"Jane Doe, 52.5200 N 13.4050 E"
        tags = PIL.Image.Exif()
        tags[271], tags[274], tags[37510] = secret.decode(), 6, secret
        inputs = (
            saved(gradient(), "JPEG", exif=tags, comment=secret, icc_profile=profiles.linear_rgb(), xmp=secret),
            saved(gradient(), "PNG", exif=tags, icc_profile=profiles.linear_rgb()),
            saved(gradient(), "WEBP", exif=tags, xmp=secret, icc_profile=profiles.linear_rgb()),
            saved(gradient(), "TIFF", tiffinfo={270: secret.decode()}),
            png(4, 2, bytes(24), before=chunk(b"tEXt", b"Author\0" + secret)),
        )
        for data in inputs:
            assert b"Jane" in data
            out = encode(decoded(data), media_type)
            assert b"Jane" not in out
            with PIL.Image.open(io.BytesIO(out)) as image:
                assert not image.info.keys() & {"exif", "xmp", "icc_profile", "comment", "Author"}
                assert dict(image.getexif()) == {}

    def test_a_webp_has_shorter_sides_than_others(self) -> None:
        picture = Picture(np.zeros((1, 16_384, 3), np.uint8))
        with pytest.raises(ImageTooLarge) as refusal:
            encode(picture, "image/webp")
        assert refusal.value.extras == {"limit_px": 16_383}
        assert decoded(encode(picture, "image/png")).pixels.shape == (1, 16_384, 3)

    def test_what_cannot_be_written_is_refused(self) -> None:
        picture = Picture(array(gradient()))
        for media_type in ("image/gif", "image/tiff", "png"):
            with pytest.raises(ValueError, match="is not written"):
                encode(picture, media_type)
        with pytest.raises(ValueError, match="takes no text"):
            encode(picture, "image/jpeg", text={"record": "x"})

    def test_views_of_an_array_are_written_too(self) -> None:
        picture = Picture(array(gradient())[::2, ::-1])
        np.testing.assert_array_equal(decoded(encode(picture, "image/png")).pixels, picture.pixels)


class TestPicture:
    @pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (4, 4, 1), (0, 4, 3)])
    def test_other_shapes_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="pixels are"):
            Picture(np.zeros(shape, np.uint8))

    def test_other_types_are_refused(self) -> None:
        floats: Any = np.zeros((4, 4, 3), np.float32)
        with pytest.raises(ValueError, match="float32"):
            Picture(floats)
        with pytest.raises(ValueError, match="alpha"):
            Picture(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8))


keywords = st.text(st.characters(min_codepoint=1, max_codepoint=255), min_size=1, max_size=79)


class TestText:
    @settings(max_examples=60, deadline=None)
    @given(text=st.dictionaries(keywords, st.text(st.characters(exclude_categories=["Cs"]), max_size=200), max_size=5))
    def test_any_text_comes_back(self, text: dict[str, str]) -> None:
        data = encode(Picture(np.zeros((1, 1, 3), np.uint8)), "image/png", text=text)
        assert png_text(io.BytesIO(data)) == text
        assert decoded(data).pixels.shape == (1, 1, 3)

    def test_the_library_reads_it_as_text_too(self) -> None:
        data = encode(Picture(array(gradient())), "image/png", text={"ifadit-record": '{"tenant": "Ärzte 医院"}'})
        with PIL.Image.open(io.BytesIO(data)) as image:
            assert image.info["ifadit-record"] == '{"tenant": "Ärzte 医院"}'

    def test_old_and_compressed_texts_are_read(self) -> None:
        before = chunk(b"tEXt", b"Author\0J\xfcrgen")
        after = chunk(b"iTXt", b"record\0\1\0de\0Beleg\0" + zlib.compress("für".encode()))
        data = png(1, 1, bytes(3), before=before, after=after)
        assert png_text(io.BytesIO(data)) == {"Author": "Jürgen", "record": "für"}

    def test_of_two_with_one_keyword_the_first_counts(self) -> None:
        texts = b"".join(chunk(b"tEXt", b"record\0" + value) for value in (b"first", b"second"))
        assert png_text(io.BytesIO(png(1, 1, bytes(3), before=texts))) == {"record": "first"}

    def test_a_text_bomb_is_passed_over(self) -> None:
        bomb = chunk(b"iTXt", b"bomb\0\1\0\0\0" + zlib.compress(bytes(50_000_000)))
        large = chunk(b"tEXt", b"large\0" + b"x" * (2 << 20))
        kept = chunk(b"tEXt", b"record\0kept")
        assert png_text(io.BytesIO(png(1, 1, bytes(3), before=bomb + large + kept))) == {"record": "kept"}

    def test_wrongly_coded_texts_are_passed_over(self) -> None:
        wrong = (b"a\0\0\0\0\0\xff\xfe", b"b\0\1\0\0\0no zlib", b"c\0\2\0\0\0x", b"\0\0\0\0\0x", b"d")
        data = png(1, 1, bytes(3), before=b"".join(chunk(b"iTXt", content) for content in wrong))
        assert png_text(io.BytesIO(data)) == {}

    def test_only_so_many_are_read(self) -> None:
        texts = b"".join(chunk(b"tEXt", b"k%d\0v" % i) for i in range(100))
        assert len(png_text(io.BytesIO(png(1, 1, bytes(3), before=texts)))) == 64

    def test_a_damaged_text_is_no_text(self) -> None:
        data = bytearray(png(1, 1, bytes(3), before=chunk(b"tEXt", b"record\0value")))
        data[data.index(b"value")] ^= 1
        with pytest.raises(ImageUnreadable, match="tEXt"):
            png_text(io.BytesIO(bytes(data)))

    def test_other_types_have_no_text(self) -> None:
        assert png_text(io.BytesIO(saved(gradient(), "JPEG"))) == {}
        assert png_text(io.BytesIO(b"")) == {}

    @pytest.mark.parametrize("text", [{"": "x"}, {"a" * 80: "x"}, {"a\0b": "x"}, {"k": "x" * (1 << 20) + "x"}])
    def test_what_could_not_be_read_back_is_not_written(self, text: dict[str, str]) -> None:
        with pytest.raises(ValueError, match=r"keyword|longer"):
            encode(Picture(array(gradient())), "image/png", text=text)


class TestPixelHash:
    def test_it_is_over_the_shape_and_the_pixels(self) -> None:
        pixels = array(gradient(4, 2))
        expected = hashlib.sha256(b"\0\0\0\2\0\0\0\4" + pixels.tobytes()).hexdigest()
        assert pixel_sha256(pixels) == expected
        assert pixel_sha256(pixels.reshape(4, 2, 3)) != expected

    def test_a_view_hashes_as_its_copy(self) -> None:
        view = array(gradient())[::-1, ::2]
        assert pixel_sha256(view) == pixel_sha256(view.copy())

    def test_the_same_pixels_in_every_lossless_file_hash_alike(self) -> None:
        picture = decoded(saved(gradient(mode="RGBA"), "PNG"))
        hashes = {pixel_sha256(decoded(encode(picture, t)).pixels) for t in ("image/png", "image/webp")}
        assert hashes == {pixel_sha256(picture.pixels)}
