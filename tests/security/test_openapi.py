"""Every path of the merged document, called with what fits its schema and with what does not, by everybody.

No answer is a 500, and every answer is one that the document describes: status, media type, headers, schema.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.main_job.conftest import Installation

QUICK, LONG = 5, 150  # examples an operation
ROLES = ("app", "officer", "custodian")
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
BY_DESIGN = "POST /v1/diagnostic/fail"  # it answers 500 and kills its worker, as asked for
EVENTS = "/events"
FILE = "/v1/files/"
MOST = {"seconds": 0.01, "seconds_a_step": 0.01, "steps": 2, "units": 2}  # of what the diagnostics may be asked for


def small_png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (24, 16), (200, 30, 30)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def known(fortress: Installation) -> dict[str, str]:
    """Names of things that exist, by parameter: random names alone would find nothing."""
    uploaded = fortress.post("/v1/files", content=small_png(), headers={"Content-Type": "image/png"})
    job = fortress.post("/v1/diagnostic/noop", json={"text": "known"})
    key = fortress.post("/v1/keys", "custodian", json={"label": "fuzzed"})
    for response in (uploaded, job, key):
        assert response.status_code in (200, 201), response.text
    names = {"file_id": uploaded.json()["file"], "job_id": job.json()["id"], "key_id": key.json()["key_id"]}
    return {**names, "file": names["file_id"], "method": "ifadit", "name": "small"}


@pytest.fixture(scope="module")
def operations(fortress: Installation) -> list[Any]:
    schemathesis.openapi.format("binary", st.just(small_png()) | st.binary(max_size=64))
    schema = schemathesis.openapi.from_dict(fortress.http.get("/openapi.json").json())
    found: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    assert len(found) >= 30
    return [operation for operation in found if operation.label != BY_DESIGN]


def fitting_role(path: str) -> str:
    if path.startswith("/v1/keys"):
        return "custodian"
    return "officer" if path.startswith(("/v1/audit", "/v1/ifadit/recover", "/v1/diagnostic/whisper")) else "app"


def tamed(value: Any, known: Mapping[str, str], draw: Callable[[Any], Any]) -> Any:
    """A body whose files sometimes exist, and whose sleeps are short."""
    if isinstance(value, list):
        return [tamed(item, known, draw) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {name: tamed(item, known, draw) for name, item in value.items()}
    if isinstance(changed.get("file"), str) and draw(st.booleans()):
        changed["file"] = known["file"]
    for name, most in MOST.items():
        if name in changed and exceeds(changed[name], most):
            changed[name] = most
    return changed


def exceeds(value: Any, most: float) -> bool:
    """Whether a value is a number, or text of one, above `most`."""
    try:
        return not isinstance(value, bool) and float(value) > most
    except (TypeError, ValueError, OverflowError):
        return False


class Callers:
    """Calls of one fuzzing run, one session a role."""

    def __init__(self, fortress: Installation, known: Mapping[str, str]) -> None:
        self._fortress, self._known = fortress, known
        self._session = requests.Session()
        self.statuses: dict[int, int] = {}

    def __enter__(self) -> Callers:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def fuzz(self, operation: Any, examples: int, *, derandomize: bool) -> None:
        """Call one operation, about half with what its schema allows. Raises what `schemathesis` finds."""
        modes = [operation.as_strategy(mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]
        may_be_wrong = bool(
            operation.path_parameters or operation.query or operation.body or len(operation.headers) > 1
        )

        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=derandomize,
            database=None,
            phases=[Phase.generate] if derandomize else [Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def run(data: st.DataObject) -> None:
            strategy = data.draw(st.sampled_from(modes)) if may_be_wrong else modes[0]
            self.call(data.draw(strategy), data)

        run()

    def call(self, case: Any, data: st.DataObject) -> None:
        path = case.operation.path
        role = data.draw(st.sampled_from([*[fitting_role(path)] * 4, *ROLES, ""]))
        headers = self._fortress.headers(role) if role else {}
        for name in case.path_parameters or {}:
            if name in self._known and data.draw(st.booleans()):
                case.path_parameters[name] = self._known[name]
        if isinstance(case.body, dict):
            case.body = tamed(case.body, self._known, data.draw)
        case.headers = {name: value for name, value in (case.headers or {}).items() if name.lower() != "authorization"}
        response = case.call(str(self._fortress.http.base_url), self._session, headers, timeout=60)
        self.statuses[response.status_code] = self.statuses.get(response.status_code, 0) + 1
        # OpenAPI 3.1 has no words for the events of a stream: their schema is said to be a text.
        # A file is what its owner sent, also where the owner called it JSON and it is none.
        is_content = path.startswith(FILE) and response.status_code < 300
        left_out = [response_schema_conformance] if path.endswith(EVENTS) or is_content else []
        case.validate_response(response, CHECKS, excluded_checks=left_out, headers=headers)
        if response.status_code == 202 and path.count("/") == 3:
            self._session.post(
                f"{self._fortress.http.base_url}/v1/jobs/{response.json()['id']}/cancel", headers=headers, timeout=60
            )


@pytest.fixture
def callers(fortress: Installation, known: Mapping[str, str]) -> Iterator[Callers]:
    with Callers(fortress, known) as callers:
        yield callers


def is_alive(fortress: Installation) -> bool:
    done = fortress.post("/v1/diagnostic/noop", json={"text": "still here"})
    return done.status_code == 200 and fortress.http.get("/readyz").status_code == 200


def test_every_operation_answers_as_documented(
    fortress: Installation, operations: list[Any], callers: Callers, subtests: pytest.Subtests
) -> None:
    for operation in operations:
        with subtests.test(operation.label):
            callers.fuzz(operation, QUICK, derandomize=True)
    assert {200, 401, 403, 404, 422} <= callers.statuses.keys(), callers.statuses
    assert is_alive(fortress)


@pytest.mark.slow
def test_every_operation_answers_as_documented_for_long(
    fortress: Installation, operations: list[Any], callers: Callers, subtests: pytest.Subtests
) -> None:
    # The same calls every time, so that a change is refused for what it does; TENFOLD_FUZZ=1 draws new ones.
    is_exploring = "TENFOLD_FUZZ" in os.environ
    for operation in operations:
        with subtests.test(operation.label):
            callers.fuzz(operation, LONG, derandomize=not is_exploring)
    assert is_alive(fortress)
