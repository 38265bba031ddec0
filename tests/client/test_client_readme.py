"""The examples work as they stand."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest

import tenfold
from tenfold.cli import main
from tests.client.contract import API_KEY, Contract

README = (Path(__file__).parents[2] / "client/README.md").read_text()


@pytest.fixture(autouse=True)
def _environment(contract: Contract, monkeypatch: pytest.MonkeyPatch, photo: Path) -> None:
    monkeypatch.setenv("TENFOLD_URL", contract.url)
    monkeypatch.setenv("TENFOLD_API_KEY", API_KEY)
    monkeypatch.chdir(photo.parent)


def test_the_python_session_runs(capsys: pytest.CaptureFixture[str], photo: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - our own
    assert capsys.readouterr().out == "1 faces, key key_default\n"
    assert Path("anonymized.png").read_bytes() == photo.read_bytes()


def test_the_readme_shows_what_the_package_says_of_itself() -> None:
    (example, *_) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    sources = [example.source for example in doctest.DocTestParser().get_examples(tenfold.__doc__ or "")]
    assert "".join(sources[:2]).split() == example.split()


def test_the_packages_own_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    known = {"officer_key": API_KEY}
    for example in doctest.DocTestParser().get_examples(tenfold.__doc__ or ""):
        exec(compile(example.source, "tenfold", "exec"), known)  # noqa: S102 - our own
    assert Path("anonymized.png").exists()
    assert Path("recovered.png").exists()


def test_the_commands_run(photo: Path) -> None:
    key = Path(".tenfold/keys/officer")
    key.parent.mkdir(parents=True)
    key.write_text(API_KEY)
    commands = re.findall(r"^tenfold (.*)$", README, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        assert main([str(photo) if word == "*.jpg" else word for word in shlex.split(command)]) == 0, command


def test_everything_it_names_is_there() -> None:
    client = tenfold.Client("http://127.0.0.1:1")
    for group, names in re.findall(r"\| `client\.(\w+)` \| (.*?) \|", README):
        for name in re.findall(r"`(\w+)`", names):
            assert callable(getattr(getattr(client, group), name)), f"{group}.{name}"
    for name in re.findall(r"`([A-Z]\w+)`", README):
        assert name in tenfold.__all__, name
