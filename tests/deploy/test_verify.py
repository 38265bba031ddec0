"""`tenfold-admin verify` over folders in the golden format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.admin.main import main

GOLDEN = Path(__file__).parents[1] / "golden" / "ifadit"


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of golden vectors from two small cases, changed as the test wishes."""

    def make(change: Callable[[list[dict[str, Any]]], object] = lambda cases: None) -> Path:
        index = json.loads((GOLDEN / "index.json").read_text())
        index["cases"] = [case for case in index["cases"] if case["kind"] in ("latent_mapper", "audit_chain")]
        change(index["cases"])
        for path in GOLDEN.iterdir():
            if path.name != "index.json":
                shutil.copyfile(path, tmp_path / path.name)
        (tmp_path / "index.json").write_text(json.dumps(index))
        return tmp_path

    return make


def test_a_folder_that_agrees_passes_with_an_error_an_output_and_a_summary(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "ifadit", str(folder())]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "passed  latent_mapper (latent_mapper)"
    error, role = lines[1].split()
    assert role == "y"
    assert 0 < float(error) < 1e-4
    assert lines[-1].startswith("ifadit: 2 passed, 0 failed, 0 skipped in ")


def test_names_of_cases_carry_no_meaning(folder: Callable[..., Path]) -> None:
    assert main(["verify", "ifadit", str(folder(lambda cases: cases[0].update(name="anything")))]) == 0


def test_an_unknown_kind_is_a_failure(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "ifadit", str(folder(lambda cases: cases[0].update(kind="divination")))]) == 1
    out = capsys.readouterr().out
    assert "unknown kind 'divination'" in out
    assert "1 passed, 1 failed" in out


def test_an_output_beyond_its_tolerance_is_a_failure(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "ifadit", str(folder(lambda cases: cases[0].update(tolerance={"*": {"atol": 0}})))]) == 1
    assert "y  BEYOND TOLERANCE: outside" in capsys.readouterr().out


def test_slow_cases_can_be_left_out_but_nothing_at_all_is_no_success(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder(lambda cases: [case.update(slow=True) for case in cases])
    assert main(["verify", "ifadit", str(place), "--quick"]) == 1
    assert "0 passed, 0 failed, 2 skipped" in capsys.readouterr().out


def test_a_folder_that_is_none_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "ifadit", str(tmp_path)]) == 1
    assert "no readable index.json" in capsys.readouterr().err


def test_the_default_folder_is_the_one_that_ships(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "ifadit"]) == 1, "there is no tests/golden here"


def test_a_set_that_nobody_knows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(["verify", "astrology"])
    assert status.value.code == 2
    assert "ifadit" in capsys.readouterr().err
