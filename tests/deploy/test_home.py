"""The folder of a local installation."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import home as home_module
from deploy.local.home import Home, HomeInUse, KekLost, write_once, write_private


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def private_files(home: Home) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in [home.kek, *home.secrets.iterdir()]}


class TestPrepare:
    def test_secrets_are_made_once_and_are_readable_by_their_owner_alone(self, home: Home) -> None:
        home.prepare()
        before = {name: (home.secrets / name).read_text() for name in private_files(home) if name != "kek.json"}
        kek = home.kek.read_text()
        home.prepare()
        assert {name: (home.secrets / name).read_text() for name in before} == before
        assert home.kek.read_text() == kek
        assert len(before["tenfold_internal_secret"]) >= 32
        assert before["tenfold_internal_secret"] != before["tenfold_api_key_pepper"]
        assert all(mode & 0o077 == 0 for mode in private_files(home).values())
        assert private_files(home)["kek.json"] == 0o400
        assert home.folder.stat().st_mode & 0o777 == 0o700

    def test_the_key_encryption_key_has_256_bits(self, home: Home) -> None:
        home.prepare()
        assert [len(base64.b64decode(key)) for key in json.loads(home.kek.read_text()).values()] == [32]

    def test_two_installations_share_no_secret(self, home: Home, tmp_path: Path) -> None:
        other = Home(tmp_path / "other")
        home.prepare()
        other.prepare()
        assert home.kek.read_text() != other.kek.read_text()
        assert home.password("broker") != other.password("broker") != other.password("custody")

    def test_a_lost_key_encryption_key_is_not_replaced(self, home: Home) -> None:
        home.prepare()
        (home.redis / "custody/appendonlydir").mkdir(parents=True)
        home.kek.unlink()
        with pytest.raises(KekLost, match=r"kek\.json is missing"):
            home.prepare()
        assert not home.kek.exists()

    def test_a_half_written_file_of_a_crash_is_no_obstacle(self, tmp_path: Path) -> None:
        (tmp_path / "secret.part").write_text("hal")
        write_once(tmp_path / "secret", "whole")
        write_once(tmp_path / "secret", "another")
        assert (tmp_path / "secret").read_text() == "whole"

    def test_a_private_file_can_be_replaced(self, tmp_path: Path) -> None:
        write_private(tmp_path / "note", "one", 0o400)
        write_private(tmp_path / "note", "two", 0o600)
        assert (tmp_path / "note").read_text() == "two"

    def test_a_socket_path_that_the_kernel_would_refuse_is_not_used(self, tmp_path: Path) -> None:
        assert Home(Path("/tmp/x")).door_socket() == Path("/tmp/x/run/door.sock")  # noqa: S108 - nothing is written
        assert Home(tmp_path / ("x" * 100)).door_socket() is None


class TestLock:
    def test_a_second_instance_is_refused_by_name(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(home_module, "_LOCK_WAIT_S", 0.1)
        with (
            home.locked(),
            pytest.raises(HomeInUse, match=rf"runs already on .*home \(process {os.getpid()}\)"),
            Home(home.folder).locked(),
        ):
            pass

    def test_it_is_free_again_afterwards(self, home: Home) -> None:
        with home.locked():
            pass
        with home.locked():
            pass

    def test_it_is_held_until_the_last_heir_is_gone(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(home_module, "_LOCK_WAIT_S", 0.1)
        with home.locked() as descriptor:
            heir = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor])
        with pytest.raises(HomeInUse), home.locked():
            pass
        heir.communicate(b"\n")
        with home.locked():
            pass
