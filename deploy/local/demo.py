"""`make demo`: start everything on a free port, run every method once through the SDK, check, show, stop.

Exit status 0 only if every result passed its checks. The page with the pictures is `.tenfold/demo/index.html`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deploy.local import gallery
from deploy.local.exhibit import Exhibit, Visitors
from deploy.local.home import Home, write_private
from deploy.local.launch import ask_for_signal_when_parent_ends
from deploy.local.settings import LocalSettings, load
from deploy.local.stack import REFUSALS, running
from deploy.local.terminal import Interrupt, Terminal
from deploy.methods import METHODS
from tenfold import AsyncClient, Problem

INTERRUPTED = 130
_CALL_TIMEOUT_S = 300.0  # the first call of a method loads its model, on a machine that may be busy


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.local.demo", description=__doc__)
    parser.add_argument("--end-with-parent", action="store_true", help="stop when the process that started this ends")
    arguments = parser.parse_args(argv)
    if arguments.end_with_parent:
        ask_for_signal_when_parent_ends(signal.SIGTERM)
    terminal = Terminal()
    try:
        settings = load()
    except ValueError as error:
        terminal.fail(error)
        return 2
    apart = settings.model_copy(update={"home": settings.home / "demo", "port": 0})
    return asyncio.run(_demo(apart, terminal))


async def _demo(settings: LocalSettings, terminal: Terminal) -> int:
    interrupt = Interrupt()
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a coroutine always runs in a task")
    since = time.monotonic()
    with interrupt.cancels(task):
        try:
            installation = running(settings, say=terminal.say, echo=None, interrupt=interrupt, methods=METHODS)
            async with installation as here:
                terminal.write(f"Ready at {here.url} after {time.monotonic() - since:.1f} s.")
                async with contextlib.AsyncExitStack() as stack:
                    visitors = await _visitors(here.url, here.home, stack)
                    exhibits = [await _exhibit(method, visitors, terminal) for method in METHODS]
        except REFUSALS as error:
            terminal.fail(error)
            return 1
        except asyncio.CancelledError:
            if not interrupt.was_asked_for:
                raise
            return INTERRUPTED
    page = settings.home / "index.html"
    made_at = (
        f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {platform.machine()}, Python {platform.python_version()}."
    )
    write_private(page, gallery.page(exhibits, made_at), 0o600)
    _print(exhibits, page)
    return 0 if all(exhibit.is_right for exhibit in exhibits) else 1


async def _visitors(url: str, home: Home, stack: contextlib.AsyncExitStack) -> Visitors:
    clients = {
        role: await stack.enter_async_context(
            AsyncClient(url, (home.keys / role).read_text().strip(), timeout_s=_CALL_TIMEOUT_S)
        )
        for role in ("app", "officer", "custodian")
    }
    return Visitors(clients["app"], clients["officer"], clients["custodian"], home.samples)


async def _exhibit(method: str, visitors: Visitors, terminal: Terminal) -> Exhibit:
    """Run one method's part. What it raises is a check that does not hold: the other methods are shown all the same."""
    exhibit = Exhibit(method)
    terminal.write(f"{method} …")
    try:
        await importlib.import_module(f"deploy.local.demos.{method.replace('-', '_')}").show(visitors, exhibit)
    except (Problem, ValueError) as error:
        exhibit.check("every call is answered", False, str(error))
    return exhibit


def _print(exhibits: Sequence[Exhibit], page: Path) -> None:
    console = Console()
    table = Table("method", "call or check", "result", title="Tenfold")
    for exhibit in exhibits:
        for row in _rows(exhibit):
            table.add_row(*row)
        table.add_section()
    console.print(table)
    right = sum(exhibit.is_right for exhibit in exhibits)
    console.print(f"{right} of {len(exhibits)} methods passed every check. The pictures: {page}", highlight=False)


def _rows(exhibit: Exhibit) -> Iterator[tuple[str, str, str]]:
    name = exhibit.method
    for call in exhibit.calls:
        yield name, call.operation, f"{call.seconds:.2f} s"
        name = ""
    for check in exhibit.checks:
        mark = "[green]✓[/]" if check.holds else "[bold red]✗[/]"
        yield name, check.sentence, f"{mark} {check.measured}"
        name = ""


if __name__ == "__main__":
    sys.exit(main())
