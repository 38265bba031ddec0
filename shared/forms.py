"""The body of a request as the fields of its model: multipart parts or JSON, with every file stored on the way."""

from __future__ import annotations

import base64
import binascii
import io
import json
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, BinaryIO, Literal, Union, get_args, get_origin

from fastapi import Request as HttpRequest
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from shared import ids
from shared.files import FileStore, Owner, StoredFile
from shared.http import invalid_request
from shared.problems import BadSyntax, BodyTooLarge, InvalidRequest, StoredFileNotFound, UnsupportedMediaType
from shared.types import File, Request

INLINE_LIMIT_BYTES = 2 * 2**20  # a file inside JSON; larger ones go as parts, or to /v1/files first
MAX_PARTS = 1000
FIELD_LIMIT_BYTES = 2**20
COPY_BYTES = 2**20


@dataclass
class Intake:
    """Where the files of one request go, and who may see those that it names."""

    files: FileStore
    owner: Owner
    ttl_s: float
    may_see: Callable[[StoredFile], bool]
    key: bytes | bytearray | None = None
    stored: list[StoredFile] = field(default_factory=list)

    async def take(self, stream: BinaryIO, kind: type[File], declared: str) -> dict[str, Any]:
        """Store what `stream` holds, after a look at its head. The facts that a `File` is made of."""
        return await run_in_threadpool(self._take, stream, kind, declared)

    def _take(self, stream: BinaryIO, kind: type[File], declared: str) -> dict[str, Any]:
        media_type, width, height = kind.inspect(stream, declared)
        stream.seek(0)
        with self.files.create(self.owner, media_type, self.ttl_s, key=self.key) as writer:
            while chunk := stream.read(COPY_BYTES):
                writer.write(chunk)
            stored = writer.commit(width=width, height=height)
        self.stored.append(stored)
        return _facts(stored)

    async def find(self, file_id: str) -> dict[str, Any]:
        """The facts of a stored file. Raises `StoredFileNotFound`, also where the caller may not see it."""
        stored = await run_in_threadpool(self.files.stat, file_id)
        if not self.may_see(stored):
            raise StoredFileNotFound(f"There is no file {file_id}.")
        if stored.owner.lease is None:
            await run_in_threadpool(self.files.extend, file_id, self.ttl_s)  # or it could end before the job begins
        return _facts(stored)

    async def discard(self) -> None:
        """Delete what was stored for this request."""
        for stored in self.stored:
            await run_in_threadpool(self.files.delete, stored.id)
        self.stored.clear()


def _facts(stored: StoredFile) -> dict[str, Any]:
    return {
        "file": stored.id,
        "media_type": stored.media_type,
        "bytes": stored.bytes,
        "sha256": stored.sha256,
        "width": stored.width,
        "height": stored.height,
    }


async def read(http: HttpRequest, model: type[Request], intake: Intake) -> Request:
    """The request of this model that `http` carries.

    Raises `InvalidRequest`, `BadSyntax`, `UnsupportedMediaType`, and what the files' types find wrong with them. What
    was stored by then is in `intake.stored`: the caller discards it.
    """
    content_type = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        async with http.form(max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=FIELD_LIMIT_BYTES) as form:
            raw = await _from_parts(form, model, intake)
    elif content_type == "application/json":
        raw = await _from_json(await http.body(), model, intake)
    else:
        accepted = ["multipart/form-data", "application/json"]
        sent = f"The body is {content_type}." if content_type else "The request has no Content-Type."
        raise UnsupportedMediaType(sent, accepted=accepted)
    try:
        request = model.model_validate(raw)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False, include_context=False)) from error
    request.check()
    return request


async def _from_json(body: bytes, model: type[Request], intake: Intake) -> Any:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadSyntax(f"The body is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise BadSyntax("The body is JSON, but not an object with the request's fields.")
    return await _resolve(model, value, intake, "")


async def _from_parts(form: FormData, model: type[Request], intake: Intake) -> dict[str, Any]:
    raw: dict[str, Any] = {}
    for name in form:
        declared = model.model_fields.get(name)
        if declared is None:
            known = ", ".join(model.model_fields)
            raise InvalidRequest(
                f"There is no field {name!r}; the fields are: {known}.",
                errors=[{"place": name, "message": f"not a field; the fields are: {known}", "kind": "extra_forbidden"}],
            )
        kind, repeats = _plain(declared.annotation)
        values = [await _from_part(part, kind, intake, name) for part in form.getlist(name)]
        if repeats:
            raw[name] = values[0] if len(values) == 1 and isinstance(values[0], list) else values
        elif len(values) > 1:
            raise InvalidRequest(
                f"The field {name!r} is given {len(values)} times.",
                errors=[{"place": name, "message": "takes one part", "kind": "repeated"}],
            )
        else:
            raw[name] = values[0]
    return raw


async def _from_part(part: UploadFile | str, kind: Any, intake: Intake, name: str) -> Any:
    is_file = isinstance(kind, type) and issubclass(kind, File)
    if isinstance(part, UploadFile):
        if is_file:
            return await intake.take(part.file, kind, part.content_type or "application/octet-stream")
        part = (await part.read(FIELD_LIMIT_BYTES)).decode(errors="replace")
    elif is_file and not part.lstrip().startswith("{"):
        raise InvalidRequest(
            f"The field {name!r} is a file: send it as a part with a file name (curl -F {name}=@picture.png).",
            errors=[{"place": name, "message": "is text, not a file", "kind": "file_expected"}],
        )
    if get_origin(kind) is Literal:
        return next((value for value in get_args(kind) if str(value) == part), part)
    if kind is str or (not is_file and not _is_structured(kind)):
        return part
    try:
        value = json.loads(part)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"The field {name!r} is not JSON: {error}.", errors=[{"place": name, "message": str(error), "kind": "json"}]
        ) from error
    if isinstance(value, list) and not is_file:
        return [await _resolve(kind, item, intake, name) for item in value]
    return await _resolve(kind, value, intake, name)


async def _resolve(kind: Any, value: Any, intake: Intake, place: str) -> Any:
    """`value` with every `{"file": …}` and `{"data": …}` in it replaced by the facts of the stored file."""
    kind, repeats = _plain(kind)
    if repeats and isinstance(value, list):
        return [await _resolve(kind, item, intake, f"{place}.{i}") for i, item in enumerate(value)]
    if not (isinstance(kind, type) and isinstance(value, dict)):
        return value
    if issubclass(kind, File):
        return await _file(kind, value, intake, place)
    if issubclass(kind, BaseModel):
        fields = kind.model_fields
        return {
            name: await _resolve(fields[name].annotation, item, intake, f"{place}.{name}".lstrip("."))
            if name in fields
            else item
            for name, item in value.items()
        }
    return value


async def _file(kind: type[File], value: dict[str, Any], intake: Intake, place: str) -> dict[str, Any]:
    if isinstance(name := value.get("file"), str) and name.startswith("file_"):
        return await intake.find(name)
    if isinstance(text := value.get("data"), str):
        if len(text) > INLINE_LIMIT_BYTES * 4 // 3 + 4:
            raise BodyTooLarge(
                f"{place}: a file inside JSON may have {INLINE_LIMIT_BYTES} bytes.", limit_bytes=INLINE_LIMIT_BYTES
            )
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidRequest(
                f"{place}: the data are not base64.",
                errors=[{"place": place, "message": str(error), "kind": "base64"}],
            ) from error
        return await intake.take(io.BytesIO(content), kind, str(value.get("media_type", "application/octet-stream")))
    right = f'{{"file": "{ids.random_id("file")}"}} or {{"data": "<base64>"}}'
    raise InvalidRequest(
        f"{place}: a file is written as {right}.", errors=[{"place": place, "message": right, "kind": "file_expected"}]
    )


def _plain(annotation: Any) -> tuple[Any, bool]:
    """An annotation without `Annotated` and `None`, and whether it was a list of what is returned."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            some = [part for part in get_args(annotation) if part is not types.NoneType]
            if len(some) != 1:
                return annotation, False
            annotation = some[0]
        elif origin is list:
            return _plain(get_args(annotation)[0])[0], True
        else:
            return annotation, False


def _is_structured(kind: Any) -> bool:
    return get_origin(kind) is dict or kind is dict or (isinstance(kind, type) and issubclass(kind, BaseModel))
