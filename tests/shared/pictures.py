"""Picture files built byte by byte, whole and broken: what an encoder would not write."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import PIL.Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def saved(image: PIL.Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def gradient(width: int = 40, height: int = 30, mode: str = "RGB") -> PIL.Image.Image:
    """Every pixel different from its neighbours, no symmetry; alpha, where there is one, is never 0."""
    image = PIL.Image.new("RGB", (width, height))
    image.putdata(
        [(x * 255 // width, y * 255 // height, (3 * x + 5 * y) % 256) for y in range(height) for x in range(width)]
    )
    if mode in ("RGBA", "LA"):
        image.putalpha(image.getchannel("B").point(lambda v: 255 - v // 2))
    return image.convert(mode)


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int, depth: int = 8, color: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))


def png(
    width: int, height: int, rows: bytes, *, depth: int = 8, color: int = 2, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG of raw rows, each without its filter byte. `before` and `after` are chunks around the pixels."""
    length = len(rows) // height
    filtered = b"".join(b"\0" + rows[y * length : (y + 1) * length] for y in range(height))
    pixels = chunk(b"IDAT", zlib.compress(filtered))
    return SIGNATURE + png_header(width, height, depth, color) + before + pixels + after + chunk(b"IEND")


def tiff_block(*entries: tuple[int, int, int, int], order: str = "<") -> bytes:
    """A TIFF directory with values of at most 4 bytes: (tag, type, count, value)."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    block = start + struct.pack(f"{order}IH", 8, len(entries))
    for tag, kind, count, value in entries:
        packed = struct.pack(f"{order}HH" if kind == 3 else f"{order}I", *((value, 0) if kind == 3 else (value,)))
        block += struct.pack(f"{order}HHI", tag, kind, count) + packed
    return block + bytes(4)


def exif(orientation: int, order: str = "<") -> bytes:
    return tiff_block((271, 2, 1, 0), (274, 3, 1, orientation), order=order)


def jpeg_with(segments: bytes, image: PIL.Image.Image | None = None, **options: Any) -> bytes:
    """A JPEG with more segments right behind its start."""
    data = saved(image or gradient(), "JPEG", **options)
    return data[:2] + segments + data[2:]


def jpeg_segment(kind: int, content: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(k + struct.pack("<I", len(c)) + c + bytes(len(c) % 2) for k, c in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, offset = [], 12
    while offset < len(data):
        kind, length = struct.unpack("<4sI", data[offset : offset + 8])
        chunks.append((kind, data[offset + 8 : offset + 8 + length]))
        offset += 8 + length + length % 2
    return chunks


def frames(format: str, count: int, **options: Any) -> bytes:
    """An animation."""
    pictures = [gradient().point(lambda v, i=i: (v + 40 * i) % 256) for i in range(count)]
    return saved(pictures[0], format, save_all=True, append_images=pictures[1:], **options)
