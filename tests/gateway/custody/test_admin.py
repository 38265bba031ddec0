"""`tenfold-admin keys` and `tenfold-admin custody` as an operator runs them: with settings from the environment."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from deploy.admin import custody as custody_commands
from deploy.admin import keys as keys_commands
from gateway.custody.service import Custody
from gateway.principals import PrincipalNotFound
from shared.problems import ApiKeyInvalid, AuditUnavailable, RateLimited
from tests.gateway.custody.support import INTERNAL_SECRET, PEPPER, anonymized, events, key_for, person, settings_for
from tests.redis_server import RedisServer

Run = Callable[..., int]


@pytest.fixture
def run(home: Path, redis: Redis, shared_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command line; returns its exit status."""
    names = {
        "HOME": str(home),
        "BROKER_URL": "redis://127.0.0.1:1/0",
        "CUSTODY_URL": shared_server.url,
        "INTERNAL_SECRET": INTERNAL_SECRET,
        "API_KEY_PEPPER": PEPPER,
        "KEK_PATH": str(home / "kek.json"),
    }
    for name, value in names.items():
        monkeypatch.setenv(f"TENFOLD_{name}", value)
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for module in (keys_commands, custody_commands):
        module.register(commands)

    def run(*words: str) -> int:
        arguments = parser.parse_args(words)
        status: int = arguments.run(arguments)
        return status

    return run


@pytest.fixture
def out(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: capsys.readouterr().out


def with_custody(home: Path, server: RedisServer, action: Callable[[Custody], Any]) -> Any:
    async def within() -> Any:
        custody = await Custody.connect(settings_for(home, server.url))
        try:
            return await action(custody)
        finally:
            await custody.close()

    return asyncio.run(within())


class TestKeys:
    def test_a_new_api_key_is_the_only_thing_on_stdout_and_works(
        self, run: Run, out: Callable[[], str], home: Path, shared_server: RedisServer
    ) -> None:
        assert run("keys", "create", "--tenant", "acme", "--role", "officer", "--label", "desk 4") == 0
        api_key = out().strip()
        principal = with_custody(home, shared_server, lambda custody: custody.principals.authenticate(api_key))
        assert (principal.tenant, principal.role) == ("acme", "officer")
        [entry] = events(home, "principal.create")
        assert (entry["actor"], entry["subject"]) == ("tenfold-admin", principal.id)

    def test_they_are_listed_without_their_secret_rotated_and_revoked(
        self, run: Run, out: Callable[[], str], home: Path, shared_server: RedisServer
    ) -> None:
        run("keys", "create", "--tenant", "acme", "--role", "app", "--label", "shop")
        first = out().strip()
        run("keys", "create", "--tenant", "other", "--role", "app")
        out()
        assert run("keys", "list", "--tenant", "acme") == 0
        listed = out()
        name, tenant, role, _, api_keys, label = listed.rstrip("\n").split("\t")
        assert (tenant, role, api_keys, label) == ("acme", "app", first[:11], "shop")
        assert first not in listed
        assert run("keys", "rotate", name) == 0
        second = out().strip()
        assert run("keys", "revoke", name, "--api-key", first[:11]) == 0

        def authenticate(api_key: str) -> Any:
            return with_custody(home, shared_server, lambda custody: custody.principals.authenticate(api_key))

        assert authenticate(second).id == name
        with pytest.raises(ApiKeyInvalid):
            authenticate(first)
        assert run("keys", "revoke", name) == 0
        with pytest.raises(ApiKeyInvalid):
            authenticate(second)
        run("keys", "list")
        assert "revoked" in out()

    def test_an_unknown_role_is_no_command(self, run: Run) -> None:
        with pytest.raises(SystemExit):
            run("keys", "create", "--tenant", "acme", "--role", "admin")

    def test_a_tenant_that_is_none_makes_no_sense(self, run: Run) -> None:
        with pytest.raises(ValueError, match="tenant"):
            run("keys", "create", "--tenant", "Acme Inc.", "--role", "app")


class TestKek:
    def test_a_new_one_is_written_and_an_old_one_left_alone(self, run: Run, out: Callable[[], str], home: Path) -> None:
        before = (home / "kek.json").read_bytes()
        assert run("custody", "create-kek") == 1
        assert (home / "kek.json").read_bytes() == before
        (home / "kek.json").unlink()
        assert run("custody", "create-kek") == 0
        assert out() == f"{home / 'kek.json'}\n"
        assert (home / "kek.json").stat().st_mode & 0o777 == 0o400


class TestCustody:
    def test_status_counts_and_says_what_is_down(
        self, run: Run, out: Callable[[], str], home: Path, shared_server: RedisServer
    ) -> None:
        async def make(custody: Custody) -> None:
            custodian = await person(custody, "custodian")
            first = await key_for(custody, custodian)
            await custody.keys.rotate(custodian.caller, first.key_id)
            await custody.keys.disable(custodian.caller, (await key_for(custody, custodian)).key_id)

        with_custody(home, shared_server, make)
        assert run("custody", "status") == 0
        status = json.loads(out())
        assert status["keys"] == {"active": 1, "disabled": 1}
        assert status["secrets"] == {"file/1": 3}
        assert (status["kek"], status["audit"], status["custody_redis"]) == ("ok", "ok", "ok")

    def test_a_locked_out_officer_is_let_in_again(self, run: Run, home: Path, shared_server: RedisServer) -> None:
        async def lock(custody: Custody) -> Any:
            officer = await person(custody, "officer")
            for _ in range(5):
                await custody.limiter.failed(officer.principal, "")
            with pytest.raises(RateLimited):
                await custody.limiter.take_recover(officer.principal, "")
            return officer.principal

        principal = with_custody(home, shared_server, lock)
        assert run("custody", "unlock", principal.id) == 0
        with_custody(home, shared_server, lambda custody: custody.limiter.take_recover(principal, ""))
        assert events(home, "ratelimit.unlock")[0]["subject"] == principal.id
        with pytest.raises(PrincipalNotFound):
            run("custody", "unlock", "prn_" + "0" * 26)

    def test_another_key_signs_from_the_next_start_on(
        self, run: Run, out: Callable[[], str], home: Path, shared_server: RedisServer
    ) -> None:
        assert run("custody", "rotate-signing-key") == 0
        kid = out().strip()

        async def sign(custody: Custody) -> Any:
            await key_for(custody, await person(custody, "custodian"), default=True)
            return (await anonymized(custody, await person(custody, "app")))[1]

        assert with_custody(home, shared_server, sign)["sig"]["kid"] == kid


class TestAudit:
    """T21 by command line."""

    @pytest.fixture
    def trail(self, run: Run, home: Path, out: Callable[[], str]) -> Path:
        for number in range(5):
            run("keys", "create", "--tenant", f"tenant-{number}", "--role", "app")
        out()
        [path] = (home / "audit").glob("*-*-*.jsonl")
        return path

    def test_a_good_trail_is_said_to_be_good(self, run: Run, out: Callable[[], str], trail: Path) -> None:
        assert run("custody", "audit", "verify") == 0
        assert out() == "5 entries, all as written\n"

    @pytest.mark.parametrize("bad", [0, 2, 4])
    def test_the_first_bad_entry_is_named(self, run: Run, out: Callable[[], str], trail: Path, bad: int) -> None:
        trail.write_text(trail.read_text().replace(f"tenant-{bad}", "tenant-9"))
        assert run("custody", "audit", "verify") == 1
        assert out().startswith(f"entry {bad} ")

    def test_a_tail_that_was_cut_is_found_by_a_checkpoint_kept_elsewhere(
        self, run: Run, out: Callable[[], str], trail: Path, tmp_path: Path, home: Path
    ) -> None:
        assert run("custody", "audit", "checkpoint") == 0
        kept = tmp_path / "elsewhere.jsonl"
        kept.write_text(out())
        lines = trail.read_text().splitlines(keepends=True)
        trail.write_text("".join(lines[:-2]))
        assert run("custody", "audit", "verify") == 1, "the checkpoint beside the trail knows"
        assert out().startswith("entry 3 ")
        (home / "audit" / "checkpoints.jsonl").unlink()
        assert run("custody", "audit", "verify") == 0
        assert run("custody", "audit", "verify", "--checkpoint", str(kept)) == 1

    def test_a_checkpoint_that_nobody_signed_makes_no_sense(
        self, run: Run, out: Callable[[], str], trail: Path, tmp_path: Path
    ) -> None:
        run("custody", "audit", "checkpoint")
        forged = tmp_path / "forged.jsonl"
        forged.write_text(out().replace('"seq": 4', '"seq": 3'))
        with pytest.raises(ValueError, match="signed"):
            run("custody", "audit", "verify", "--checkpoint", str(forged))

    def test_a_bad_end_stops_every_other_command(self, run: Run, trail: Path) -> None:
        trail.write_text(trail.read_text().replace("tenant-4", "tenant-9"))
        with pytest.raises(AuditUnavailable):
            run("keys", "create", "--tenant", "acme", "--role", "app")
