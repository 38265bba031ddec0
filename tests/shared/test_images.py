from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
import zlib
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.images import Picture, decode, pixel_sha256
from shared.problems import ImageAnimated, ImageTooLarge, ImageUnreadable, UnsupportedMediaType
from tests.shared import profiles
from tests.shared.pictures import (
    SIGNATURE,
    chunk,
    exif,
    frames,
    gradient,
    jpeg_segment,
    jpeg_with,
    png,
    saved,
    tiff_block,
)


def decoded(data: bytes, **options: Any) -> Picture:
    return decode(io.BytesIO(data), **options)


def array(image: PIL.Image.Image) -> Any:
    return np.asarray(image)


FILES = {
    "jpeg": saved(gradient(), "JPEG"),
    "jpeg-progressive": saved(gradient(), "JPEG", progressive=True),
    "jpeg-cmyk": saved(gradient(mode="CMYK"), "JPEG"),
    "png": saved(gradient(mode="RGBA"), "PNG"),
    "png-palette": saved(gradient(mode="P"), "PNG", transparency=bytes(range(200))),
    "webp": saved(gradient(), "WEBP"),
    "webp-lossless": saved(gradient(mode="RGBA"), "WEBP", lossless=True),
    "bmp": saved(gradient(), "BMP"),
    "tiff": saved(gradient(), "TIFF"),
    "tiff-lzw": saved(gradient(mode="RGBA"), "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": saved(gradient(), "TIFF", compression="jpeg"),
}


class TestLossless:
    @pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF"])
    def test_the_pixels_are_those_of_the_file(self, format: str) -> None:
        options = {"lossless": True} if format == "WEBP" else {}
        picture = decoded(saved(gradient(), format, **options))
        np.testing.assert_array_equal(picture.pixels, array(gradient()))
        assert (picture.alpha, picture.gray) == (None, False)

    @pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
    def test_alpha_is_kept_apart(self, format: str) -> None:
        options = {"lossless": True, "exact": True} if format == "WEBP" else {}
        rgba = array(gradient(mode="RGBA"))
        picture = decoded(saved(gradient(mode="RGBA"), format, **options))
        assert picture.alpha is not None
        np.testing.assert_array_equal(picture.pixels, rgba[:, :, :3])
        np.testing.assert_array_equal(picture.alpha, rgba[:, :, 3])

    @pytest.mark.parametrize("format", ["PNG", "TIFF"])
    def test_gray_with_alpha(self, format: str) -> None:
        la = array(gradient(mode="LA"))
        picture = decoded(saved(gradient(mode="LA"), format))
        assert picture.gray
        assert picture.alpha is not None
        np.testing.assert_array_equal(picture.pixels, np.repeat(la[:, :, :1], 3, axis=2))
        np.testing.assert_array_equal(picture.alpha, la[:, :, 1])

    @pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
    @pytest.mark.parametrize("mode", ["1", "L"])
    def test_gray_has_three_equal_channels(self, format: str, mode: str) -> None:
        picture = decoded(saved(gradient(mode=mode), format))
        assert picture.gray
        expected = array(gradient(mode=mode).convert("L"))
        np.testing.assert_array_equal(picture.pixels, np.repeat(expected[:, :, None], 3, axis=2))

    @pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
    def test_a_palette_becomes_colours(self, format: str) -> None:
        image = gradient(mode="P")
        picture = decoded(saved(image, format))
        np.testing.assert_array_equal(picture.pixels, array(image.convert("RGB")))
        assert not picture.gray

    @pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits"])
    def test_compressed_tiffs_are_read(self, compression: str) -> None:
        picture = decoded(saved(gradient(), "TIFF", compression=compression))
        np.testing.assert_array_equal(picture.pixels, array(gradient()))

    def test_a_fax_is_read(self) -> None:
        image = gradient(mode="1")
        picture = decoded(saved(image, "TIFF", compression="group4"))
        np.testing.assert_array_equal(picture.pixels[:, :, 0], array(image.convert("L")))

    def test_one_pixel(self) -> None:
        for format in ("PNG", "JPEG", "WEBP", "BMP", "TIFF"):
            assert decoded(saved(gradient(1, 1), format)).pixels.shape == (1, 1, 3)


class TestJpeg:
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
    def test_it_is_what_the_library_decodes(self, options: dict[str, Any]) -> None:
        data = saved(gradient(64, 48), "JPEG", **options)
        np.testing.assert_array_equal(decoded(data).pixels, array(PIL.Image.open(io.BytesIO(data))))

    def test_cmyk_without_a_profile_is_ink_over_white(self) -> None:
        for inks in ((0, 0, 0, 0), (255, 0, 0, 0), (0, 128, 64, 0), (40, 80, 120, 100), (0, 0, 0, 255)):
            data = saved(PIL.Image.new("CMYK", (16, 16), inks), "JPEG", quality=100)
            expected = [(255 - ink) * (255 - inks[3]) / 255 for ink in inks[:3]]
            np.testing.assert_allclose(decoded(data).pixels.reshape(-1, 3), [expected] * 256, atol=3)

    def test_gray(self) -> None:
        picture = decoded(saved(gradient(mode="L"), "JPEG", quality=100))
        assert picture.gray
        np.testing.assert_allclose(picture.pixels[:, :, 1], array(gradient(mode="L")), atol=4)

    def test_endless_scans_are_refused(self) -> None:
        data = FILES["jpeg-progressive"]
        start = data.rindex(b"\xff\xda")
        assert decoded(data[:-2] + 5 * data[start:-2] + data[-2:]).pixels.shape == (30, 40, 3)
        with pytest.raises(ImageUnreadable, match="100 scans"):
            decoded(data[:-2] + 200 * data[start:-2] + data[-2:])

    def test_a_second_picture_in_the_file_is_not_looked_at(self) -> None:
        first, second = PIL.Image.new("RGB", (8, 8), "red"), PIL.Image.new("RGB", (8, 8), "blue")
        data = saved(first, "MPO", save_all=True, append_images=[second])
        assert tuple(decoded(data).pixels[4, 4]) == tuple(decoded(saved(first, "JPEG")).pixels[4, 4])


class TestSixteenBits:
    def test_every_value_of_gray_becomes_its_high_byte(self) -> None:
        values = np.arange(65_536, dtype=">u2").reshape(256, 256)
        expected = np.repeat((np.arange(65_536) // 256).astype(np.uint8).reshape(256, 256, 1), 3, axis=2)
        png_file = png(256, 256, values.tobytes(), depth=16, color=0)
        tiff_file = saved(PIL.Image.fromarray(values.astype("<u2")), "TIFF")
        for data in (png_file, tiff_file):
            picture = decoded(data)
            assert picture.gray
            np.testing.assert_array_equal(picture.pixels, expected)

    @pytest.mark.parametrize(("color", "channels"), [(2, 3), (4, 2), (6, 4)])
    def test_colours_and_alpha_are_scaled_alike(self, color: int, channels: int) -> None:
        values = np.random.default_rng(0).integers(0, 65_536, (20, 30, channels)).astype(">u2")
        picture = decoded(png(30, 20, values.tobytes(), depth=16, color=color))
        scaled = (values // 256).astype(np.uint8)
        colors = scaled[:, :, :3] if channels >= 3 else np.repeat(scaled[:, :, :1], 3, axis=2)
        np.testing.assert_array_equal(picture.pixels, colors)
        assert picture.gray == (channels == 2)
        if channels == 3:
            assert picture.alpha is None
        else:
            assert picture.alpha is not None
            np.testing.assert_array_equal(picture.alpha, scaled[:, :, -1])

    def test_eight_bits_written_as_sixteen_come_back(self) -> None:
        eight = np.arange(256, dtype=">u2")
        picture = decoded(png(256, 1, (eight * 257).astype(">u2").tobytes(), depth=16, color=0))
        np.testing.assert_array_equal(picture.pixels[0, :, 0], np.arange(256))


class TestTransparentColour:
    @pytest.mark.parametrize(("depth", "key"), [(1, 1), (1, 0), (2, 2), (4, 9), (8, 200)])
    def test_of_gray(self, depth: int, key: int) -> None:
        values = [v % 2**depth for v in range(4 * 2**depth)] if depth < 8 else list(range(256))
        bits = "".join(f"{v:0{depth}b}" for v in values)
        rows = int(bits, 2).to_bytes(len(bits) // 8, "big") if len(bits) % 8 == 0 else b""
        data = png(len(values), 1, rows, depth=depth, color=0, before=chunk(b"tRNS", struct.pack(">H", key)))
        picture = decoded(data)
        assert picture.alpha is not None
        np.testing.assert_array_equal(picture.alpha[0], [0 if v == key else 255 for v in values])
        np.testing.assert_array_equal(picture.pixels[0, :, 0], [v * 255 // (2**depth - 1) for v in values])

    def test_of_colours(self) -> None:
        rows = bytes([1, 2, 3, 1, 2, 4, 3, 2, 1])
        picture = decoded(png(3, 1, rows, before=chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))))
        assert picture.alpha is not None
        assert picture.alpha.tolist() == [[0, 255, 255]]

    def test_of_sixteen_bits_is_compared_after_scaling(self) -> None:
        gray = np.array([0x1234, 0x12FF, 0x1300], ">u2").tobytes()
        picture = decoded(png(3, 1, gray, depth=16, color=0, before=chunk(b"tRNS", b"\x12\x34")))
        assert picture.alpha is not None
        assert picture.alpha.tolist() == [[0, 0, 255]]

    @pytest.mark.parametrize("transparency", [3, bytes([255, 0, 128, 7])])
    def test_of_a_palette(self, transparency: int | bytes) -> None:
        image = PIL.Image.new("P", (4, 1))
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
        image.putdata([0, 1, 2, 3])
        picture = decoded(saved(image, "PNG", transparency=transparency))
        expected = [255, 255, 255, 0] if transparency == 3 else [255, 0, 128, 7]
        assert picture.alpha is not None
        assert picture.alpha.tolist() == [expected]
        assert picture.pixels.tolist() == [[[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]]


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_the_picture_is_upright(self, format: str, orientation: int) -> None:
        tags = PIL.Image.Exif()
        tags[274] = orientation
        data = saved(gradient(), format, exif=tags, **({"lossless": True} if format == "WEBP" else {}))
        with PIL.Image.open(io.BytesIO(data)) as image:
            expected = array(PIL.ImageOps.exif_transpose(image))
        picture = decoded(data)
        np.testing.assert_array_equal(picture.pixels, expected)
        assert picture.pixels.shape[:2] == ((40, 30) if orientation >= 5 else (30, 40))
        assert picture.pixels.flags.c_contiguous
        assert picture.pixels.flags.writeable

    def test_alpha_turns_with_the_pixels(self) -> None:
        picture = decoded(saved(gradient(mode="RGBA"), "PNG", exif=exif(6)))
        assert picture.alpha is not None
        np.testing.assert_array_equal(picture.alpha, np.rot90(array(gradient(mode="RGBA"))[:, :, 3], -1))


class TestColour:
    def test_a_profile_is_converted_to_srgb(self) -> None:
        ramp = np.arange(256, dtype=np.uint8)
        expected = [profiles.srgb_curve(v) for v in range(256)]
        image = PIL.Image.fromarray(np.repeat(ramp[None, :, None], 3, axis=2))
        for format in ("PNG", "WEBP", "TIFF"):
            options = {"lossless": True} if format == "WEBP" else {}
            data = saved(image, format, icc_profile=profiles.linear_rgb(), **options)
            np.testing.assert_allclose(decoded(data).pixels[0], np.repeat(np.array(expected)[:, None], 3, 1), atol=1.5)

    def test_a_profile_in_a_jpeg_is_converted_too(self) -> None:
        image = PIL.Image.new("RGB", (16, 16), (60, 60, 60))
        data = saved(image, "JPEG", quality=100, icc_profile=profiles.linear_rgb())
        np.testing.assert_allclose(decoded(data).pixels, profiles.srgb_curve(60), atol=2)

    def test_a_profile_in_many_segments_in_any_order(self) -> None:
        profile = profiles.linear_rgb() + bytes(150_000)
        profile = struct.pack(">I", len(profile)) + profile[4:]
        pieces = [profile[i : i + 60_000] for i in range(0, len(profile), 60_000)]
        segments = [
            jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, len(pieces)]) + piece) for i, piece in enumerate(pieces)
        ]
        data = jpeg_with(b"".join(reversed(segments)), PIL.Image.new("RGB", (16, 16), (60, 60, 60)))
        np.testing.assert_allclose(decoded(data).pixels, profiles.srgb_curve(60), atol=2)

    def test_gray_with_a_profile_stays_gray(self) -> None:
        image = PIL.Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        picture = decoded(saved(image, "PNG", icc_profile=profiles.linear_gray()))
        assert picture.gray
        np.testing.assert_allclose(picture.pixels[0, :, 0], [profiles.srgb_curve(v) for v in range(256)], atol=1.5)
        assert (picture.pixels == picture.pixels[:, :, :1]).all()

    def test_inks_are_those_of_the_profile(self) -> None:
        for inks, expected in (((0, 0, 0, 0), 255), ((255, 0, 0, 0), 119), ((0, 0, 255, 0), 119), ((0, 0, 0, 255), 0)):
            data = saved(PIL.Image.new("CMYK", (16, 16), inks), "JPEG", quality=100, icc_profile=profiles.gray_inks())
            np.testing.assert_allclose(decoded(data).pixels, expected, atol=3)

    def test_the_transparent_colour_is_that_of_the_file_not_of_the_screen(self) -> None:
        profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(profiles.linear_rgb()))
        key = chunk(b"tRNS", struct.pack(">HHH", 60, 60, 60))
        picture = decoded(png(2, 1, bytes([60, 60, 60, 61, 61, 61]), before=profile + key))
        assert picture.alpha is not None
        assert picture.alpha.tolist() == [[0, 255]]
        assert picture.pixels[0, 0, 0] == pytest.approx(profiles.srgb_curve(60), abs=1.5)

    @pytest.mark.parametrize(
        "profile",
        [
            b"",
            b"no profile",
            profiles.linear_rgb()[:200],
            profiles.linear_gray(),
            profiles.gray_inks(),
            profiles.linear_rgb().replace(b"RGB ", b"XYZ "),
        ],
    )
    def test_a_profile_that_does_not_fit_is_ignored(self, profile: bytes) -> None:
        content = chunk(b"iCCP", b"p\0\0" + zlib.compress(profile))
        data = png(2, 1, bytes([10, 20, 30, 40, 50, 60]), before=content)
        assert decoded(data).pixels.tolist() == [[[10, 20, 30], [40, 50, 60]]]

    def test_a_profile_bomb_is_ignored(self) -> None:
        content = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(100_000_000)))
        assert decoded(png(1, 1, b"\x01\x02\x03", before=content)).pixels.tolist() == [[[1, 2, 3]]]


class TestRefusals:
    @pytest.mark.parametrize("name", FILES)
    def test_half_a_file_is_unreadable(self, name: str) -> None:
        data = FILES[name]
        with pytest.raises(ImageUnreadable):
            decoded(data[: len(data) // 2 + 50])

    def test_an_animation_is_refused(self) -> None:
        for data in (frames("PNG", 3), frames("WEBP", 3), frames("TIFF", 3)):
            with pytest.raises(ImageAnimated):
                decoded(data)
        with pytest.raises(UnsupportedMediaType):
            decoded(frames("GIF", 3))

    def test_an_operation_may_set_a_lower_limit(self) -> None:
        assert decoded(FILES["png"], max_pixels=1200).pixels.shape == (30, 40, 3)
        with pytest.raises(ImageTooLarge) as refusal:
            decoded(FILES["png"], max_pixels=1199)
        assert refusal.value.extras == {"limit_px": 1199}

    def test_a_damaged_chunk_of_pixels_is_unreadable(self) -> None:
        data = bytearray(FILES["png"])
        data[data.index(b"IDAT") + 8] ^= 1
        with pytest.raises(ImageUnreadable, match="IDAT"):
            decoded(bytes(data))

    def test_a_png_with_too_few_rows_is_unreadable(self) -> None:
        whole, short = png(40, 30, bytes(40 * 3 * 30)), png(40, 29, bytes(40 * 3 * 29))
        with pytest.raises(ImageUnreadable, match="121 bytes"):
            decoded(whole[:33] + short[33:])
        with pytest.raises(ImageUnreadable, match="30 bytes"):
            decoded(png(40, 30, bytes(40 * 3 * 30 - 30)))

    @pytest.mark.parametrize("size", [(1, 1), (3, 2), (8, 8), (13, 9)])
    @pytest.mark.parametrize(("mode", "values"), [("1", b"\x80"), ("L", b"\x07"), ("RGB", b"\x07\x08\x09")])
    def test_interlaced_files_are_counted_in_their_seven_passes(
        self, size: tuple[int, int], mode: str, values: bytes
    ) -> None:
        depth, color = {"1": (1, 0), "L": (8, 0), "RGB": (8, 2)}[mode]
        rows = b""
        for x, y, dx, dy in (
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ):
            columns = len(range(x, size[0], dx))
            row = b"\xff" * -(-columns // 8) if mode == "1" else values * columns
            rows += (b"\0" + row) * len(range(y, size[1], dy)) if columns else b""

        def interlaced(rows: bytes) -> bytes:
            header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 1))
            return SIGNATURE + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")

        expected = {"1": [255], "L": [7], "RGB": list(values)}[mode]
        np.testing.assert_array_equal(
            decoded(interlaced(rows)).pixels, np.broadcast_to(expected, (size[1], size[0], 3))
        )
        with pytest.raises(ImageUnreadable):
            decoded(interlaced(rows[:-1]))

    @pytest.mark.parametrize("depth", [32, 64])
    def test_samples_without_a_range_are_refused(self, depth: int) -> None:
        mode = {32: "F", 64: "I"}[depth]
        with pytest.raises(ImageUnreadable):
            decoded(saved(PIL.Image.new(mode, (4, 4)), "TIFF"))

    @pytest.mark.parametrize(
        "entries",
        [
            ((322, 4, 1, 100_000), (323, 4, 1, 16)),
            ((322, 4, 1, 20_000), (323, 4, 1, 20_000)),
            ((259, 3, 1, 6),),
            ((259, 3, 1, 50_000),),
        ],
    )
    def test_a_tiff_that_asks_for_too_much_is_refused(self, entries: tuple[tuple[int, int, int, int], ...]) -> None:
        fields = {256: 4, 257: 4, 258: 8, 262: 1, 277: 1}
        data = tiff_block(*((tag, 3, 1, value) for tag, value in fields.items()), *entries)
        with pytest.raises(ImageUnreadable):
            decoded(data)

    @pytest.mark.parametrize("name", FILES)
    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_whatever_is_damaged_the_answer_is_a_picture_or_a_problem(self, name: str, data: st.DataObject) -> None:
        damaged = bytearray(FILES[name])
        for _ in range(data.draw(st.integers(1, 5))):
            place = data.draw(st.integers(0, len(damaged) - 1))
            damaged[place] = data.draw(st.sampled_from((0, 1, 2, 0x7F, 0x80, 0xFF, damaged[place] ^ 1)))
        with contextlib.suppress(ImageUnreadable, ImageAnimated, ImageTooLarge, UnsupportedMediaType):
            assert decoded(bytes(damaged)).pixels.dtype == np.uint8


class TestNoWarnings:
    @pytest.mark.parametrize(
        "data",
        [
            jpeg_with(jpeg_segment(0xE1, b"Exif\0\0" + tiff_block((282, 5, 1, 4000), (271, 2, 500, 3)))),
            saved(gradient(), "TIFF", tiffinfo={284: 1}).replace(
                struct.pack("<HHI", 259, 3, 1), struct.pack("<HHI", 259, 3, 2)
            ),
            png(2, 1, bytes(6), before=chunk(b"acTL", bytes(8))),
        ],
    )
    def test_what_the_library_warns_of_is_read_or_refused_in_silence(self, data: bytes) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with PIL.Image.open(io.BytesIO(data)) as image:
                image.getexif()
        assert caught, "the library does not warn of this file: the test proves nothing"
        with contextlib.suppress(ImageUnreadable):
            decoded(data)

    def test_a_tiff_whose_fields_overlap_is_refused_in_silence(self) -> None:
        fields = {256: 4, 257: 4, 258: 8, 262: 1, 277: 1, 273: 8}
        overlapping = tuple((tag, 1, 100, 8) for tag in (279, 320, 324, 325, 347))
        data = tiff_block(*((tag, 3, 1, value) for tag, value in fields.items()), *overlapping)
        with pytest.raises(ImageUnreadable, match="overlap"):
            decoded(data)

    def test_the_library_is_left_as_it_was(self) -> None:
        limit = PIL.Image.MAX_IMAGE_PIXELS
        filters = list(warnings.filters)
        decoded(FILES["jpeg"])
        assert limit == PIL.Image.MAX_IMAGE_PIXELS == 89_478_485
        assert warnings.filters == filters

    def test_threads_decode_at_once(self) -> None:
        results: list[str] = []

        def work() -> None:
            results.extend(pixel_sha256(decoded(FILES[name]).pixels) for name in FILES)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4 * len(FILES)
        assert len(set(results)) == len({pixel_sha256(decoded(data).pixels) for data in FILES.values()})
