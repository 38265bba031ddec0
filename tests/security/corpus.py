"""Bad files, made by code: each with the answers that are right for it.

Pictures go to an operation that decodes them, archives to one that reads them with their manifest.
"""

from __future__ import annotations

import gzip
import io
import json
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from shared.imageparts import PART_LIMIT
from tests.shared.pictures import (
    SIGNATURE,
    chunk,
    exif,
    jpeg_segment,
    jpeg_with,
    png_header,
    riff,
    saved,
    tiff_block,
)

OK = "ok"
UNREADABLE = frozenset({"image_unreadable"})
REFUSED = frozenset({"image_unreadable", "image_too_large", "image_animated", "unsupported_media_type"})
EITHER = REFUSED | {OK}
FOREIGN = frozenset({"unsupported_media_type"})
TOO_LARGE = frozenset({"image_too_large"})
UNSAFE = frozenset({"archive_unsafe"})
FINE = frozenset({OK})


@dataclass(frozen=True)
class BadFile:
    """One file. `right` holds the codes that may answer it, `OK` for a result, and `result` what that must hold."""

    name: str
    data: bytes
    right: frozenset[str]
    result: dict[str, Any] = field(default_factory=dict)
    file_name: str = "a.png"
    media_type: str = "image/png"


def photograph() -> Image.Image:
    """48 x 32 px, neither flat nor noise."""
    y, x = np.mgrid[:32, :48]
    pixels = np.stack([x * 5, y * 7, (x * y) % 256], axis=2).astype(np.uint8)
    return Image.fromarray(pixels)


def drawn(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    return saved(image or photograph(), kind, **options)


def png_of(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND")


def originals() -> dict[str, bytes]:
    return {
        "png": drawn("PNG"),
        "jpeg": drawn("JPEG", quality=90),
        "progressive": drawn("JPEG", quality=90, progressive=True),
        "webp": drawn("WEBP", lossless=True),
        "tiff": drawn("TIFF"),
        "tiff-lzw": drawn("TIFF", compression="tiff_lzw"),
        "bmp": drawn("BMP"),
        "gif": drawn("GIF"),
    }


def truncations(count: int = 24) -> Iterator[BadFile]:
    """Each format cut at many places. A JPEG without its last two bytes has all its pixels, and so have some TIFFs."""
    for kind, data in originals().items():
        places = sorted({*range(min(9, len(data))), *np.linspace(9, len(data) - 1, count).astype(int).tolist()})
        for place in places:
            right = UNREADABLE
            if kind == "gif" and place >= 4:
                right = FOREIGN
            elif kind in ("jpeg", "progressive") and place >= len(data) - 2:
                right = UNREADABLE | {OK}
            yield BadFile(f"{kind} cut at {place}", data[:place], right)


def flipped_bits(count: int = 16) -> Iterator[BadFile]:
    """One bit wrong. The checksums of a PNG find it; elsewhere it may be a wrong pixel."""
    rng = np.random.default_rng(7)
    for kind, data in originals().items():
        if kind == "gif":
            continue
        for place in sorted(set(rng.integers(0, len(data), count).tolist())):
            wrong = bytearray(data)
            wrong[place] ^= 1 << int(rng.integers(8))
            right = REFUSED if kind == "png" and place < len(data) - 12 else EITHER
            yield BadFile(f"{kind} with a bit of byte {place} flipped", bytes(wrong), right)


def bombs() -> Iterator[BadFile]:
    flat = zlib.compress(bytes(10_000_000))
    yield BadFile("png of 60,000 px", png_of(png_header(60_000, 60_000), chunk(b"IDAT", flat)), TOO_LARGE)
    yield BadFile("png of 2**31 - 1 px", png_of(png_header(2**31 - 1, 2**31 - 1), chunk(b"IDAT", flat)), TOO_LARGE)
    yield BadFile("png of one long row", png_of(png_header(20_001, 1), chunk(b"IDAT", flat)), TOO_LARGE)
    yield BadFile("png of no width", png_of(png_header(0, 9), chunk(b"IDAT", flat)), UNREADABLE)
    yield BadFile("png with more pixels than it says", png_of(png_header(8, 8), chunk(b"IDAT", flat)), EITHER)
    yield BadFile(
        "png with fewer pixels than it says", png_of(png_header(6000, 6000), chunk(b"IDAT", flat)), UNREADABLE
    )
    many = [chunk(b"tEXt", b"k\0v")] * PART_LIMIT
    yield BadFile("png of endless chunks", png_of(png_header(8, 8), *many, chunk(b"IDAT", flat)), UNREADABLE)
    jpeg = drawn("JPEG")
    frame = jpeg.index(b"\xff\xc0")
    huge = jpeg[: frame + 5] + struct.pack(">HH", 65_535, 65_535) + jpeg[frame + 9 :]
    yield BadFile("jpeg of 65,535 px", huge, TOO_LARGE)
    other = jpeg[: frame + 5] + struct.pack(">HH", 4000, 4000) + jpeg[frame + 9 :]
    yield BadFile("jpeg that says more pixels than it has", other, UNREADABLE | {OK})  # gray below, as everywhere
    scans = drawn("JPEG", progressive=True)
    start = scans.index(b"\xff\xda")
    yield BadFile("jpeg of endless scans", scans[:-2] + scans[start:-2] * 60 + b"\xff\xd9", UNREADABLE)
    webp = b"\x2f" + struct.pack("<I", 16_382 | 16_382 << 14) + bytes(40)
    yield BadFile("webp of 16,383 px", riff((b"VP8L", webp)), TOO_LARGE)
    bmp = bytearray(drawn("BMP"))
    bmp[18:26] = struct.pack("<ii", 2**31 - 1, -(2**31))
    yield BadFile("bmp of 2**31 px", bytes(bmp), TOO_LARGE)
    for tag, what in ((322, "tile"), (257, "height"), (256, "width")):
        entries = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 8)]
        entries = [entry for entry in entries if entry[0] != tag] + [(tag, 4, 1, 2**31)]
        yield BadFile(f"tiff with a {what} of 2**31", tiff_block(*sorted(entries)), REFUSED)


def unusual() -> Iterator[BadFile]:
    """Not wrong: each has its defined result."""
    size = {"width": 48, "height": 32}
    image = photograph()
    gray16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    yield BadFile("16 bits", drawn("PNG", gray16), FINE, {**size, "gray": True})
    yield BadFile("16 bits, tiff", drawn("TIFF", gray16), FINE, {**size, "gray": True})
    yield BadFile("CMYK jpeg", drawn("JPEG", image.convert("CMYK")), FINE, size)
    yield BadFile("CMYK tiff", drawn("TIFF", image.convert("CMYK")), FINE, size)
    yield BadFile("1 bit", drawn("PNG", image.convert("1")), FINE, size)
    yield BadFile("palette", drawn("PNG", image.quantize(16)), FINE, size)
    yield BadFile("alpha", drawn("PNG", image.convert("RGBA")), FINE, {**size, "has_alpha": True})
    yield BadFile("gray and alpha", drawn("PNG", image.convert("LA")), FINE, {**size, "has_alpha": True})
    yield BadFile("interlaced", drawn("PNG", image, interlace=1), FINE, size)
    yield BadFile("one pixel", drawn("PNG", image.resize((1, 1))), FINE, {"width": 1, "height": 1})
    yield BadFile("float tiff", drawn("TIFF", Image.fromarray(np.ones((4, 4), np.float32))), REFUSED)
    yield BadFile("32-bit tiff", drawn("TIFF", Image.fromarray(np.ones((4, 4), np.int32))), REFUSED)
    lossless = bytearray(drawn("JPEG"))
    lossless[lossless.index(b"\xff\xc0") + 1] = 0xC3
    yield BadFile("lossless jpeg", bytes(lossless), UNREADABLE)
    for kind in ("PNG", "WEBP", "TIFF", "GIF"):
        others = [image.transpose(Image.Transpose.ROTATE_180)]
        right = FOREIGN if kind == "GIF" else frozenset({"image_animated"})
        yield BadFile(f"two frames, {kind}", drawn(kind, image, save_all=True, append_images=others), right)


def metadata() -> Iterator[BadFile]:
    """What stands beside the pixels is hostile; the pixels are good, so they are read and nothing else is."""
    size = {"width": 48, "height": 32}
    plain = drawn("PNG")
    ihdr, rest = plain[:33], plain[33:]

    def with_chunk(kind: bytes, content: bytes) -> bytes:
        return ihdr + chunk(kind, content) + rest

    bomb = zlib.compress(bytes(50_000_000))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    profiles = {
        "that is a bomb": bomb,
        "that is noise": zlib.compress(bytes(range(256)) * 4),
        "cut short": zlib.compress(srgb[:200]),
        "of another space": zlib.compress(lab),
        "not packed": srgb,
        "with a wrong length inside": zlib.compress(struct.pack(">I", 2**31) + srgb[4:]),
        "whose tags lie outside": zlib.compress(
            srgb[:132] + struct.pack(">III", 0x72545243, 2**31, 2**31) + srgb[144:]
        ),
    }
    for name, packed in profiles.items():
        yield BadFile(f"profile {name}", with_chunk(b"iCCP", b"p\0\0" + packed), FINE, size)
    yield BadFile("profile without a name", with_chunk(b"iCCP", b"\0" + bomb[:100]), FINE, size)
    exifs = {
        "orientation 9": exif(9),
        "orientation 0": exif(0),
        "nothing": b"",
        "noise": bytes(range(256)),
        "values outside": tiff_block((274, 4, 2**30, 2**31)),
        "a directory outside": b"II*\0" + struct.pack("<I", 2**32 - 1),
        "a directory in itself": b"II*\0" + struct.pack("<I", 0),
        "65,535 entries": b"II*\0" + struct.pack("<IH", 8, 65_535) + bytes(300),
    }
    for name, block in exifs.items():
        yield BadFile(f"EXIF with {name}, png", with_chunk(b"eXIf", block), FINE, size)
        segment = jpeg_segment(0xE1, b"Exif\0\0" + block)
        yield BadFile(f"EXIF with {name}, jpeg", jpeg_with(segment, photograph()), FINE, size)
    turned = with_chunk(b"eXIf", exif(6))
    yield BadFile("EXIF that turns", turned, FINE, {"width": 32, "height": 48})
    texts = {
        "zTXt bomb": (b"zTXt", b"k\0\0" + bomb),
        "iTXt bomb": (b"iTXt", b"k\0\1\0\0\0" + bomb),
        "iTXt that is no text": (b"iTXt", b"k\0\0\0\0\0\xff\xfe"),
        "iTXt without an end": (b"iTXt", b"k" * 90),
        "tEXt with a script": (b"tEXt", b"Comment\0<script>alert(1)</script>"),
        "unknown critical chunk": (b"ABCD", bytes(100)),
        "sBIT of a wrong length": (b"sBIT", bytes(40)),
        "gAMA of zero": (b"gAMA", bytes(4)),
        "cHRM of zeros": (b"cHRM", bytes(32)),
        "acTL that counts no frame": (b"acTL", bytes(8)),
        "tRNS of a wrong length": (b"tRNS", bytes(5)),
        "pHYs of nothing": (b"pHYs", b""),
    }
    for name, (kind, content) in texts.items():
        yield BadFile(name, with_chunk(kind, content), FINE, size)
    yield BadFile("acTL of many frames", with_chunk(b"acTL", struct.pack(">II", 2**32 - 1, 0)), REFUSED)
    for name, segment in {
        "a comment with a script": jpeg_segment(0xFE, b"<script>alert(1)</script>"),
        "XMP of entities": jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<!DOCTYPE x [<!ENTITY a 'b'>]>"),
        "a profile in part 7 of 3": jpeg_segment(0xE2, b"ICC_PROFILE\0\7\3" + srgb[:100]),
        "a thumbnail of noise": jpeg_segment(0xE0, b"JFXX\0\x10" + bytes(range(256))),
        "Photoshop blocks": jpeg_segment(0xED, b"Photoshop 3.0\x008BIM" + bytes(200)),
    }.items():
        yield BadFile(f"jpeg with {name}", jpeg_with(segment, photograph()), FINE, size)
    loop = tiff_block((256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1))
    yield BadFile("tiff whose directory follows itself", loop[:-4] + struct.pack("<I", 8), REFUSED)
    for compression in (0, 6, 34_925, 50_000, 65_535):
        block = tiff_block((256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1))
        yield BadFile(f"tiff packed by method {compression}", block, UNREADABLE)


def foreign() -> Iterator[BadFile]:
    """Other types, wrong names, and files that are two things at once."""
    plain, size = drawn("PNG"), {"width": 48, "height": 32}
    for name, start in {
        "pdf": b"%PDF-1.7\n",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        "xml with an entity": b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><x>&a;</x>",
        "heif": b"\0\0\0\x18ftypheic" + bytes(16),
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
        "jpeg xl": b"\xff\x0a" + bytes(20),
        "photoshop": b"8BPS\0\1" + bytes(20),
        "icon": b"\0\0\1\0\1\0" + bytes(20),
        "qoi": b"qoif" + bytes(20),
        "big tiff": b"II+\0" + bytes(20),
    }.items():
        yield BadFile(name, start + bytes(100), FOREIGN)
    for name, data in {
        "nothing": b"",
        "one byte": b"\x89",
        "zeros": bytes(5000),
        "noise": np.random.default_rng(1).bytes(5000),
        "a page": b"<!doctype html><script>alert(1)</script>",
        "a program": b"\x7fELF" + bytes(500),
        "a script": b"#!/bin/sh\nrm -rf /\n",
        "a pickle": b"\x80\x04\x95\x1e\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93.",
        "a zip": zipped({"a.png": plain}),
        "a gzip": gzip.compress(plain),
    }.items():
        yield BadFile(name, data, UNREADABLE)
    yield BadFile("png named jpg", plain, FINE, size, "a.jpg", "image/jpeg")
    yield BadFile("jpeg named html", drawn("JPEG"), FINE, size, "a.html", "text/html")
    yield BadFile("png of an unknown type", plain, FINE, size, "a", "x/y")
    yield BadFile("png with a path for a name", plain, FINE, size, "../../../etc/cron.d/x")
    yield BadFile("png with a wild name", plain, FINE, size, "a\u202egnp.exe")
    yield BadFile("page named png", b"<html></html>", UNREADABLE)
    yield BadFile("png and zip", plain + zipped({"x": b"y"}), FINE, size)
    yield BadFile("png and page", plain + b"<script>alert(1)</script>", FINE, size)
    yield BadFile("png and png", plain + plain, FINE, size)
    yield BadFile("jpeg and pdf", jpeg_with(jpeg_segment(0xFE, b"%PDF-1.7\n"), photograph()), FINE, size)
    yield BadFile("gif and zip", drawn("GIF") + zipped({"x": b"y"}), FOREIGN)


def zipped(files: dict[str, bytes], **fields: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for attribute, value in fields.items():
                setattr(info, attribute, value)
            archive.writestr(info, data)
    return stream.getvalue()


def tarred(files: dict[str, bytes], **fields: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for attribute, value in fields.items():
                setattr(info, attribute, value)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def archives() -> Iterator[BadFile]:
    """Limits of the operation: 100 files, 1 MiB unpacked."""
    plain = drawn("PNG")
    good = {"a/1.png": plain, "b/2.png": plain}
    packers: dict[str, Callable[[dict[str, bytes]], bytes]] = {
        "zip": zipped,
        "tar": tarred,
        "tar.gz": lambda files: gzip.compress(tarred(files)),
    }
    paths = ("/etc/passwd", "../x", "a/../../x", "a\\..\\x", "C:/x", "C:\\x", "a//b", "./../x", "x\nb", "a/./b")
    for kind, pack in packers.items():
        yield BadFile(f"{kind}: good", pack(good), FINE, {"entries": 2, "damaged_files": 0}, f"a.{kind}")
        for path in paths:
            yield BadFile(f"{kind}: path {path!r}", pack({"a.png": plain, path: plain}), UNSAFE)
        yield BadFile(f"{kind}: too many files", pack({f"{i}.txt": b"x" for i in range(101)}), UNSAFE)
        yield BadFile(f"{kind}: too many bytes", pack({"a": bytes(2**20), "b": b"1"}), UNSAFE)
        yield BadFile(f"{kind}: empty", pack({}), UNSAFE)
        yield BadFile(f"{kind}: hidden files alone", pack({".a": b"x", "__MACOSX/b": b"y"}), UNSAFE)
        yield BadFile(f"{kind}: an archive inside", pack({"a.zip": zipped(good)}), FINE, {"files": 1})
        noise = {name: np.random.default_rng(3).bytes(20_000) for name in good}
        whole = pack(noise).rstrip(b"\0")  # behind a tar lies any number of zeros
        for part in (0.1, 0.4, 0.7, 0.95):
            yield BadFile(f"{kind}: cut at {part:.0%}", whole[: int(part * len(whole))], UNSAFE)
    for name, kind_bits in (("link", stat.S_IFLNK), ("pipe", stat.S_IFIFO), ("device", stat.S_IFCHR)):
        data = zipped({"l": b"/etc/passwd"}, external_attr=(kind_bits | 0o777) << 16, create_system=3)
        yield BadFile(f"zip: {name}", data, UNSAFE)
    for name, type_flag in (
        ("link", tarfile.SYMTYPE),
        ("hard link", tarfile.LNKTYPE),
        ("pipe", tarfile.FIFOTYPE),
        ("device", tarfile.CHRTYPE),
        ("disk", tarfile.BLKTYPE),
    ):
        yield BadFile(f"tar: {name}", tarred({"l": b""}, type=type_flag, linkname="/etc/passwd"), UNSAFE)
    yield BadFile("zip: bomb", zipped({"bomb": bytes(100_000_000)}), UNSAFE)
    yield BadFile("tar.gz: bomb", gzip.compress(tarred({"bomb": bytes(30_000_000)})), UNSAFE)
    yield BadFile("gzip: bomb of no tar", gzip.compress(bytes(30_000_000)), UNSAFE)
    lying = zipped({"a": bytes(500_000)})
    place = lying.index(b"PK\1\2") + 24
    yield BadFile(
        "zip: wrong size", lying[:place] + struct.pack("<I", 7) + lying[place + 4 :], FINE, {"damaged_files": 1}
    )
    flag = lying.index(b"PK\1\2") + 8
    yield BadFile("zip: encrypted", lying[:flag] + b"\1\0" + lying[flag + 2 :], UNSAFE)
    broken = bytearray(zipped({"a/1.png": plain, "b": np.random.default_rng(0).bytes(400)}))
    broken[-400] ^= 0xFF
    yield BadFile("zip: one damaged file", bytes(broken), UNSAFE | {OK})
    yield BadFile("not an archive", plain, UNSAFE)
    yield BadFile("no bytes", b"", UNSAFE)


def manifests() -> Iterator[BadFile]:
    """A wrong line is the problem of that line; a manifest that is none is the archive's."""
    plain = drawn("PNG")
    right = json.dumps({"path": "1.png", "label": "x"}).encode()
    lines = {
        "not JSON": b"{",
        "a list": b"[]",
        "a number": b"7",
        "no text": b"\xff\xfe",
        "no path": b'{"label": "x"}',
        "a path that leads out": b'{"path": "../1.png"}',
        "an absolute path": b'{"path": "/1.png"}',
        "no such file": b'{"path": "2.png"}',
        "a path that is a number": b'{"path": 7}',
        "a label that is a list": b'{"path": "1.png", "label": []}',
        "a path and a modality": b'{"path": "1.png", "audio": "1.png"}',
        "only nulls": b'{"audio": null}',
        "deep nesting": b"[" * 100_000,
        "a huge number": b'{"path": ' + b"9" * 5000 + b"}",
    }
    for name, line in lines.items():
        data = zipped({"1.png": plain, "manifest.jsonl": right + b"\n" + line + b"\n"})
        yield BadFile(f"manifest: {name}", data, FINE, {"entries": 2, "wrong_entries": 1})
    yield BadFile("manifest: empty", zipped({"1.png": plain, "manifest.jsonl": b"\n\n"}), UNSAFE)
    many = zipped({"1.png": plain, "manifest.jsonl": (right + b"\n") * 20_001})
    yield BadFile("manifest: too many lines", many, frozenset({"archive_unsafe"}))


def pictures() -> list[BadFile]:
    return [*truncations(), *flipped_bits(), *bombs(), *unusual(), *metadata(), *foreign()]


def all_archives() -> list[BadFile]:
    return [*archives(), *manifests()]
