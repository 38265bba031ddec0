"""Fields that travel as files, and the bases of what operations take and give.

A caller sends a file as a multipart part, or names one in JSON; the API stores it and puts its facts into the request.
In the worker the same object holds the decoded content, loaded before the device thread sees it. An operation makes an
output with `Image.of(...)`; the worker encodes and stores it afterwards. This module imports neither torch nor numpy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, model_validator
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, to_jsonable_python

from shared import archives, ids, imageheader
from shared.problems import InvalidRequest, UnsupportedMediaType

if TYPE_CHECKING:
    from shared.images import Picture

FILE_MARK = "x-tenfold-file"  # in a JSON schema: this is a file, of these media types
DOCUMENT_LIMIT_BYTES = 4 * 2**20  # a JSON file larger than this is no record, label list or the like

ModelRef = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}/[a-z0-9-]{1,63}(@[1-9][0-9]{0,8})?$", max_length=140)
]
"""`method/name` or `method/name@version`."""


class Request(BaseModel):
    """Base of what an operation takes. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def check(self) -> None:
        """Raise a `Problem` for what the types cannot say. Runs before anything is queued."""


class Response(BaseModel):
    """Base of what an operation gives."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class File(BaseModel):
    """A stored file, by reference."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    media_types: ClassVar[tuple[str, ...]] = ()
    """What an input of this type may be; empty: anything."""

    file: str = Field(pattern=ids.pattern("file"))
    media_type: str
    bytes: int
    sha256: str
    """Of the bytes as they were sent."""
    width: int | None = None
    """Pixels, after EXIF orientation; pictures only."""
    height: int | None = None

    _content: Any = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _is_accepted(self) -> Self:
        if self.media_types and self.media_type not in self.media_types:
            raise UnsupportedMediaType(f"The file is {self.media_type}.", accepted=list(self.media_types))
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        if handler.mode == "serialization":
            schema = handler.resolve_ref_schema(handler(core))
            schema["properties"] = {
                "file": schema["properties"]["file"],
                "url": {"type": "string"},
                **schema["properties"],
            }
            return schema
        return {
            "title": cls.__name__,
            "description": "A stored file by its name, or up to 2 MiB of base64.",
            FILE_MARK: list(cls.media_types),
            "oneOf": [
                {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "pattern": ids.pattern("file")}},
                },
                {
                    "type": "object",
                    "required": ["data"],
                    "properties": {
                        "data": {"type": "string", "contentEncoding": "base64"},
                        "media_type": {"type": "string"},
                    },
                },
            ],
        }

    @classmethod
    def inspect(cls, stream: BinaryIO, declared: str) -> tuple[str, int | None, int | None]:
        """Media type, width and height of bytes that a caller sent, from their head alone. Raises a `Problem`."""
        return declared, None, None

    @property
    def url(self) -> str:
        return f"/v1/files/{self.file}"

    def public(self) -> dict[str, Any]:
        """The object that a result holds."""
        return {"file": self.file, "url": self.url, **self.model_dump(exclude={"file"}, exclude_none=True)}

    def hold(self, content: Any) -> None:
        """Keep what `shared.content` decoded from the stored bytes."""
        self._content = content

    @property
    def content(self) -> Any:
        """What was decoded: `bytes` of a plain file."""
        return self._loaded()

    def _loaded(self) -> Any:
        if self._content is None:
            raise RuntimeError(f"{self.file or type(self).__name__} was not loaded")
        return self._content

    @classmethod
    def _unstored(cls, media_type: str, content: Any) -> Self:
        new = cast(Self, cls.model_construct(file="", media_type=media_type, bytes=0, sha256=""))
        new._content = content
        return new


class Image(File):
    """A picture: JPEG, PNG, WebP, BMP or TIFF, one frame."""

    media_types: ClassVar[tuple[str, ...]] = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff")

    @classmethod
    def inspect(cls, stream: BinaryIO, declared: str) -> tuple[str, int | None, int | None]:
        header = imageheader.probe(stream)
        return header.media_type, header.width, header.height

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        if self.width is None or self.height is None:
            raise RuntimeError(f"{self.file} has no size")
        return self.width, self.height

    _texts: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @property
    def picture(self) -> Picture:
        """The decoded pixels."""
        picture: Picture = self._loaded()
        return picture

    @property
    def texts(self) -> Mapping[str, str]:
        """Text chunks inside a PNG, by keyword: those that came, or those to be written."""
        return self._texts

    def hold_texts(self, texts: Mapping[str, str]) -> None:
        """Keep the text chunks that `shared.content` found."""
        self._texts = dict(texts)

    @classmethod
    def of(cls, picture: Picture, media_type: str = "image/png", *, texts: Mapping[str, str] | None = None) -> Self:
        """A picture to give back. `texts` are written into a PNG's iTXt chunks."""
        new = cls._unstored(media_type, picture)
        new._texts = dict(texts or {})
        height, width = picture.pixels.shape[:2]
        return new.model_copy(update={"width": width, "height": height})


class Document(File):
    """A JSON object as a file."""

    media_types: ClassVar[tuple[str, ...]] = ("application/json",)

    @classmethod
    def inspect(cls, stream: BinaryIO, declared: str) -> tuple[str, int | None, int | None]:
        parse_document(stream)
        return "application/json", None, None

    @property
    def data(self) -> dict[str, Any]:
        """The parsed object."""
        data: dict[str, Any] = self._loaded()
        return data

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """A document to give back."""
        return cls._unstored("application/json", dict(data))


class Archive(File):
    """Many pictures or samples in one file: a zip, or a tar with or without gzip (`shared.archives`)."""

    media_types: ClassVar[tuple[str, ...]] = (
        "application/zip",
        "application/x-tar",
        "application/gzip",
        "application/x-gzip",
        "application/x-zip-compressed",
        "application/octet-stream",
    )

    @classmethod
    def inspect(cls, stream: BinaryIO, declared: str) -> tuple[str, int | None, int | None]:
        media_type = archives.kind_of(stream)
        if media_type is None:
            raise UnsupportedMediaType("The file is no zip and no tar.", accepted=list(cls.media_types[:3]))
        return media_type, None, None

    @property
    def opened(self) -> archives.Archive:
        """What is in it, checked as a whole. It stays open as long as the job runs."""
        opened: archives.Archive = self._loaded()
        return opened


def parse_document(stream: BinaryIO) -> dict[str, Any]:
    """The JSON object in `stream`. Raises `InvalidRequest`."""
    text = stream.read(DOCUMENT_LIMIT_BYTES + 1)
    try:
        if len(text) > DOCUMENT_LIMIT_BYTES:
            raise ValueError(f"is larger than {DOCUMENT_LIMIT_BYTES} bytes")
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError("is not a JSON object")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The document cannot be read: {error}.") from error
    return data


def files_in(value: Any) -> Iterator[File]:
    """Every file inside a model, list, tuple or mapping, depth first."""
    if isinstance(value, File):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from files_in(getattr(value, name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from files_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from files_in(item)


def stored_json(value: Any, store: Callable[[File], File]) -> Any:
    """`value` as JSON, with every file that is not stored yet replaced by what `store` returns for it."""
    if isinstance(value, File):
        return (value if value.file else store(value)).public()
    if isinstance(value, BaseModel):
        return {name: stored_json(getattr(value, name), store) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(name): stored_json(item, store) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [stored_json(item, store) for item in value]
    return to_jsonable_python(value)
