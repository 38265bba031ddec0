from __future__ import annotations

import contextlib
import io
import struct
import time
import tracemalloc
import zlib

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.imageheader import ACCEPTED, MAX_PIXELS, MAX_SIDE_PX, ImageHeader, probe
from shared.problems import ImageAnimated, ImageTooLarge, ImageUnreadable, UnsupportedMediaType
from tests.shared.pictures import (
    SIGNATURE,
    chunk,
    exif,
    frames,
    gradient,
    jpeg_segment,
    jpeg_with,
    png,
    png_header,
    riff,
    riff_chunks,
    saved,
    tiff_block,
)


def header_of(data: bytes) -> ImageHeader:
    return probe(io.BytesIO(data))


WHOLE = {
    "jpeg": saved(gradient(), "JPEG"),
    "png": saved(gradient(), "PNG"),
    "webp": saved(gradient(), "WEBP"),
    "webp-lossless": saved(gradient(mode="RGBA"), "WEBP", lossless=True),
    "webp-extended": saved(gradient(mode="RGBA"), "WEBP", exif=exif(1)),
    "bmp": saved(gradient(), "BMP"),
    "tiff": saved(gradient(), "TIFF"),
}


class TestWhatIsAccepted:
    @pytest.mark.parametrize("name", WHOLE)
    def test_type_and_size_are_those_of_the_file(self, name: str) -> None:
        header = header_of(WHOLE[name])
        assert header.media_type == f"image/{name.partition('-')[0]}"
        assert (header.width, header.height, header.frames, header.orientation) == (40, 30, 1, 1)
        assert header.media_type in ACCEPTED

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
    def test_one_pixel_is_a_picture(self, format: str) -> None:
        header = header_of(saved(gradient(1, 1), format))
        assert (header.width, header.height) == (1, 1)

    @pytest.mark.parametrize(
        ("mode", "format", "expected"),
        [
            ("L", "JPEG", "L"),
            ("CMYK", "JPEG", "CMYK"),
            ("RGB", "JPEG", "RGB"),
            ("1", "PNG", "1"),
            ("L", "PNG", "L"),
            ("LA", "PNG", "LA"),
            ("P", "PNG", "P"),
            ("RGBA", "PNG", "RGBA"),
            ("I;16", "PNG", "I;16"),
            ("RGBA", "WEBP", "RGBA"),
            ("L", "BMP", "P"),
            ("1", "TIFF", "1"),
            ("L", "TIFF", "L"),
            ("RGBA", "TIFF", "RGB"),
            ("CMYK", "TIFF", "CMYK"),
            ("I;16", "TIFF", "I;16"),
        ],
    )
    def test_the_mode_is_that_of_the_file(self, mode: str, format: str, expected: str) -> None:
        image = PIL.Image.new("I;16", (4, 4)) if mode == "I;16" else gradient(mode=mode)
        assert header_of(saved(image, format)).mode == expected

    @pytest.mark.parametrize(("color", "mode", "values"), [(2, "RGB;16", 3), (4, "LA;16", 2), (6, "RGBA;16", 4)])
    def test_sixteen_bits_are_told(self, color: int, mode: str, values: int) -> None:
        assert header_of(png(2, 2, bytes(8 * values), depth=16, color=color)).mode == mode

    def test_progressive_and_optimized_files_are_read(self) -> None:
        assert header_of(saved(gradient(), "JPEG", progressive=True, optimize=True)).width == 40

    def test_a_bmp_may_begin_with_its_first_row(self) -> None:
        data = bytearray(WHOLE["bmp"])
        data[22:26] = struct.pack("<i", -30)
        assert header_of(bytes(data)).height == 30

    def test_fill_bytes_and_foreign_bytes_between_segments_are_passed_over(self) -> None:
        comment = jpeg_segment(0xFE, b"x")
        assert header_of(jpeg_with(comment + b"junk" + b"\xff\xff")).width == 40
        with pytest.raises(ImageUnreadable, match="4096"):
            header_of(jpeg_with(comment + b"\0" * 5000))

    def test_the_stream_is_left_at_its_start(self) -> None:
        stream = io.BytesIO(WHOLE["png"])
        stream.read(7)
        probe(stream)
        assert stream.tell() == 0

    @pytest.mark.parametrize("name", WHOLE)
    @settings(max_examples=15, deadline=None)
    @given(width=st.integers(1, 400), height=st.integers(1, 400))
    def test_any_size_is_read_as_the_image_library_reads_it(self, name: str, width: int, height: int) -> None:
        options = {"lossless": True} if name == "webp-lossless" else {}
        data = saved(PIL.Image.new("RGB", (width, height)), name.partition("-")[0].upper(), **options)
        assert (header_of(data).width, header_of(data).height) == (width, height)


class TestOrientation:
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_width_and_height_are_those_of_the_upright_picture(self, orientation: int, order: str) -> None:
        block = exif(orientation, order)
        upright = (30, 40) if orientation >= 5 else (40, 30)
        webp = riff_chunks(saved(gradient(mode="RGBA"), "WEBP", exif=exif(1)))
        files = (
            jpeg_with(jpeg_segment(0xE1, b"Exif\0\0" + block)),
            saved(gradient(), "PNG", exif=block),
            riff(*((kind, block if kind == b"EXIF" else content) for kind, content in webp)),
        )
        for data in files:
            header = header_of(data)
            assert (header.orientation, header.width, header.height) == (orientation, *upright)

    def test_a_png_may_say_it_behind_its_pixels(self) -> None:
        header = header_of(png(4, 2, bytes(24), after=chunk(b"eXIf", exif(6))))
        assert (header.width, header.height) == (2, 4)

    def test_a_tiff_says_it_in_its_own_directory(self) -> None:
        header = header_of(saved(gradient(), "TIFF", tiffinfo={274: 8}))
        assert (header.orientation, header.width, header.height) == (8, 30, 40)

    @pytest.mark.parametrize(
        "block",
        [
            b"",
            b"II*\0",
            b"no TIFF at all",
            b"II*\0\xff\xff\xff\xff",
            exif(0),
            exif(9),
            exif(6)[:24],
            tiff_block((274, 4, 1, 6)),
            tiff_block((274, 3, 2, 6)),
            b"II*\0" + struct.pack("<IH", 8, 65_535),
        ],
    )
    def test_a_block_that_cannot_be_read_says_nothing(self, block: bytes) -> None:
        assert header_of(jpeg_with(jpeg_segment(0xE1, b"Exif\0\0" + block))).orientation == 1
        assert header_of(png(4, 2, bytes(24), before=chunk(b"eXIf", block))).orientation == 1

    def test_other_segments_of_the_same_number_are_no_exif(self) -> None:
        xmp = jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
        assert header_of(jpeg_with(xmp + jpeg_segment(0xE1, b"Exif\0\0" + exif(6)))).orientation == 6


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("data", "name"),
        [
            (saved(gradient(), "GIF"), "GIF"),
            (frames("GIF", 3), "GIF"),
            (b"\0\0\0\x20ftypavif" + bytes(40), "AVIF"),
            (b"\0\0\0\x20ftypheic" + bytes(40), "HEIF"),
            (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "JPEG 2000"),
            (b"8BPS\0\1" + bytes(40), "Photoshop"),
            (b"%PDF-1.7\n" + bytes(40), "PDF"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
            (b"II+\0\x08\0\0\0" + bytes(40), "BigTIFF"),
        ],
    )
    def test_another_type_is_named_with_those_that_are_taken(self, data: bytes, name: str) -> None:
        with pytest.raises(UnsupportedMediaType, match=name) as refusal:
            header_of(data)
        assert refusal.value.extras == {"accepted": list(ACCEPTED)}

    @pytest.mark.parametrize(
        "data", [b"", b"\xff", b"hello", bytes(1000), b"RIFF\0\0\0\0WAVE", b"BMW is a car, not a picture"]
    )
    def test_what_is_no_picture_is_unreadable(self, data: bytes) -> None:
        with pytest.raises(ImageUnreadable):
            header_of(data)

    @pytest.mark.parametrize("count", [2, 7])
    def test_an_animation_is_told_with_its_frames(self, count: int) -> None:
        for data in (frames("PNG", count), frames("WEBP", count), frames("TIFF", count)):
            with pytest.raises(ImageAnimated) as refusal:
                header_of(data)
            assert refusal.value.extras == {"frames": count}

    def test_a_png_of_one_frame_is_a_picture(self) -> None:
        control = chunk(b"acTL", struct.pack(">II", 1, 0))
        assert header_of(png(4, 2, bytes(24), before=control)).frames == 1

    def test_directories_that_follow_each_other_in_a_ring_end(self) -> None:
        data = tiff_block((256, 3, 1, 4), (257, 3, 1, 2), (262, 3, 1, 1), (258, 3, 1, 8))
        assert header_of(data[:-4] + struct.pack("<I", 8)).frames == 1

    def test_a_pixel_bomb_costs_nothing(self) -> None:
        bombs = [
            SIGNATURE + png_header(100_000, 100_000) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND"),
            SIGNATURE + png_header(2**31 - 1, 1) + chunk(b"IDAT") + chunk(b"IEND"),
            riff((b"VP8X", bytes(4) + b"\xff\xff\xff\xff\xff\xff")),
            b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 2**31 - 1, 2**31 - 1, 1, 24) + bytes(24),
            tiff_block((256, 4, 1, 2**32 - 1), (257, 4, 1, 2**32 - 1), (262, 3, 1, 1), (258, 3, 1, 8)),
            b"\xff\xd8" + jpeg_segment(0xC0, struct.pack(">BHHB", 8, 65_535, 65_535, 3)) + jpeg_segment(0xDA, b""),
        ]
        tracemalloc.start()
        try:
            for data in bombs:
                with pytest.raises(ImageTooLarge):
                    header_of(data)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()

    def test_a_text_bomb_is_not_inflated(self) -> None:
        bomb = chunk(b"iTXt", b"record\0\1\0\0\0" + zlib.compress(bytes(200_000_000), 9))
        data = png(4, 2, bytes(24), before=bomb)
        tracemalloc.start()
        try:
            assert header_of(data).width == 4
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        ("width", "height", "limit"),
        [(MAX_SIDE_PX + 1, 1, MAX_SIDE_PX), (1, MAX_SIDE_PX + 1, MAX_SIDE_PX), (8000, 5001, MAX_PIXELS)],
    )
    def test_the_limit_that_was_passed_is_named(self, width: int, height: int, limit: int) -> None:
        with pytest.raises(ImageTooLarge, match=f"{width} x {height}") as refusal:
            header_of(SIGNATURE + png_header(width, height) + chunk(b"IDAT") + chunk(b"IEND"))
        assert refusal.value.extras == {"limit_px": limit}

    @pytest.mark.parametrize(("width", "height"), [(MAX_SIDE_PX, 2000), (8000, 5000)])
    def test_up_to_the_limit_a_picture_is_taken(self, width: int, height: int) -> None:
        data = SIGNATURE + png_header(width, height) + chunk(b"IDAT") + chunk(b"IEND")
        assert (header_of(data).width, header_of(data).height) == (width, height)

    @pytest.mark.parametrize(
        "data",
        [
            SIGNATURE + png_header(0, 5) + chunk(b"IDAT") + chunk(b"IEND"),
            SIGNATURE + png_header(5, 5, depth=3) + chunk(b"IDAT") + chunk(b"IEND"),
            SIGNATURE + png_header(5, 5, color=5) + chunk(b"IDAT") + chunk(b"IEND"),
            SIGNATURE + png_header(5, 5)[:-1] + b"\0" + chunk(b"IDAT") + chunk(b"IEND"),
            SIGNATURE + png_header(5, 5) + chunk(b"IEND"),
            SIGNATURE + chunk(b"IDAT") + chunk(b"IEND"),
            SIGNATURE + png_header(5, 5) + struct.pack(">I4s", 2**31 - 1, b"tEXt"),
            b"\xff\xd8\xff\xd9",
            b"\xff\xd8" + jpeg_segment(0xDA, b""),
            b"\xff\xd8" + jpeg_segment(0xC0, b"\x08\0") + jpeg_segment(0xDA, b""),
            b"\xff\xd8" + jpeg_segment(0xC0, struct.pack(">BHHB", 12, 8, 8, 3)) + jpeg_segment(0xDA, b""),
            b"\xff\xd8" + jpeg_segment(0xC0, struct.pack(">BHHB", 8, 8, 8, 2)) + jpeg_segment(0xDA, b""),
            b"\xff\xd8" + jpeg_segment(0xC0, struct.pack(">BHHB", 8, 0, 8, 3)) + jpeg_segment(0xDA, b""),
            b"\xff\xd8" + jpeg_segment(0xC3, struct.pack(">BHHB", 8, 8, 8, 3)) + jpeg_segment(0xDA, b""),
            b"\xff\xd8" + 2 * jpeg_segment(0xC0, struct.pack(">BHHB", 8, 8, 8, 3)) + jpeg_segment(0xDA, b""),
            b"\xff\xd8\xff\xe0\0\1" + bytes(20),
            riff(),
            riff((b"VP8 ", bytes(10))),
            riff((b"VP8L", bytes(10))),
            riff((b"ALPH", bytes(10))),
            b"BM" + bytes(12) + struct.pack("<IiiHH", 41_000, 4, 4, 1, 24),
            b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 4, 4, 2, 24),
            b"BM" + bytes(12) + struct.pack("<IiiHH", 40, -4, 4, 1, 24),
            tiff_block((256, 3, 1, 4)),
            tiff_block((256, 3, 1, 4), (257, 3, 1, 2), (262, 3, 1, 1), (258, 3, 1, 32)),
            tiff_block((256, 3, 2, 4), (257, 3, 1, 2), (262, 3, 1, 1), (258, 3, 1, 8)),
            tiff_block((256, 5, 1, 2**31), (257, 3, 1, 2), (262, 3, 1, 1), (258, 3, 1, 8)),
        ],
    )
    def test_a_damaged_header_is_unreadable(self, data: bytes) -> None:
        with pytest.raises(ImageUnreadable):
            header_of(data)

    @pytest.mark.parametrize("name", ["png", "webp", "webp-lossless", "webp-extended"])
    def test_no_cut_of_a_file_that_says_its_length_goes_unnoticed(self, name: str) -> None:
        data = WHOLE[name]
        for length in range(len(data)):
            with pytest.raises(ImageUnreadable):
                header_of(data[:length])

    @pytest.mark.parametrize("name", WHOLE)
    @settings(max_examples=120, deadline=None)
    @given(data=st.data())
    def test_whatever_is_damaged_the_answer_is_a_header_or_a_problem(self, name: str, data: st.DataObject) -> None:
        damaged = bytearray(WHOLE[name])
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, min(len(damaged), 200) - 1))
            damaged[place] = data.draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF, damaged[place] ^ 1)))
        cut = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
        with contextlib.suppress(ImageUnreadable, ImageAnimated, ImageTooLarge, UnsupportedMediaType):
            header = header_of(bytes(damaged[:cut]))
            assert 0 < header.width * header.height <= MAX_PIXELS

    @pytest.mark.parametrize(
        "data",
        [
            SIGNATURE + png_header(5, 5) + 100_000 * chunk(b"tEXt"),
            b"\xff\xd8" + 100_000 * jpeg_segment(0xFE, b""),
            riff(*100_000 * [(b"ANMF", b"")]),
        ],
    )
    def test_a_file_of_endless_parts_ends(self, data: bytes) -> None:
        started = time.process_time()
        with pytest.raises(ImageUnreadable, match="65536"):
            header_of(data)
        assert time.process_time() - started < 5.0
