"""The OpenAPI document of a service, from its operations' models."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shared.problems import MEDIA_TYPE
from shared.service import Operation, Service
from shared.types import FILE_MARK, Image

_REF = "#/components/schemas/"

PROBLEM: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "required": ["type", "code", "status", "title", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "code": {"type": "string"},
        "status": {"type": "integer"},
        "title": {"type": "string"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}

JOB: dict[str, Any] = {
    "type": "object",
    "title": "Job",
    "required": ["id", "method", "operation", "state", "created_at", "url"],
    "properties": {
        "id": {"type": "string"},
        "method": {"type": "string"},
        "operation": {"type": "string"},
        "state": {"enum": ["queued", "running", "succeeded", "failed", "cancelling", "cancelled", "expired"]},
        "stage": {"type": ["string", "null"]},
        "progress": {"type": ["object", "null"]},
        "units": {"type": ["object", "null"]},
        "attempt": {"type": "integer"},
        "seed": {"type": ["integer", "null"]},
        "guard": {"type": ["object", "null"]},
        "created_at": {"type": "string", "format": "date-time"},
        "started_at": {"type": ["string", "null"]},
        "finished_at": {"type": ["string", "null"]},
        "deadline": {"type": ["string", "null"]},
        "result": {"type": ["object", "null"]},
        "error": {"oneOf": [{"$ref": f"{_REF}Problem"}, {"type": "null"}]},
        "url": {"type": "string"},
    },
}


def picture_field(operation: Operation) -> str | None:
    """The one field of the response that is a picture, if there is exactly one; it may be null."""
    fields = operation.response.model_fields.items()
    pictures = [name for name, info in fields if any(map(_is_picture, get_args(info.annotation) or [info.annotation]))]
    return pictures[0] if len(pictures) == 1 else None


def _is_picture(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Image)


def document(service: Service) -> dict[str, Any]:
    """OpenAPI 3.1 for the operations of one service, as callers of the gateway see them."""
    modes: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = []
    for operation in service.operations.values():
        modes += [(operation.request, "validation"), (operation.response, "serialization")]
    names, definitions = models_json_schema(modes, ref_template=_REF + "{model}")
    schemas: dict[str, Any] = {"Problem": PROBLEM, "Job": JOB, **definitions.get("$defs", {})}
    paths = {}
    for operation in service.operations.values():
        request = names[operation.request, "validation"]["$ref"].removeprefix(_REF)
        response = names[operation.response, "serialization"]["$ref"]
        parts = _as_parts(schemas[request], schemas)
        paths[f"/v1/{service.name}/{operation.name}"] = {
            "post": _operation(service, operation, request, response, parts)
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": service.title, "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _as_parts(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """The same object as a multipart form: files are binary parts, a nested value is a JSON part."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if not isinstance(value, dict):
            return value
        target = schemas.get(str(value.get("$ref", "")).removeprefix(_REF), {})
        if FILE_MARK in target:
            return {"type": "string", "format": "binary", "description": value.get("description", "")}
        return {name: plain(item) for name, item in value.items()}

    parts: dict[str, Any] = plain(copy.deepcopy(schema))
    return parts


def _operation(
    service: Service, operation: Operation, request: str, response: str, parts: dict[str, Any]
) -> dict[str, Any]:
    done = {"allOf": [{"$ref": f"{_REF}Job"}, {"properties": {"result": {"$ref": response}}}]}
    answers: dict[str, Any] = {"application/json": {"schema": done}}
    if picture_field(operation):
        for media_type in ("image/png", "image/jpeg", "image/webp"):
            answers[media_type] = {"schema": {"type": "string", "format": "binary"}}
    parameters = [
        {"name": "Prefer", "in": "header", "schema": {"type": "string"}, "example": f"wait={operation.wait_s:g}"},
        {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "minLength": 1, "maxLength": 255}},
    ]
    if operation.lease in ("anonymize", "recover"):
        text = (
            "Secret key; the tenant's default if absent."
            if operation.lease == "anonymize"
            else "Must match the record."
        )
        parameters.append({"name": "key", "in": "query", "description": text, "schema": {"type": "string"}})
    return {
        "operationId": f"{service.name}_{operation.name}",
        "tags": [service.name],
        "summary": operation.title,
        "description": operation.text,
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": parts},
                "application/json": {"schema": {"$ref": _REF + request}},
            },
        },
        "responses": {
            "200": {"description": "Done; the result is inside.", "content": answers},
            "202": {
                "description": "Accepted; `Location` names the job.",
                "content": {"application/json": {"schema": {"$ref": f"{_REF}Job"}}},
            },
            "default": {
                "description": "A problem.",
                "content": {MEDIA_TYPE: {"schema": {"$ref": f"{_REF}Problem"}}},
            },
        },
    }
