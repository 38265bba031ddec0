from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.gateway.house import House, house
from tests.gateway.test_edge import problem
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def gateway(server: RedisServer, home: Path) -> AsyncIterator[House]:
    async with house(server, home, {}) as gateway:
        yield gateway


@pytest.fixture
async def api(gateway: House) -> httpx.AsyncClient:
    return await gateway.api()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """What a training leaves."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "MODEL_CARD.md").write_text("# Where it fails\n")
    return folder


def train(gateway: House, weights: Path, name: str, tenant: str = "acme") -> str:
    saved = gateway.runtime.models.save("diagnostic", name, tenant, weights, figures={"accuracy": 0.9})
    return f"/v1/models/{saved.method}/{saved.name}"


async def test_a_trained_model_is_listed_without_its_card_and_read_with_it(
    gateway: House, api: httpx.AsyncClient, weights: Path
) -> None:
    path = train(gateway, weights, "listed")
    listed = {model["model"]: model for model in (await api.get("/v1/models")).json()["models"]}
    assert listed["diagnostic/listed@1"]["figures"] == {"accuracy": 0.9}
    assert "card" not in listed["diagnostic/listed@1"]
    read = (await api.get(path)).json()
    assert read == {**listed["diagnostic/listed@1"], "card": "# Where it fails\n"}
    assert (read["kind"], read["versions"]) == ("trained", [1])


async def test_a_version_is_read_by_its_number(gateway: House, api: httpx.AsyncClient, weights: Path) -> None:
    path = train(gateway, weights, "versioned")
    train(gateway, weights, "versioned")
    assert [(await api.get(f"{path}{version}")).json()["version"] for version in ("", "@1", "@2")] == [2, 1, 2]
    problem(await api.get(f"{path}@3"), 404, "model_not_found")


async def test_the_list_can_be_of_one_method(gateway: House, api: httpx.AsyncClient, weights: Path) -> None:
    train(gateway, weights, "of-one")
    assert {model["method"] for model in (await api.get("/v1/models?method=diagnostic")).json()["models"]} == {
        "diagnostic"
    }
    assert (await api.get("/v1/models?method=another")).json() == {"models": []}
    problem(await api.get("/v1/models?method=No!"), 422, "invalid_request")


async def test_another_tenants_model_is_no_model(gateway: House, api: httpx.AsyncClient, weights: Path) -> None:
    path = train(gateway, weights, "private")
    stranger = await gateway.api("app", "strangers")
    problem(await stranger.get(path), 404, "model_not_found")
    problem(await stranger.delete(path), 404, "model_not_found")
    assert (await stranger.get("/v1/models?method=diagnostic")).json() == {"models": []}
    assert (await api.get(path)).status_code == 200


async def test_a_model_is_deleted_by_version_and_whole(gateway: House, api: httpx.AsyncClient, weights: Path) -> None:
    path = train(gateway, weights, "doomed")
    train(gateway, weights, "doomed")
    assert (await api.delete(f"{path}@1")).status_code == 204
    assert (await api.get(path)).json()["versions"] == [2]
    assert (await api.delete(path)).status_code == 204
    problem(await api.get(path), 404, "model_not_found")
    problem(await api.delete(path), 404, "model_not_found")


async def test_a_model_is_deleted_only_by_who_may_train(gateway: House, weights: Path) -> None:
    path = train(gateway, weights, "kept")
    custodian = await gateway.api("custodian")
    assert problem(await custodian.delete(path), 403, "scope_missing")["scope"] == "use"
    assert (await custodian.get(path)).status_code == 200


async def test_an_imported_model_cannot_be_deleted(gateway: House, api: httpx.AsyncClient, weights: Path) -> None:
    gateway.runtime.models.import_("diagnostic", "paper-lite", weights)
    problem(await api.delete("/v1/models/diagnostic/paper-lite"), 409, "model_protected")


async def test_weights_that_nobody_imported_are_answered_with_the_command(api: httpx.AsyncClient) -> None:
    body = problem(await api.get("/v1/models/diagnostic/paper"), 409, "weights_missing")
    assert body["command"].startswith("tenfold-admin weights import diagnostic/paper")


@pytest.mark.parametrize("name", ["no/such", "diagnostic/..%2f..", "diagnostic/NO", "diagnostic/a@0", "diagnostic/a@x"])
async def test_a_name_that_is_none_is_not_found(api: httpx.AsyncClient, name: str) -> None:
    assert (await api.get(f"/v1/models/{name}")).status_code == 404


async def test_models_need_an_api_key(gateway: House) -> None:
    problem(await (await gateway.client()).get("/v1/models"), 401, "api_key_missing")
