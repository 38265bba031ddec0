"""The one runner."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ["help", "install", "up", "demo", "test", "check", "fix", "parity", "bench"]
MAKE = shutil.which("make") or pytest.skip("make is not installed", allow_module_level=True)


def make(*arguments: str, cwd: Path, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path, "HOME": str(cwd), "LANG": "C.UTF-8"}
    return subprocess.run([MAKE, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that installing looks at, without an installation."""
    for name in ("Makefile", "pyproject.toml", "client/pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def test_make_alone_lists_every_target_with_a_line_each(checkout: Path) -> None:
    answer = make(cwd=checkout)
    assert answer.returncode == 0
    assert [line.split()[1] for line in answer.stdout.splitlines()] == TARGETS
    assert all(len(line.split()) > 4 for line in answer.stdout.splitlines())


def test_an_old_python_is_refused_with_its_version_and_a_way_out(checkout: Path) -> None:
    folder = checkout / "bin"
    folder.mkdir()
    for name in ("sh", "make", "awk", "sed", "touch"):
        folder.joinpath(name).symlink_to(shutil.which(name) or name)
    old = folder / "python3"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.9.2' && exit 0\nexit 1\n")
    old.chmod(0o755)
    answer = make("install", cwd=checkout, path=str(folder))
    assert answer.returncode != 0
    assert "Tenfold needs Python 3.11 or newer; found Python 3.9.2." in answer.stderr
    assert "make install BASE_PYTHON=" in answer.stderr
    assert not (checkout / ".venv").exists()


def test_a_second_install_does_nothing(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv/.installed").touch()
    answer = make("install", cwd=checkout, path=os.environ["PATH"])
    assert answer.returncode == 0
    assert "Nothing to be done" in answer.stdout


def test_a_changed_list_of_packages_installs_again(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    stamp = checkout / ".venv/.installed"
    stamp.touch()
    os.utime(stamp, (0, 0))
    answer = make("-n", "install", cwd=checkout)
    assert "-m pip install" in answer.stdout
    assert "-e ./client" in answer.stdout


def test_settings_in_a_dotenv_file_reach_the_programs_and_nothing_else_does(checkout: Path) -> None:
    (checkout / ".env").write_text("TENFOLD_PORT=8123\nOTHER=1\n")
    (checkout / "extra.mk").write_text("show:\n\t@env\n")
    answer = make("-f", "Makefile", "-f", "extra.mk", "show", cwd=checkout)
    lines = answer.stdout.splitlines()
    assert "TENFOLD_PORT=8123" in lines
    assert not [line for line in lines if line.startswith(("OTHER=", "PYTHON=", "VENV="))]
