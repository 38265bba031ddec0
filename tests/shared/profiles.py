"""ICC profiles built byte by byte (ICC.1:2001-04, version 2), simple enough that their effect has a closed form."""

from __future__ import annotations

import struct

# The primaries of sRGB, adapted to D50 (ICC.1, annex E).
RED, GREEN, BLUE = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
WHITE = (0.9642, 1.0, 0.8249)


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _linear() -> bytes:
    return b"curv\0\0\0\0\0\0\0\0"


def profile(space: bytes, kind: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"wtpt": _xyz(WHITE), **tags}
    table, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"none", 0x02400000, kind, space, pcs)
    header += bytes(12) + b"acsp" + bytes(28) + b"".join(struct.pack(">i", round(v * 65536)) for v in WHITE)
    return header.ljust(128, b"\0") + table + body


def linear_rgb() -> bytes:
    """Linear light with the primaries of sRGB: v becomes the sRGB curve of v."""
    primaries = {b"rXYZ": _xyz(RED), b"gXYZ": _xyz(GREEN), b"bXYZ": _xyz(BLUE)}
    return profile(b"RGB ", b"mntr", b"XYZ ", {**primaries, b"rTRC": _linear(), b"gTRC": _linear(), b"bTRC": _linear()})


def linear_gray() -> bytes:
    return profile(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": _linear()})


def gray_inks() -> bytes:
    """CMYK in which every ink prints as a gray of L* = 50, and any two, or black, as black."""
    grid = b""
    for corner in range(16):
        inks = corner.bit_count()
        lightness = 255 if inks == 0 else 127.5 if inks == 1 and corner != 1 else 0  # the last channel is K
        grid += bytes([round(lightness), 128, 128])
    ramp = bytes(range(256))
    matrix = b"".join(struct.pack(">i", 65536 if i % 4 == 0 else 0) for i in range(9))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + grid + ramp * 3
    return profile(b"CMYK", b"prtr", b"Lab ", {b"A2B0": table})


def srgb_curve(value: int) -> float:
    """A linear value 0..255 on the curve of sRGB (IEC 61966-2-1)."""
    v = value / 255
    return 255 * (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055)
