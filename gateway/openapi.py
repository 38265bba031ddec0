"""One OpenAPI document for everything: the gateway's own, and every service's beside it.

The services' component names get the method's name before them, so that two methods may both have a `Picture`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shared.problems import MEDIA_TYPE

Document = dict[str, Any]

_SCHEMAS = "#/components/schemas/"
_VERBS = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace"})

PROBLEM: Document = {
    "title": "Problem",
    "type": "object",
    "description": "What went wrong (RFC 9457). `code` never changes; further members depend on it.",
    "required": ["type", "code", "status", "title", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "description": "A page about this code."},
        "code": {"type": "string"},
        "status": {"type": "integer"},
        "title": {"type": "string"},
        "detail": {"type": "string", "description": "The numbers of this case."},
        "request_id": {"type": "string"},
        "retry_after_s": {"type": "number"},
        "errors": {"type": "array", "items": {"type": "object"}, "description": "Each place and what is right there."},
    },
    "additionalProperties": True,
}
_PROBLEM_ANSWER = {"description": "A problem.", "content": {MEDIA_TYPE: {"schema": {"$ref": f"{_SCHEMAS}Problem"}}}}


def own(document: Document) -> Document:
    """FastAPI's document of the gateway's routes, with our problems in place of its validation errors."""
    schemas = dict(document.get("components", {}).get("schemas", {}))
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = PROBLEM
    paths = {}
    for path, verbs in document["paths"].items():
        paths[path] = dict(verbs)
        for verb in _VERBS & verbs.keys():
            answers = {status: _answer(what) for status, what in verbs[verb]["responses"].items() if status != "422"}
            paths[path][verb] = {**verbs[verb], "responses": {**answers, "default": _PROBLEM_ANSWER}}
    return {**document, "paths": paths, "components": {**document.get("components", {}), "schemas": schemas}}


def _answer(answer: Document) -> Document:
    """FastAPI describes a stream of events by its items, which is OpenAPI 3.2 in a document that says 3.1."""
    content = {
        media_type: {"schema": {"type": "string"}} if "itemSchema" in what else what
        for media_type, what in answer.get("content", {}).items()
    }
    return {**answer, "content": content} if content else answer


def merged(gateway: Document, services: Mapping[str, Document]) -> Document:
    """`gateway` (as `own` returns it) with the operations of `services`, by method. Neither is changed."""
    paths = dict(gateway["paths"])
    schemas = dict(gateway["components"]["schemas"])
    tags = list(gateway.get("tags", []))
    for method, document in services.items():
        found = {path: item for path, item in document.get("paths", {}).items() if path.startswith(f"/v1/{method}/")}
        for path, item in found.items():
            paths[path] = {verb: _operation(method, path, verb, what) for verb, what in item.items()}
        for name in _needed(found, document):
            schemas[f"{method}.{name}"] = _renamed(document["components"]["schemas"][name], method)
        info = document.get("info", {})
        tags.append({"name": method, "description": info.get("description") or info.get("title") or method})
    return {**gateway, "paths": paths, "tags": tags, "components": {**gateway["components"], "schemas": schemas}}


def _operation(method: str, path: str, verb: str, operation: Any) -> Any:
    if verb not in _VERBS:  # `parameters`, `summary` and the like
        return _renamed(operation, method)
    name = path.removeprefix(f"/v1/{method}/")
    verb = "" if verb == "post" else f"_{verb}"
    return {
        **_renamed(operation, method),
        "operationId": f"{method}_{name}{verb}".replace("-", "_").replace("/", "_"),
        "tags": [method],
        "security": [{"ApiKey": []}],
    }


def _renamed(value: Any, method: str) -> Any:
    """`value` with every reference to a schema pointing to its name in the merged document."""
    if isinstance(value, list):
        return [_renamed(item, method) for item in value]
    if not isinstance(value, dict):
        return value
    renamed: Document = {}
    for name, item in value.items():
        if name == "$ref" and isinstance(item, str):
            renamed[name] = _moved(item, method)
        elif name == "mapping" and isinstance(item, dict) and all(isinstance(target, str) for target in item.values()):
            renamed[name] = {kind: _moved(target, method) for kind, target in item.items()}  # of a discriminator
        else:
            renamed[name] = _renamed(item, method)
    return renamed


def _moved(reference: str, method: str) -> str:
    if not reference.startswith(_SCHEMAS):
        return reference
    return f"{_SCHEMAS}{method}.{reference.removeprefix(_SCHEMAS)}"


def _needed(paths: Any, document: Document) -> list[str]:
    """Names of the schemas that `paths` lead to, directly or through others, in the document's order."""
    schemas = document.get("components", {}).get("schemas", {})
    needed: set[str] = set()
    open_names = set(_references(paths))
    while open_names:
        name = open_names.pop()
        if name in schemas and name not in needed:
            needed.add(name)
            open_names |= set(_references(schemas[name]))
    return [name for name in schemas if name in needed]


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value.startswith(_SCHEMAS):
            yield value.removeprefix(_SCHEMAS)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)
