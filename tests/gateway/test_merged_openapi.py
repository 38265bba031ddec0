from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openapi_spec_validator
import pytest

from gateway import openapi
from shared.api import create_app
from shared.problems import Problem
from tests.diagnostic.service import service
from tests.gateway.echo import Echo
from tests.gateway.house import House, house
from tests.gateway.test_edge import problem
from tests.redis_server import RedisServer, free_port

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def gateway(server: RedisServer, home: Path) -> AsyncIterator[House]:
    services = f"gone=http://127.0.0.1:{free_port()}"
    mounted = house(
        server,
        home,
        lambda runtime: {"diagnostic": create_app(service, runtime), "echo": Echo()},
        services=services,
    )
    async with mounted as gateway:
        yield gateway


@pytest.fixture
async def nobody(gateway: House) -> httpx.AsyncClient:
    """Documentation needs no API key."""
    return await gateway.client()


@pytest.fixture
async def document(nobody: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await nobody.get("/openapi.json")).json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            yield path, verb, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            if name == "$ref":
                yield item
            else:
                yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


class TestTheMergedDocument:
    async def test_is_valid_openapi(self, document: dict[str, Any]) -> None:
        openapi_spec_validator.validate(document)

    async def test_has_every_operation_of_every_service_that_answers(self, document: dict[str, Any]) -> None:
        served = {f"/v1/diagnostic/{name}" for name in service.operations}
        served |= {f"/v1/echo/{one['name']}" for one in Echo().operations}
        assert served <= document["paths"].keys()

    async def test_has_no_path_twice_and_none_that_callers_cannot_reach(self, document: dict[str, Any]) -> None:
        paths = document["paths"].keys()
        assert "/v1/jobs/{job_id}" in paths
        assert "/v1/keys" in paths
        assert not [path for path in paths if path.startswith(("/internal", "/v1/{method}"))]

    async def test_every_reference_leads_somewhere(self, document: dict[str, Any]) -> None:
        schemas = document["components"]["schemas"]
        found = set(references(document))
        assert found
        assert {ref.removeprefix("#/components/schemas/") for ref in found} <= schemas.keys()

    async def test_schemas_of_services_bear_the_methods_name(self, document: dict[str, Any]) -> None:
        schemas = document["components"]["schemas"]
        assert schemas["echo.Mirrored"]["properties"]["next"] == {"$ref": "#/components/schemas/echo.Inner"}
        assert "echo.Unused" not in schemas
        assert any(name.startswith("diagnostic.") for name in schemas)

    async def test_every_operation_has_a_name_of_its_own(self, document: dict[str, Any]) -> None:
        names = [operation["operationId"] for _, _, operation in operations(document)]
        assert len(names) == len(set(names))
        assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)
        assert "diagnostic_noop" in names

    async def test_everything_under_v1_needs_the_api_key(self, document: dict[str, Any]) -> None:
        open_paths = [path for path, _, one in operations(document) if not one.get("security")]
        assert not [path for path in open_paths if path.startswith("/v1/")]
        assert document["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"

    async def test_every_failure_is_a_problem(self, document: dict[str, Any]) -> None:
        for path, _, operation in operations(document):
            if not path.startswith("/v1/echo/"):
                assert "application/problem+json" in operation["responses"]["default"]["content"], path
        assert "HTTPValidationError" not in document["components"]["schemas"]

    async def test_parts_of_a_file_and_its_freshness_are_no_failures(self, document: dict[str, Any]) -> None:
        responses = document["paths"]["/v1/files/{file_id}"]["get"]["responses"]
        assert {"200", "206", "304"} <= responses.keys()
        assert "content" not in responses["206"]  # of whatever type the file is

    async def test_keeps_the_gateways_own_description_as_it_was(self, gateway: House) -> None:
        own = gateway.app.state.parts.own_openapi()
        before = json.dumps(own)
        openapi.merged(own, {"echo": Echo().openapi()})
        assert json.dumps(own) == before

    def test_follows_discriminators(self) -> None:
        one_of = {"oneOf": [{"$ref": "#/components/schemas/A"}], "discriminator": {"propertyName": "k"}}
        one_of["discriminator"] = {"propertyName": "k", "mapping": {"a": "#/components/schemas/A"}}
        responses = {"200": {"description": "", "content": {"application/json": {"schema": one_of}}}}
        document = {"paths": {"/v1/m/op": {"post": {"responses": responses}}}, "components": {"schemas": {"A": {}}}}
        gateway: dict[str, Any] = {"paths": {}, "components": {"schemas": {}}}
        text = json.dumps(openapi.merged(gateway, {"m": document}))
        assert text.count("#/components/schemas/m.A") == 2


class TestPages:
    async def test_docs_show_every_operation(self, nobody: httpx.AsyncClient, document: dict[str, Any]) -> None:
        page = (await nobody.get("/docs")).text
        assert all(path in page for path in document["paths"])
        assert "Give the text back." in page

    async def test_pages_load_nothing_and_run_nothing(self, nobody: httpx.AsyncClient) -> None:
        for path in ("/docs", "/problems", "/problems/body_too_large"):
            response = await nobody.get(path)
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert not re.search(r"<script|<link|<img|src=|https?://", response.text)

    async def test_what_a_service_says_of_itself_cannot_become_markup(
        self, nobody: httpx.AsyncClient, gateway: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hostile = Echo().openapi()
        hostile["paths"]["/v1/echo/mirror"]["post"] |= {"summary": "<b>x", "description": "<script>alert(1)</script>"}

        async def documents() -> dict[str, Any]:
            return {"echo": hostile}

        monkeypatch.setattr(gateway.app.state.parts.catalogue, "openapi", documents)
        page = (await nobody.get("/docs")).text
        assert "<script>" not in page
        assert "<b>x" not in page
        assert "&lt;script&gt;" in page

    async def test_every_problem_has_its_page_in_the_words_of_its_class(self, nobody: httpx.AsyncClient) -> None:
        listed = (await nobody.get("/problems")).text
        for code, cls in Problem.known.items():
            page = await nobody.get(f"/problems/{code}")
            assert page.status_code == 200
            assert str(cls.status) in page.text
            assert f"/problems/{code}" in listed
        assert "Send the API key as" in (await nobody.get("/problems/api_key_missing")).text

    async def test_an_unknown_problem_is_not_found(self, nobody: httpx.AsyncClient) -> None:
        problem(await nobody.get("/problems/none_of_ours"), 404, "route_not_found")
