"""What the demo makes of a method's part."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import ModuleType

import pytest

from deploy.local.demo import _exhibit, _rows
from deploy.local.exhibit import Exhibit, Visitors
from deploy.local.terminal import Terminal
from deploy.methods import METHODS
from tenfold import AsyncClient, ConnectionFailed


@pytest.fixture
def visitors(tmp_path: Path) -> Visitors:
    """Clients of a service that is not there."""
    client = AsyncClient("http://127.0.0.1:9", "tf_none", max_retries=0)
    return Visitors(client, client, client, tmp_path)


def test_every_method_has_its_part() -> None:
    folder = Path(__file__).parents[2] / "deploy/local/demos"
    assert {path.stem for path in folder.glob("[a-z]*.py")} == {method.replace("-", "_") for method in METHODS}


def test_what_a_part_raises_is_a_check_that_does_not_hold(
    visitors: Visitors, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def show(visitors: Visitors, exhibit: Exhibit) -> None:
        exhibit.check("so far", True)
        with exhibit.timed("health"):
            await visitors.app.health()

    part = ModuleType("deploy.local.demos.two_words")
    part.show = show  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, part.__name__, part)

    exhibit = asyncio.run(_exhibit("two-words", visitors, Terminal()))

    assert not exhibit.is_right
    assert not exhibit.calls, "a call that failed has no time"
    assert [(check.sentence, check.holds) for check in exhibit.checks] == [
        ("so far", True),
        ("every call is answered", False),
    ]
    rows = list(_rows(exhibit))
    assert [row[0] for row in rows] == ["two-words", ""]
    assert "✗" in rows[1][2]
    assert capsys.readouterr().out == "two-words …\n"


def test_the_problem_that_it_meets_is_one_of_the_clients() -> None:
    async def main() -> None:
        async with AsyncClient("http://127.0.0.1:9", "tf_none", max_retries=0) as client:
            with pytest.raises(ConnectionFailed):
                await client.health()

    asyncio.run(main())
