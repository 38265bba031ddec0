"""What may be given where a file is wanted, and how it is opened for sending."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, cast, runtime_checkable


@runtime_checkable
class PilImage(Protocol):
    """A picture of Pillow, known by its shape: Pillow is not imported for it."""

    @property
    def mode(self) -> str:
        """As `RGB`."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""

    def getexif(self) -> Any:
        """Metadata, of which only the orientation is looked at."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Encode."""


@runtime_checkable
class Ndarray(Protocol):
    """An array of numpy, known by its shape: numpy is not imported for it."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Where the numbers lie."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA."""

    @property
    def dtype(self) -> Any:
        """uint8, 0..255."""


FileInput: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | PilImage | Ndarray
"""A path, bytes, a file opened in binary mode, a picture of Pillow, or an array (H, W[, 1|3|4]) uint8 of numpy."""

_MEDIA_TYPES = {
    ".bmp": "image/bmp",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".png": "image/png",
    ".tar": "application/x-tar",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
    ".zip": "application/zip",
}
_HEADS = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
}
_ANY_TYPE = "application/octet-stream"  # the service looks at the bytes themselves


class Upload:
    """A file to send. It is opened anew for every try, by whoever does the I/O.

    suffix  of the name it is sent under, as `.png`; the caller's own file name stays with the caller
    """

    def __init__(self, opened: Callable[[], BinaryIO], *, media_type: str | None = None, suffix: str = "") -> None:
        self._opened = opened
        self.media_type = media_type or _ANY_TYPE
        self.suffix = suffix

    def open(self) -> BinaryIO:
        """The bytes from their beginning. The caller closes what this returns."""
        return self._opened()


def upload_of(value: FileInput, media_type: str | None = None) -> Upload:
    """What a caller gave, ready to be opened. Raises `TypeError` or `ValueError` for what cannot be sent."""
    if isinstance(value, str | os.PathLike):
        return _path(Path(value), media_type)
    if isinstance(value, bytes | bytearray | memoryview):
        content = bytes(value)
        return Upload(lambda: io.BytesIO(content), media_type=media_type or _kind(content))
    if isinstance(value, PilImage):  # before arrays: a picture of Pillow has an array interface, too
        return Upload(_once(lambda: _png(value)), media_type="image/png", suffix=".png")
    if isinstance(value, Ndarray):
        picture = _picture(value)
        return Upload(_once(lambda: _png(picture)), media_type="image/png", suffix=".png")
    if callable(getattr(value, "read", None)):
        return _file(value, media_type)
    raise TypeError(
        f"{type(value).__name__} cannot be sent as a file; give a path, bytes, a file opened in binary mode, "
        "a picture of Pillow or an array of numpy"
    )


def _path(path: Path, media_type: str | None) -> Upload:
    suffix = path.suffix.lower()
    known = _MEDIA_TYPES.get(suffix)
    return Upload(lambda: path.open("rb"), media_type=media_type or known, suffix=suffix if known else "")


def _kind(content: bytes) -> str | None:
    """The media type that the first bytes of a picture tell."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((media_type for head, media_type in _HEADS.items() if content.startswith(head)), None)


def _file(file: Any, media_type: str | None) -> Upload:
    if isinstance(file, io.TextIOBase):
        raise TypeError("the file is open in text mode; open it in binary mode")
    if _can_seek(file):
        start = file.tell()
        return Upload(lambda: cast(BinaryIO, _Rest(file, start)), media_type=media_type)
    return Upload(_once(file.read), media_type=media_type)  # a pipe is read once, but may have to be sent again


def _can_seek(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if callable(seekable) else hasattr(file, "seek") and hasattr(file, "tell")


class _Rest(io.RawIOBase):
    """A caller's file from where it stood when it was given. Closing this leaves the file open."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        super().__init__()
        self._file, self._start = file, start
        file.seek(start)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = self._file.seek(offset + self._start if whence == os.SEEK_SET else offset, whence)
        return max(0, place - self._start)  # it may have stood behind its end

    def tell(self) -> int:
        return self._file.tell() - self._start


def _once(content: Callable[[], bytes]) -> Callable[[], BinaryIO]:
    """Open what is made at the first opening, and kept for the tries after it."""
    kept: list[bytes] = []

    def opened() -> BinaryIO:
        if not kept:
            kept.append(content())
        return io.BytesIO(kept[0])

    return opened


def _png(picture: PilImage) -> bytes:
    """A lossless copy, upright, without metadata."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(cast(Any, picture))
    if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        upright = upright.convert("RGB")
    out = io.BytesIO()
    upright.save(out, "PNG", compress_level=1)  # the way to the service is seldom slower than stronger compression
    return out.getvalue()


def _picture(array: Ndarray) -> PilImage:
    """The picture that an array holds."""
    shape, dtype = tuple(array.shape), str(array.dtype)
    if dtype != "uint8":
        raise ValueError(f"an array of {dtype} has no agreed range; give uint8, 0..255")
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))) or 0 in shape:
        raise ValueError(f"an array of shape {shape} is no picture; give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("an array is sent as PNG, which Pillow writes: pip install pillow") from error
    flat: Any = array
    picture: PilImage = Image.fromarray(flat[:, :, 0] if len(shape) == 3 and shape[2] == 1 else flat)
    return picture
