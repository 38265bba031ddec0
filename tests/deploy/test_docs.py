"""What README and guide say of names, paths and commands is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from deploy.admin import main as admin
from deploy.methods import METHODS
from shared.settings import known_names
from tenfold import cli as client

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/guide").glob("*.md"))]


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def commands(page: Path) -> list[str]:
    """The lines that begin with `$` in the page's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_setting_is_one(page: Path) -> None:
    assert set(re.findall(r"TENFOLD_[A-Z_]+[A-Z]", page.read_text())) <= known_names()


def test_every_make_target_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (up|[a-z]+)\b(?=[`\s]*(?:#|`|$))", page.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_tenfold_admin_command_is_understood(page: Path) -> None:
    for command in commands(page):
        program, *arguments = shlex.split(command, comments=True)
        if program.endswith("tenfold-admin"):
            admin.parser().parse_args(arguments)


def test_every_tenfold_command_is_understood(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(page):
        program, *arguments = shlex.split(command, comments=True)
        if program.endswith("bin/tenfold"):
            with pytest.raises(SystemExit) as status:  # `--help` ends behind the parsing of what stands before it
                client.main([*arguments, "--help"])
            assert status.value.code == 0, capsys.readouterr().err


def test_the_first_screen_has_the_sentence_the_commands_and_two_calls() -> None:
    screen = (ROOT / "README.md").read_text().splitlines()[:24]
    found = commands(ROOT / "README.md")
    assert [command.split("#")[0].strip() for command in found[:3]] == ["make demo", "make test", "make up"]
    assert [re.findall(r"/v1/(\S+)", command) for command in found[3:]] == [["ifadit/anonymize"], ["ifadit/recover"]]
    assert screen.count("200 image/png") == 2
    assert all(f"$ {command}" in "\n".join(screen) for command in found)


def test_readme_names_every_method() -> None:
    text = (ROOT / "README.md").read_text()
    for method in METHODS:
        assert f"| `{method}` |" in text
