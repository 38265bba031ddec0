"""What files hold, decoded and encoded: the worker's half of `shared.types`, which itself imports no numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

from shared import images
from shared.archives import open_archive
from shared.types import Archive, Document, File, Image, parse_document


def load(file: File, stream: BinaryIO, scratch: Path | None = None) -> None:
    """Decode the bytes of an input into its object. Raises the `Problem` of what is wrong with them.

    An archive is opened, and goes on reading from `stream`; what gzip packed lies in the folder `scratch` meanwhile.
    """
    match file:
        case Image():
            file.hold(images.decode(stream))
            if file.media_type == "image/png":
                stream.seek(0)
                file.hold_texts(images.png_text(stream))
        case Document():
            file.hold(parse_document(stream))
        case Archive():
            file.hold(open_archive(stream, scratch=scratch))
        case _:
            file.hold(stream.read())


def encode(file: File) -> bytes:
    """The bytes of an output that an operation made."""
    match file:
        case Image():
            return images.encode(file.picture, file.media_type, text=file.texts)
        case Document():
            return json.dumps(file.data, indent=1).encode()
        case _:
            content: bytes = file.content
            return content
