"""The client's own types say what the services' schemas say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from deploy.methods import METHODS, load_service
from tenfold import Box, File
from tenfold.methods import dit_sr, dlsr, ifadit, tad_sr
from tenfold.methods._restoration import Restored, Upscaled
from tests.client.schema_agreement import disagreements, request_schema, response_schema


class Place(BaseModel):
    box: Box
    score: float | None = None


class Read(BaseModel):
    """A result as a client reads it."""

    job_id: str
    image: File
    places: tuple[Place, ...]
    action: Literal["kept", "blurred"]
    count: int
    cosine: float
    figures: dict[str, float]
    note: str | None = None


class FileAsSent(BaseModel):
    file: str
    media_type: str
    bytes: int


class Sent(BaseModel):
    """The same as a service sends it."""

    image: FileAsSent
    places: list[Place]
    action: Literal["kept", "blurred"]
    count: int
    cosine: int
    figures: dict[str, int]
    note: str | None


def operation(
    context: Any,
    image: str | bytes,
    record: str | bytes | None = None,
    *,
    linkage: Literal["per_image", "per_key"] = "per_image",
    faces: list[Box] | None = None,
    purpose: str,
    steps: int = 15,
    key: str | None = None,
    wait_s: float = 1,
) -> None:
    """An operation as a client offers it."""


ACCEPTED: dict[str, Any] = {
    "$defs": {
        "Box": {"type": "object", "properties": {name: {"type": "number"} for name in ("x", "y", "width", "height")},
                "required": ["x", "y", "width", "height"]},
        "Image": {"x-tenfold-file": ["image/png"], "oneOf": [{"type": "object"}]},
    },
    "type": "object",
    "properties": {
        "image": {"$ref": "#/$defs/Image"},
        "record": {"anyOf": [{"$ref": "#/$defs/Image"}, {"type": "null"}], "default": None},
        "linkage": {"type": "string", "enum": ["per_image", "per_key"], "default": "per_image"},
        "faces": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/Box"}}, {"type": "null"}], "default": None},
        "purpose": {"type": "string", "maxLength": 200},
        "steps": {"type": "integer", "default": 15},
    },
    "required": ["image", "purpose"],
}  # fmt: skip


def changed(schema: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    other = copy.deepcopy(schema)
    change(other)
    return other


class TestRequests:
    def test_what_fits(self) -> None:
        assert disagreements(request_schema(operation), ACCEPTED, "request") == []

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            (lambda s: s["properties"].pop("steps"), ".steps: the service does not have it"),
            (lambda s: s["properties"].update(seed={"type": "integer"}), ".seed: the client does not have it"),
            (lambda s: s["required"].remove("purpose"), ".purpose: is required by the client alone"),
            (lambda s: s["required"].append("steps"), ".steps: is required by the service alone"),
            (lambda s: s["properties"]["steps"].update(default=4), ".steps: defaults to 15 and to 4"),
            (lambda s: s["properties"]["steps"].update(type="string"), ".steps: is sent as integer and read as string"),
            (lambda s: s["properties"]["linkage"]["enum"].append("never"), ".linkage: values differ by never"),
            (lambda s: s["properties"]["linkage"]["enum"].remove("per_key"), ".linkage: values differ by per_key"),
            (lambda s: s["$defs"]["Box"]["properties"].pop("x"), ".faces[].x: the service does not have it"),
            (lambda s: s["$defs"]["Box"]["properties"]["x"].update(type="integer"), ".faces[].x: is sent as number"),
            (lambda s: s["properties"].update(image={"type": "string"}), ".image: is sent as file and read as string"),
            (
                lambda s: s["properties"].update(record={"type": "object"}),
                ".record: is sent as file and read as obj",
            ),
        ],
    )
    def test_what_does_not(self, change: Callable[[dict[str, Any]], Any], complaint: str) -> None:
        found = disagreements(request_schema(operation), changed(ACCEPTED, change), "request")
        assert any(line.startswith(complaint) for line in found), found


SENT = Sent.model_json_schema(mode="serialization")


class TestResponses:
    def test_what_fits(self) -> None:
        assert disagreements(response_schema(Read), SENT, "response") == []

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            (lambda s: s["properties"].pop("count"), ".count: the service does not have it"),
            (lambda s: s["properties"].update(model={"type": "string"}), ".model: the client does not have it"),
            (lambda s: s["required"].remove("count"), ".count: may be absent, which is not read"),
            (lambda s: s["properties"]["count"].update(type="number"), ".count: is sent as number and read as integer"),
            (
                lambda s: s["properties"].update(count={"anyOf": [{"type": "integer"}, {"type": "null"}]}),
                ".count: may be null, which is not read",
            ),
            (lambda s: s["properties"]["action"]["enum"].append("lost"), ".action: values differ by lost"),
            (
                lambda s: s["properties"]["figures"].update(additionalProperties={"type": "string"}),
                ".figures.*: is se",
            ),
            (lambda s: s["$defs"]["Place"]["properties"].pop("box"), ".places[].box: the service does not have it"),
            (
                lambda s: s["$defs"]["Box"]["properties"]["x"].update(type="string"),
                ".places[].box.x: is sent as str",
            ),
            (lambda s: s["properties"].update(image={"type": "string"}), ".image: is sent as string and read as file"),
        ],
    )
    def test_what_does_not(self, change: Callable[[dict[str, Any]], Any], complaint: str) -> None:
        found = disagreements(response_schema(Read), changed(SENT, change), "response")
        assert any(line.startswith(complaint) for line in found), found

    def test_a_reader_may_be_told_less_than_it_could_read(self) -> None:
        fewer = changed(SENT, lambda s: s["properties"]["action"]["enum"].remove("blurred"))
        assert disagreements(response_schema(Read), fewer, "response") == []


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (dit_sr.upscale, Upscaled[File]),
        (dit_sr.restore, Restored[File]),
        (dlsr.score, dlsr.Scores[File]),
        (dlsr.compare, dlsr.Compared),
        (dlsr.fit, dlsr.Fitted),
        (dlsr.calibrate, dlsr.Calibrated),
        (ifadit.anonymize, ifadit.Anonymized[File]),
        (ifadit.recover, ifadit.Recovered[File]),
        (ifadit.verify, ifadit.Verified),
        (tad_sr.upscale, Upscaled[File]),
        (tad_sr.restore, Restored[File]),
    ],
)
def test_the_functions_of_a_method_are_its_operations(function: Callable[..., Any], result: type[BaseModel]) -> None:
    service = load_service(METHODS[function.__module__.rpartition(".")[2].replace("_", "-")])
    served = service.get(function.__name__).description()
    assert disagreements(request_schema(function), served["request_schema"], "request") == []
    assert disagreements(response_schema(result), served["response_schema"], "response") == []


@pytest.mark.parametrize("group", [dit_sr.DitSr, dlsr.Dlsr, ifadit.Ifadit, tad_sr.TadSr])
def test_no_operation_of_a_method_is_left_out(group: type) -> None:
    service = load_service(METHODS[group.__module__.rpartition(".")[2].replace("_", "-")])
    assert set(service.operations) == {name for name in vars(group) if not name.startswith("_")}
