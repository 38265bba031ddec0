"""The parts that picture files are made of: found by their headers, without decoding a pixel or inflating anything.

Each walker takes a seekable stream and yields where a part's content lies (`offset`, `length`), so that a caller reads
only what it needs. A part that does not lie whole in the file, or more parts than any honest file has, is
`ImageUnreadable`.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from shared.problems import ImageUnreadable

PART_LIMIT = 65_536  # a PNG of 64 MiB in the usual pieces of 8 KiB has 8,192
_JUNK_LIMIT_BYTES = 4096  # between two segments of a JPEG; decoders pass over it
_EXIF_LIMIT_BYTES = 1 << 20

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Bytes of one value, by TIFF field type (TIFF 6.0, section 2).
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


@dataclass(frozen=True)
class Part:
    """One chunk or segment. `kind` is the name in the file: b"IHDR", b"VP8X", or the marker byte of a JPEG."""

    kind: bytes
    offset: int
    length: int

    def read(self, stream: BinaryIO, limit: int | None = None) -> bytes:
        """The content, or its first `limit` bytes."""
        return read_at(stream, self.offset, self.length if limit is None else min(limit, self.length))


def read_at(stream: BinaryIO, offset: int, count: int) -> bytes:
    """Exactly `count` bytes from `offset` on."""
    stream.seek(offset)
    data = stream.read(count)
    if len(data) != count:
        raise ImageUnreadable(f"The file ends at byte {offset + len(data)}, within a part of {count} bytes.")
    return data


def _size_of(stream: BinaryIO) -> int:
    return stream.seek(0, io.SEEK_END)


def _inside(part: Part, size: int) -> Part:
    if part.offset + part.length > size:
        raise ImageUnreadable(f"The file ends at byte {size}, within the part {part.kind!r}.")
    return part


def png_chunks(stream: BinaryIO) -> Iterator[Part]:
    """The chunks of a PNG from IHDR to IEND, both included."""
    size, offset = _size_of(stream), len(PNG_SIGNATURE)
    for _ in range(PART_LIMIT):
        length, kind = struct.unpack(">I4s", read_at(stream, offset, 8))
        part = _inside(Part(kind, offset + 8, length), size - 4)  # a CRC follows
        yield part
        if kind == b"IEND":
            return
        offset = part.offset + length + 4
    raise ImageUnreadable(f"The PNG has more than {PART_LIMIT} chunks.")


def jpeg_segments(stream: BinaryIO) -> Iterator[Part]:
    """The segments of a JPEG up to its first scan: `kind` is the marker's second byte, the last one b"\\xda" (SOS)."""
    size, offset, junk = _size_of(stream), 2, 0
    for _ in range(PART_LIMIT):
        marker = read_at(stream, offset, 2)
        while marker[0] != 0xFF or marker[1] in (0x00, 0xFF):  # fill bytes are allowed, other bytes happen
            junk, offset = junk + 1, offset + 1
            if junk > _JUNK_LIMIT_BYTES:
                raise ImageUnreadable(
                    f"Between the segments of the JPEG lie more than {_JUNK_LIMIT_BYTES} other bytes."
                )
            marker = read_at(stream, offset, 2)
        kind, offset = marker[1:], offset + 2
        if kind == b"\x01" or b"\xd0" <= kind <= b"\xd8":  # no content
            continue
        if kind == b"\xd9":
            raise ImageUnreadable("The JPEG ends before its first scan.")
        length = int.from_bytes(read_at(stream, offset, 2), "big")
        if length < 2:
            raise ImageUnreadable(f"A segment of the JPEG has the length {length}.")
        yield _inside(Part(kind, offset + 2, length - 2), size)
        if kind == b"\xda":
            return
        offset += length
    raise ImageUnreadable(f"The JPEG has more than {PART_LIMIT} segments.")


def webp_chunks(stream: BinaryIO) -> Iterator[Part]:
    """The chunks of a WebP, on the level of the file."""
    end = 8 + int.from_bytes(read_at(stream, 4, 4), "little")
    if end > _size_of(stream):
        raise ImageUnreadable(f"The WebP should have {end} bytes and has {_size_of(stream)}.")
    offset = 12
    for _ in range(PART_LIMIT):
        if offset + 8 > end:
            return
        kind, length = struct.unpack("<4sI", read_at(stream, offset, 8))
        yield _inside(Part(kind, offset + 8, length), end)
        offset += 8 + length + length % 2
    raise ImageUnreadable(f"The WebP has more than {PART_LIMIT} chunks.")


@dataclass(frozen=True)
class TiffField:
    """One entry of a directory. `entry` is where its 12 bytes lie, `offset` where its `count` values do."""

    tag: int
    type: int
    count: int
    entry: int
    offset: int

    @property
    def length(self) -> int:
        return self.count * _TIFF_SIZES[self.type]


class TiffDirectories:
    """The directories (IFDs) of a TIFF, or of the EXIF block that other formats carry."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._size = _size_of(stream)
        start = read_at(stream, 0, 8)
        if start[:4] not in (b"II*\0", b"MM\0*"):
            raise ImageUnreadable("The file does not begin as a TIFF does.")
        self.order: Literal["little", "big"] = "little" if start[:1] == b"I" else "big"
        self.first = self.to_int(start[4:])

    def to_int(self, data: bytes) -> int:
        return int.from_bytes(data, self.order)

    def fields(self, offset: int) -> tuple[dict[int, TiffField], int]:
        """The directory at `offset` by tag, and where the next one lies (0: nowhere).

        Of two equal tags the first counts. A field of an unknown type is passed over; one whose values leave the file
        is refused.
        """
        count = self.to_int(read_at(self._stream, offset, 2))
        table = read_at(self._stream, offset + 2, 12 * count + 4)
        found: dict[int, TiffField] = {}
        for i in range(count):
            entry = table[12 * i : 12 * i + 12]
            tag, kind, values = self.to_int(entry[:2]), self.to_int(entry[2:4]), self.to_int(entry[4:8])
            if kind not in _TIFF_SIZES:
                continue
            place = offset + 2 + 12 * i
            inline = values * _TIFF_SIZES[kind] <= 4
            field = TiffField(tag, kind, values, place, place + 8 if inline else self.to_int(entry[8:]))
            if field.offset + field.length > self._size:
                raise ImageUnreadable(f"The values of tag {tag} leave the file.")
            found.setdefault(tag, field)
        return found, self.to_int(table[-4:])

    def number(self, field: TiffField | None, default: int) -> int:
        """The single value of a BYTE, SHORT or LONG field, or `default` where there is no field."""
        if field is None:
            return default
        if field.count != 1 or field.type not in (1, 3, 4):
            raise ImageUnreadable(f"Tag {field.tag} should hold one whole number.")
        return self.to_int(read_at(self._stream, field.offset, field.length))


def exif_orientation(data: bytes) -> int:
    """How a picture lies, from its EXIF block: 1 (upright) to 8 (EXIF 2.32, tag 274).

    A block that cannot be read says nothing, as in every viewer: 1.
    """
    data = data.removeprefix(b"Exif\0\0")[:_EXIF_LIMIT_BYTES]
    try:
        directories = TiffDirectories(io.BytesIO(data))
    except ImageUnreadable:
        return 1
    start = directories.first + 2
    count = directories.to_int(data[start - 2 : start])
    for entry in (data[place : place + 12] for place in range(start, start + 12 * count, 12)):
        # Not through `fields`: one bad entry must not hide the others.
        if [directories.to_int(entry[a:b]) for a, b in ((0, 2), (2, 4), (4, 8))] == [274, 3, 1]:
            return valid_orientation(directories.to_int(entry[8:10]))
    return 1


def valid_orientation(value: int) -> int:
    """`value`, or 1 where it is none of the eight that there are."""
    return value if 1 <= value <= 8 else 1
