"""`make up`: everything on this machine, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.local.launch import ask_for_signal_when_parent_ends
from deploy.local.settings import LocalSettings, load
from deploy.local.stack import REFUSALS, Running, running
from deploy.local.terminal import Interrupt, Terminal
from deploy.methods import METHODS, load_service


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    parser.add_argument("--end-with-parent", action="store_true", help="stop when the process that started this ends")
    parser.add_argument("--service", action="append", metavar="MODULE:ATTRIBUTE", help="default: all methods")
    arguments = parser.parse_args(argv)
    if arguments.end_with_parent:
        ask_for_signal_when_parent_ends(signal.SIGTERM)
    terminal = Terminal()
    try:
        settings = load()
        methods = {load_service(place).name: place for place in arguments.service or ()} or METHODS
    except ValueError as error:
        terminal.fail(error)
        return 2
    return asyncio.run(_up(settings, terminal, methods))


async def _up(settings: LocalSettings, terminal: Terminal, methods: Mapping[str, str]) -> int:
    since = time.monotonic()
    interrupt = Interrupt()
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a coroutine always runs in a task")
    with interrupt.cancels(task):
        try:
            installation = running(settings, say=terminal.say, echo=terminal.echo, interrupt=interrupt, methods=methods)
            async with installation as here:
                terminal.write(_welcome(here, time.monotonic() - since))
                try:
                    await here.supervisor.until_given_up()
                finally:
                    terminal.write("Finishing what runs; a second Ctrl-C ends it at once.")
        except REFUSALS as error:
            terminal.fail(error)
            return 1
        except asyncio.CancelledError:
            if not interrupt.was_asked_for:
                raise
    terminal.write("Stopped.")
    return 0


def _welcome(here: Running, seconds: float) -> str:
    home = _short(here.home.folder)
    return (
        f"Tenfold is ready at {here.url} after {seconds:.1f} s.\n"
        f"  API keys    {home}/keys/app, {home}/keys/officer, {home}/keys/custodian\n"
        f"  pictures    {home}/samples\n"
        f"  try         curl -H \"Authorization: Bearer $(cat {home}/keys/app)\" -H 'Accept: image/png' \\\n"
        f"                -F image=@{home}/samples/astronaut.png {here.url}/v1/ifadit/anonymize -o anonymized.png\n"
        f"  reference   {here.url}/docs\n"
        "Ctrl-C stops it."
    )


def _short(path: Path) -> str:
    """The path as one would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
