"""`tenfold-admin` beside an installation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.admin.main import main
from deploy.local.home import Home
from deploy.local.redisserver import find_binary, started
from deploy.local.supervisor import Supervisor
from deploy.methods import IMPORTERS


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A prepared folder, which the commands find as they find `.tenfold`."""
    made = Home(tmp_path / "home")
    made.prepare()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENFOLD_HOME", str(made.folder))
    monkeypatch.setenv("TENFOLD_PORT", "9")  # nobody listens there
    monkeypatch.setenv("TENFOLD_SECRETS_DIR", str(made.secrets))
    return made


@pytest.fixture
def servers(home: Home) -> Iterator[None]:
    """Both Redis servers of that folder."""
    with asyncio.Runner() as runner:
        supervisor = Supervisor(home.log, say=lambda *_: None)
        for role in ("broker", "custody"):
            server = started(role, home, find_binary())
            home.note(f"tenfold_{role}_url", server.url)
            assert server.program
            runner.run(supervisor.start(server.program))
        try:
            yield
        finally:
            runner.run(supervisor.stop())


def findings(text: str) -> dict[str, list[str]]:
    """The lines of a report by verdict."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        verdict, _, rest = line.partition(" ")
        found.setdefault(verdict, []).append(" ".join(rest.split()))
    return found


class TestDoctor:
    @pytest.mark.usefixtures("servers")
    def test_a_sound_installation_has_no_failure(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "--no-models"]) == 0
        found = findings(capsys.readouterr().out)
        assert "FAIL" not in found
        for role in ("broker", "custody"):
            assert f"{role} Redis writes its append-only file" in found["ok"]
            assert f"{role} Redis maxmemory-policy noeviction" in found["ok"]
        assert [line for line in found["ok"] if line.startswith("KEK")]
        assert [line for line in found["note"] if line.startswith("gateway http://127.0.0.1:9/readyz says:")]

    def test_missing_servers_and_an_open_key_file_are_failures(
        self, home: Home, capsys: pytest.CaptureFixture[str]
    ) -> None:
        home.note("tenfold_broker_url", "redis://u:hidden@127.0.0.1:9/0")
        home.kek.chmod(0o644)
        assert main(["doctor", "--no-models"]) == 1
        out = capsys.readouterr().out
        failures = findings(out)["FAIL"]
        assert [line for line in failures if line.startswith("broker Redis 127.0.0.1:9/0 does not answer")]
        assert "custody Redis TENFOLD_CUSTODY_URL is not set, and nothing was started here" in failures
        assert f"KEK {home.kek} has mode 0644; it must be 0400 and yours" in failures
        assert "hidden" not in out

    @pytest.mark.usefixtures("servers")
    def test_custody_in_the_brokers_server_is_noted_and_in_production_a_failure(
        self, home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        home.note("tenfold_custody_url", (home.secrets / "tenfold_broker_url").read_text())
        sentence = "custody Redis is the broker's server; custody needs its own"
        assert main(["doctor", "--no-models"]) == 0
        assert sentence in findings(capsys.readouterr().out)["note"]
        monkeypatch.setenv("TENFOLD_ENVIRONMENT", "production")
        assert main(["doctor", "--no-models"]) == 1
        assert sentence in findings(capsys.readouterr().out)["FAIL"]

    def test_a_damaged_model_is_a_failure(self, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
        version = home.folder / "models/imported/ifadit/paper/1"
        version.mkdir(parents=True)
        (version / "config.json").write_text("{}")
        (version / ".tenfold.json").write_text('{"digest": "0", "figures": {}, "created_at": 0}')
        assert main(["doctor"]) == 1
        lines = findings(capsys.readouterr().out)["FAIL"]
        assert [line for line in lines if line.startswith("ifadit ifadit/paper@1 cannot be loaded: config.json:")]


class TestWeights:
    def test_imported_models_are_listed(self, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
        version = home.folder / "models/imported/ifadit/paper/1"
        version.mkdir(parents=True)
        (version / ".tenfold.json").write_text('{"digest": "0", "figures": {}, "created_at": 0}')
        assert main(["weights", "list"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "paper" in line]
        assert line.split()[:2] == ["ifadit/paper@1", "imported"]

    def test_files_that_are_not_the_published_ones_are_refused_and_nothing_is_stored(
        self, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "download").mkdir()
        (tmp_path / "download/readme.txt").write_text("nothing here")
        assert main(["weights", "import", "ifadit/paper", str(tmp_path / "download")]) == 1
        assert "one file named model_ir_se50.pth is needed, found none" in capsys.readouterr().err
        assert not (home.folder / "models/imported/ifadit/paper/1").exists()

    @pytest.mark.usefixtures("home")
    def test_a_method_without_published_weights_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["weights", "import", "astrology/paper", "x.pth"]) == 2
        said = capsys.readouterr().err
        assert "not for 'astrology'" in said
        assert all(method in said for method in IMPORTERS)


@pytest.mark.usefixtures("home")
def test_a_misspelt_setting_is_named_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TENFOLD_PROT", "8080")
    assert main(["doctor"]) == 2
    assert "did you mean TENFOLD_PORT?" in capsys.readouterr().err


@pytest.mark.usefixtures("servers")
def test_a_terminal_beside_make_up_finds_the_installation_by_itself(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TENFOLD_SECRETS_DIR")
    assert main(["keys", "create", "--tenant", "acme", "--role", "officer"]) == 0
    assert capsys.readouterr().out.startswith("tf_")
    assert main(["keys", "list"]) == 0
    assert "\tacme\tofficer\t" in capsys.readouterr().out


@pytest.mark.usefixtures("servers")
def test_what_a_principal_may_use_is_given_changed_and_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "--tenant", "acme", "--role", "app", "--running-jobs", "5"]) == 0
    name = capsys.readouterr().err.partition(":")[0]
    assert main(["keys", "limit", name]) == 0
    assert "running_jobs\t5\tits own\n" in capsys.readouterr().out
    assert main(["keys", "limit", name, "--running-jobs", "default", "--stored-bytes", "0"]) == 0
    said = capsys.readouterr().out
    assert "running_jobs\t20000\tthe installation's\n" in said
    assert "stored_bytes\tno limit\tits own\n" in said
    with pytest.raises(SystemExit):
        main(["keys", "limit", name, "--requests-per-minute", "-1"])
    assert "neither a number of 0 (no limit) or more nor `default`" in capsys.readouterr().err
