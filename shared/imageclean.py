"""A picture file reduced to what its pixels need: no EXIF, no XMP, no comment, no thumbnail reaches a decoder.

Metadata is where decoders stumble, warn and hide second pictures. Without it every file takes the same way through the
library, whatever a camera or an attacker wrote beside the pixels.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from shared.imageheader import MAX_PIXELS, MAX_SIDE_PX
from shared.imageparts import (
    PNG_SIGNATURE,
    Part,
    TiffDirectories,
    TiffField,
    jpeg_segments,
    png_chunks,
    read_at,
)
from shared.problems import ImageUnreadable

PROFILE_LIMIT_BYTES = 4 << 20  # the largest printer profiles have 2 to 3 MiB
SCAN_LIMIT = 100  # of a progressive JPEG; encoders write about ten, and each costs a pass over all pixels
_TIFF_VALUES_LIMIT = 1 << 18  # more strips or tiles than any picture within MAX_PIXELS has

_PIECE_BYTES = 1 << 18
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
# TIFF 6.0 tags that say how pixels lie, and of how many values each is at most.
_TIFF_ONE = frozenset({256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323})
_TIFF_FEW = frozenset({258, 338, 339, 530})
_TIFF_MANY = frozenset({273, 279, 320, 324, 325, 347, 532})
# None, CCITT 1D/G3/G4, LZW, JPEG, Deflate (two numbers), PackBits.
_TIFF_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946})


@dataclass(frozen=True)
class Essence:
    """What pixels need.

    data     a file of the same type
    profile  its ICC profile
    clear    the colour, scaled to 8 bits a sample, that a PNG without palette calls transparent
    """

    data: bytes
    profile: bytes | None = None
    clear: tuple[int, ...] | None = None


def essence(stream: BinaryIO, media_type: str) -> Essence:
    """Reduce a file that `imageheader.probe` accepted. Raises `ImageUnreadable` for what only a closer look shows."""
    if media_type == "image/png":
        return _png(stream)
    if media_type == "image/jpeg":
        return _jpeg(stream)
    if media_type == "image/tiff":
        return _tiff(stream)
    stream.seek(0)
    return Essence(stream.read())  # BMP has no metadata, and those of WebP stay unread


def inflated(data: bytes, limit: int) -> bytes | None:
    """`data` inflated, or None where that is damaged, unfinished or longer than `limit` bytes."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, limit)
    except zlib.error:
        return None
    return plain if inflater.eof else None


def checked_chunk(stream: BinaryIO, chunk: Part) -> bytes:
    """A PNG chunk with its length, kind and CRC around it. Raises `ImageUnreadable` unless the CRC is right."""
    whole = read_at(stream, chunk.offset - 8, chunk.length + 12)
    if zlib.crc32(whole[4:-4]) != int.from_bytes(whole[-4:], "big"):
        raise ImageUnreadable(f"The chunk {chunk.kind!r} of the PNG is damaged.")
    return whole


def _png(stream: BinaryIO) -> Essence:
    kept = [PNG_SIGNATURE]
    profile: bytes | None = None
    clear: tuple[int, ...] | None = None
    depth = color = missing = 0
    inflater = zlib.decompressobj()
    for chunk in png_chunks(stream):
        if chunk.kind == b"IHDR":
            width, height, depth, color, *_, interlaced = struct.unpack(">IIBBBBB", chunk.read(stream))
            missing = _png_bytes(width, height, depth * _PNG_SAMPLES[color], interlaced=bool(interlaced))
        if chunk.kind in _PNG_KEPT or (chunk.kind == b"tRNS" and color == 3):
            kept.append(checked_chunk(stream, chunk))
            if chunk.kind == b"IDAT":
                missing -= _inflated_length(inflater, kept[-1][8:-4], missing)
        elif chunk.kind == b"tRNS" and chunk.length == (2 if color == 0 else 6) and color in (0, 2):
            clear = _eight_bits(checked_chunk(stream, chunk)[8:-4], depth)
        elif chunk.kind == b"iCCP" and profile is None:
            name, _, rest = chunk.read(stream, PROFILE_LIMIT_BYTES).partition(b"\0")
            profile = inflated(rest[1:], PROFILE_LIMIT_BYTES) if len(name) < 80 else None
    if missing > 0:  # a decoder would fill up with black
        raise ImageUnreadable(f"The PNG lacks {missing} bytes of its pixels.")
    return Essence(b"".join(kept), profile, clear)


def _png_bytes(width: int, height: int, bits: int, *, interlaced: bool) -> int:
    """How long the rows of a PNG are, inflated, with one filter byte each (ISO 15948, 8.2 and 9.1)."""
    total = 0
    for x, y, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        total += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    return total


def _inflated_length(inflater: zlib._Decompress, data: bytes, limit: int) -> int:
    """How many bytes `data` inflates to; counting ends soon after `limit`, and memory stays bounded."""
    total = 0
    try:
        while data and total < limit:
            total += len(inflater.decompress(data, _PIECE_BYTES))
            data = inflater.unconsumed_tail
    except zlib.error as error:
        raise ImageUnreadable("The pixels of the PNG are damaged.") from error
    return total


def _eight_bits(samples: bytes, depth: int) -> tuple[int, ...]:
    """Big-endian 16-bit samples of a picture with `depth` bits as its pixels come out: the high byte, or spread."""
    values = [int.from_bytes(samples[i : i + 2], "big") for i in range(0, len(samples), 2)]
    if depth == 16:
        return tuple(value >> 8 for value in values)
    largest = 2**depth - 1
    return tuple((value & largest) * 255 // largest for value in values)


def _jpeg(stream: BinaryIO) -> Essence:
    kept = [b"\xff\xd8"]
    scan = 0
    profiles: dict[int, bytes] = {}
    for segment in jpeg_segments(stream):
        kind = segment.kind[0]
        start = segment.read(stream, 14)
        scan = segment.offset + segment.length
        if kind == 0xE2 and start.startswith(b"ICC_PROFILE\0") and len(start) == 14:
            profiles.setdefault(start[12], segment.read(stream)[14:])
        # JFIF and Adobe say how colours are coded; the other applications' segments, and comments, do not matter.
        if not (0xE0 <= kind <= 0xEF or kind == 0xFE) or start.startswith((b"JFIF\0", b"Adobe")):
            kept.append(b"\xff" + read_at(stream, segment.offset - 3, segment.length + 3))
    stream.seek(scan)
    scans = stream.read()
    if scans.count(b"\xff\xda") >= SCAN_LIMIT:
        raise ImageUnreadable(f"The JPEG has more than {SCAN_LIMIT} scans.")
    profile = b"".join(content for _, content in sorted(profiles.items())) or None
    return Essence(b"".join((*kept, scans)), profile)


def _tiff(stream: BinaryIO) -> Essence:
    directories = TiffDirectories(stream)
    fields, _ = directories.fields(directories.first)
    width, length = (directories.number(fields.get(tag), 1) for tag in (322, 323))
    if max(width, length) > MAX_SIDE_PX or width * length > MAX_PIXELS:
        raise ImageUnreadable(f"A tile of the TIFF is {width} x {length} px.")
    compression = directories.number(fields.get(259), 1)
    if compression not in _TIFF_COMPRESSIONS:
        raise ImageUnreadable(f"The TIFF is compressed by method {compression}, which is not read.")
    kept = [field for _, field in sorted(fields.items()) if _is_kept(field)]
    stream.seek(0)
    data = bytearray(stream.read())
    if sum(field.length for field in kept) > len(data):
        raise ImageUnreadable("The fields of the TIFF overlap.")
    entries = b"".join(bytes(data[field.entry : field.entry + 12]) for field in kept)
    directory = len(kept).to_bytes(2, directories.order) + entries + bytes(4)  # 0: no further directory
    data[directories.first : directories.first + len(directory)] = directory
    profile = fields.get(34675)
    if profile is None or profile.length > PROFILE_LIMIT_BYTES:
        return Essence(bytes(data))
    return Essence(bytes(data), read_at(stream, profile.offset, profile.length))


def _is_kept(field: TiffField) -> bool:
    if field.tag in _TIFF_ONE:
        limit = 1
    elif field.tag in _TIFF_FEW:
        limit = 8
    elif field.tag in _TIFF_MANY:
        limit = _TIFF_VALUES_LIMIT
    else:
        return False
    if field.count > limit:
        raise ImageUnreadable(f"Tag {field.tag} of the TIFF has {field.count} values.")
    return True
