"""What a picture file says of itself: type, size, frames. Decides what is accepted before anything is decoded.

Reads headers only, a few hundred bytes and the places of the other parts: a bomb costs nothing here. Pure Python, so
that an API process needs neither numpy nor an image library.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from shared.imageparts import (
    PNG_SIGNATURE,
    Part,
    TiffDirectories,
    exif_orientation,
    jpeg_segments,
    png_chunks,
    read_at,
    valid_orientation,
    webp_chunks,
)
from shared.problems import ImageAnimated, ImageTooLarge, ImageUnreadable, UnsupportedMediaType

MAX_PIXELS = 40_000_000  # 120 MB as RGB
MAX_SIDE_PX = 20_000
ACCEPTED = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff")

_EXIF_LIMIT_BYTES = 1 << 20
_FRAME_LIMIT = 1000  # where counting ends

# Colour type and bit depth of a PNG (ISO 15948, table 11.1) as a mode.
_PNG_MODES = {
    **dict.fromkeys(((0, 2), (0, 4), (0, 8)), "L"),
    **dict.fromkeys(((3, 1), (3, 2), (3, 4), (3, 8)), "P"),
    (0, 1): "1",
    (0, 16): "I;16",
    (2, 8): "RGB",
    (2, 16): "RGB;16",
    (4, 8): "LA",
    (4, 16): "LA;16",
    (6, 8): "RGBA",
    (6, 16): "RGBA;16",
}
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_TIFF_MODES = {0: "L", 1: "L", 2: "RGB", 3: "P", 5: "CMYK", 6: "RGB"}

# Pictures that are known and not accepted: their first bytes, and what to call them.
_FOREIGN = (
    (0, b"GIF8", "GIF"),
    (4, b"ftyp", "HEIF, AVIF or video"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"II+\0", "BigTIFF"),
    (0, b"MM\0+", "BigTIFF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\1\0", "icon"),
    (0, b"qoif", "QOI"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "SVG or XML"),
)


@dataclass(frozen=True)
class ImageHeader:
    """An accepted picture. Width and height in pixels, upright: after `orientation` (EXIF, 1..8) was undone.

    `mode` is how pixels lie in the file, in the words of Pillow, with `;16` for 16-bit samples. `frames` is 1.
    """

    media_type: str
    width: int
    height: int
    frames: int
    mode: str
    orientation: int = 1


def probe(stream: BinaryIO) -> ImageHeader:
    """Read the header of a picture and leave the stream at its start.

    Raises `UnsupportedMediaType` for a known type that is not accepted, `ImageUnreadable` for no picture or a damaged
    header, `ImageAnimated` for more than one frame, and `ImageTooLarge` beyond `MAX_PIXELS` or `MAX_SIDE_PX`.
    """
    header = _read_header(stream)
    stream.seek(0)
    if header.width < 1 or header.height < 1:
        raise ImageUnreadable(f"The picture is {header.width} x {header.height} px.")
    if header.frames > 1:
        raise ImageAnimated(f"The picture has {header.frames} frames.", frames=header.frames)
    check_size(header.width, header.height)
    return header


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raise `ImageTooLarge` for a picture of more than `max_pixels`, or with a side of more than `MAX_SIDE_PX`."""
    if max(width, height) > MAX_SIDE_PX:
        raise ImageTooLarge(
            f"The picture is {width} x {height} px; a side may have {MAX_SIDE_PX}.", limit_px=MAX_SIDE_PX
        )
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"The picture is {width} x {height} px; it may have {max_pixels} in all.", limit_px=max_pixels
        )


def _read_header(stream: BinaryIO) -> ImageHeader:
    stream.seek(0)
    start = stream.read(16)
    if start.startswith(b"\xff\xd8\xff"):
        return _jpeg(stream)
    if start.startswith(PNG_SIGNATURE):
        return _png(stream)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _webp(stream)
    if start.startswith((b"II*\0", b"MM\0*")):
        return _tiff(stream)
    if start.startswith(b"BM"):
        return _bmp(stream)
    for offset, signature, name in _FOREIGN:
        if start[offset:].startswith(signature):
            raise UnsupportedMediaType(f"{name} files are not accepted.", accepted=list(ACCEPTED))
    raise ImageUnreadable("The file is empty." if not start else "The file is no picture of a known type.")


def _upright(media_type: str, width: int, height: int, mode: str, orientation: int, frames: int = 1) -> ImageHeader:
    if orientation >= 5:  # these four lie on their side
        width, height = height, width
    return ImageHeader(media_type, width, height, frames, mode, orientation)


def _jpeg(stream: BinaryIO) -> ImageHeader:
    frame: bytes | None = None
    orientation = 1
    for segment in jpeg_segments(stream):
        kind = segment.kind[0]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # SOF; the three are DHT, JPG, DAC
            if frame is not None or kind not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
                raise ImageUnreadable("The JPEG is lossless, hierarchical or damaged.")
            frame = segment.read(stream, 6)
        elif kind == 0xE1 and orientation == 1:
            block = segment.read(stream)
            if block.startswith(b"Exif\0\0"):
                orientation = exif_orientation(block)
    if frame is None or len(frame) < 6:
        raise ImageUnreadable("The JPEG has no frame header.")
    bits, height, width, components = struct.unpack(">BHHB", frame)
    if bits != 8 or components not in _JPEG_MODES:
        raise ImageUnreadable(f"The JPEG has {components} components of {bits} bits.")
    return _upright("image/jpeg", width, height, _JPEG_MODES[components], orientation)


def _png(stream: BinaryIO) -> ImageHeader:
    frames, orientation, has_pixels = 1, 1, False
    header: tuple[int, int, int, int] | None = None
    for chunk in png_chunks(stream):
        if header is None:
            header = _png_header(stream, chunk)
        elif chunk.kind == b"acTL" and not has_pixels:  # behind the pixels it means nothing
            frames = int.from_bytes(chunk.read(stream, 4), "big")
        elif chunk.kind == b"eXIf":
            orientation = exif_orientation(chunk.read(stream, _EXIF_LIMIT_BYTES))
        has_pixels = has_pixels or chunk.kind == b"IDAT"
    if header is None or not has_pixels:
        raise ImageUnreadable("The PNG has no pixels.")
    width, height, depth, color = header
    return _upright("image/png", width, height, _PNG_MODES[color, depth], orientation, max(frames, 1))


def _png_header(stream: BinaryIO, chunk: Part) -> tuple[int, int, int, int]:
    if chunk.kind != b"IHDR" or chunk.length != 13:
        raise ImageUnreadable("The PNG does not begin with its header.")
    fields = chunk.read(stream)
    if zlib.crc32(b"IHDR" + fields) != int.from_bytes(read_at(stream, chunk.offset + 13, 4), "big"):
        raise ImageUnreadable("The header of the PNG is damaged.")
    width, height, depth, color = struct.unpack(">IIBB", fields[:10])
    if (color, depth) not in _PNG_MODES:
        raise ImageUnreadable(f"A PNG of colour type {color} and {depth} bits does not exist.")
    return width, height, depth, color


def _webp(stream: BinaryIO) -> ImageHeader:
    size: tuple[int, int] | None = None
    mode, orientation, frames = "RGB", 1, 0
    for chunk in webp_chunks(stream):
        if chunk.kind == b"ANMF":
            frames += 1
        elif chunk.kind == b"EXIF":
            orientation = exif_orientation(chunk.read(stream, _EXIF_LIMIT_BYTES))
        elif size is None:  # the first chunk says it
            start = chunk.read(stream, 10)
            if chunk.kind == b"VP8X" and len(start) == 10:
                mode = "RGBA" if start[0] & 0x10 else "RGB"
                size = int.from_bytes(start[4:7], "little") + 1, int.from_bytes(start[7:10], "little") + 1
            elif chunk.kind == b"VP8 " and start[3:6] == b"\x9d\x01\x2a" and len(start) == 10:
                size = (
                    int.from_bytes(start[6:8], "little") & 0x3FFF,
                    int.from_bytes(start[8:10], "little") & 0x3FFF,
                )
            elif chunk.kind == b"VP8L" and start[:1] == b"\x2f" and len(start) >= 5:
                bits = int.from_bytes(start[1:5], "little")
                mode = "RGBA" if bits >> 28 & 1 else "RGB"
                size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            else:
                raise ImageUnreadable("The header of the WebP is damaged.")
    if size is None:
        raise ImageUnreadable("The WebP holds no picture.")
    return _upright("image/webp", *size, mode, orientation, max(frames, 1))


def _bmp(stream: BinaryIO) -> ImageHeader:
    length = int.from_bytes(read_at(stream, 14, 4), "little")
    if length == 12:
        width, height, planes, bits = struct.unpack("<HHHH", read_at(stream, 18, 8))
    elif 40 <= length <= 256:
        width, height, planes, bits = struct.unpack("<iiHH", read_at(stream, 18, 12))
    else:
        raise ImageUnreadable(f"A BMP header of {length} bytes does not exist.")
    if planes != 1 or bits not in (1, 4, 8, 16, 24, 32):
        raise ImageUnreadable(f"A BMP of {planes} planes and {bits} bits does not exist.")
    return ImageHeader("image/bmp", width, abs(height), 1, "P" if bits <= 8 else "RGB")  # < 0: first row on top


def _tiff(stream: BinaryIO) -> ImageHeader:
    directories = TiffDirectories(stream)
    fields, following = directories.fields(directories.first)
    width, height = (directories.number(fields.get(tag), 0) for tag in (256, 257))
    bits = fields.get(258)
    depth = int.from_bytes(read_at(stream, bits.offset, 2), directories.order) if bits and bits.type == 3 else 1
    mode = _TIFF_MODES.get(directories.number(fields.get(262), -1))
    if mode is None or depth not in (1, 2, 4, 8, 16):
        raise ImageUnreadable(f"A TIFF of this kind, with samples of {depth} bits, is not read.")
    if depth == 16:
        mode = "I;16" if mode == "L" else f"{mode};16"
    seen = {directories.first}
    while following and following not in seen and len(seen) < _FRAME_LIMIT:
        seen.add(following)
        _, following = directories.fields(following)
    orientation = valid_orientation(directories.number(fields.get(274), 1))
    mode = "1" if mode == "L" and depth == 1 else mode
    return _upright("image/tiff", width, height, mode, orientation, len(seen))
