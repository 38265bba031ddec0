"""Whether the client and a service mean the same: two JSON schemas, one of who sends and one of who reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, WithJsonSchema, create_model

Schema = Mapping[str, Any]
Side = Literal["request", "response"]

OWN_PARAMETERS = frozenset({"key", "wait_s", "idempotency_key"})  # of the client: they are no fields of the operation
OWN_FIELDS = frozenset({"guard", "job_id"})  # of the client: the job says them, not its result
FILE = "x-tenfold-file"

_Sent = Annotated[Any, WithJsonSchema({FILE: []})]


def request_schema(operation: Callable[..., Any]) -> dict[str, Any]:
    """The fields that a method's function sends, as a JSON schema."""
    hints = get_type_hints(operation)
    fields: dict[str, Any] = {}
    for name, parameter in [*inspect.signature(operation).parameters.items()][1:]:
        if name in OWN_PARAMETERS:
            continue
        kind = hints[name]
        if bytes in (choices := get_args(kind)):
            sent: Any = list[_Sent] if any(get_origin(choice) is Sequence for choice in choices) else _Sent
            kind = sent | None if type(None) in choices else sent
        required = parameter.default is inspect.Parameter.empty
        fields[name] = (kind, ... if required else parameter.default)
    model: type[BaseModel] = create_model("Sent", __config__=ConfigDict(arbitrary_types_allowed=True), **fields)
    return model.model_json_schema()


def response_schema(result: type[BaseModel]) -> dict[str, Any]:
    """What the client reads a result as, as a JSON schema."""
    return result.model_json_schema(mode="validation")


def disagreements(ours: Schema, theirs: Schema, side: Side) -> list[str]:
    """Where the two do not fit, one line each. Empty: everything that is sent can be read, and nothing is missed.

    ours    the client's; theirs the service's
    side    request: ours is sent and theirs reads it; response: the other way round
    """
    return [*_compared(_Node(ours, ours), _Node(theirs, theirs), side, "")]


@dataclass(frozen=True)
class _Node:
    """A schema inside a document that its references point into."""

    schema: Schema
    document: Schema

    def inside(self, schema: Schema) -> _Node:
        return _Node(schema, self.document)

    @property
    def resolved(self) -> _Node:
        schema = self.schema
        while "$ref" in schema:
            schema = self.document["$defs"][schema["$ref"].rpartition("/")[2]]
        return self.inside(schema)

    @property
    def choices(self) -> list[_Node]:
        """The schemas that this one is a choice of."""
        schema = self.resolved.schema
        if FILE not in schema and "anyOf" in schema:
            return [choice for part in schema["anyOf"] for choice in self.inside(part).choices]
        return [self.resolved]

    @property
    def is_nullable(self) -> bool:
        return any(choice.schema.get("type") == "null" for choice in self.choices)

    @property
    def values(self) -> list[_Node]:
        return [choice for choice in self.choices if choice.schema.get("type") != "null"]

    @property
    def kind(self) -> str:
        schema = self.schema
        if FILE in schema or {"file", "media_type", "bytes"} <= schema.get("properties", {}).keys():
            return "file"
        return str(schema.get("type", "anything"))

    @property
    def constants(self) -> set[Any] | None:
        """The values it can have, if they are listed."""
        if "const" in self.schema:
            return {self.schema["const"]}
        return set(self.schema["enum"]) if "enum" in self.schema else None


def _compared(ours: _Node, theirs: _Node, side: Side, place: str) -> Iterator[str]:
    sender, reader = (ours, theirs) if side == "request" else (theirs, ours)
    if sender.is_nullable and not reader.is_nullable and side == "response":
        yield f"{place}: may be null, which is not read"
    for sent in sender.values:
        fits = [value for value in reader.values if _reads(value.kind, sent.kind)]
        if not fits:
            yield f"{place}: is sent as {sent.kind} and read as {' or '.join(value.kind for value in reader.values)}"
            continue
        yield from _inside(*((sent, fits[0]) if side == "request" else (fits[0], sent)), side, place)


def _reads(reader: str, sender: str) -> bool:
    return reader == sender or "anything" in (reader, sender) or (reader, sender) == ("number", "integer")


def _inside(ours: _Node, theirs: _Node, side: Side, place: str) -> Iterator[str]:
    """Two values of the same kind."""
    sender, reader = (ours, theirs) if side == "request" else (theirs, ours)
    if reader.constants is not None and sender.constants != reader.constants:
        extra = sorted((sender.constants or {"anything"}) - reader.constants, key=str)
        missing = sorted(reader.constants - (sender.constants or set()), key=str) if side == "request" else []
        if extra or missing:
            yield f"{place}: values differ by {', '.join(map(str, extra + missing))}"
    if ours.kind == "array":
        yield from _compared(
            ours.inside(ours.schema.get("items", {})), theirs.inside(theirs.schema.get("items", {})), side, f"{place}[]"
        )
    elif ours.kind == "object":
        yield from _members(ours, theirs, side, place)


def _members(ours: _Node, theirs: _Node, side: Side, place: str) -> Iterator[str]:
    here, there = ours.schema.get("properties", {}), theirs.schema.get("properties", {})
    if side == "request" and not here and there:
        return  # a mapping, whose names are the caller's own affair
    for name in sorted(here.keys() - there.keys() - (OWN_FIELDS if not place else set())):
        yield f"{place}.{name}: the service does not have it"
    for name in sorted(there.keys() - here.keys()):
        yield f"{place}.{name}: the client does not have it"
    must_here, must_there = set(ours.schema.get("required", ())), set(theirs.schema.get("required", ()))
    for name in sorted(here.keys() & there.keys()):
        where = f"{place}.{name}"
        if side == "request" and (name in must_here) != (name in must_there):
            yield f"{where}: is required by the {'client' if name in must_here else 'service'} alone"
        if side == "response" and name in must_here and name not in must_there:
            yield f"{where}: may be absent, which is not read"
        default = here[name].get("default")
        if side == "request" and default is not None and default != there[name].get("default"):
            yield f"{where}: defaults to {default!r} and to {there[name].get('default')!r}"
        yield from _compared(ours.inside(here[name]), theirs.inside(there[name]), side, where)
    more_here, more_there = ours.schema.get("additionalProperties"), theirs.schema.get("additionalProperties")
    if isinstance(more_here, dict) and isinstance(more_there, dict):
        yield from _compared(ours.inside(more_here), theirs.inside(more_there), side, f"{place}.*")
