"""Ctrl-C, and what the person at the terminal sees."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import terminal as terminal_module
from deploy.local.supervisor import ProgramFailed
from deploy.local.terminal import Interrupt, Terminal


@pytest.fixture
def heard() -> Iterator[None]:
    """A hang-up is not ignored, as it would be under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class TestInterrupt:
    @pytest.mark.usefixtures("heard")
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_the_first_one_cancels_what_waits_and_cleaning_up_goes_on(self, number: signal.Signals) -> None:
        seen = []

        async def main() -> None:
            interrupt = Interrupt()
            task = asyncio.current_task()
            assert task
            with interrupt.cancels(task):
                os.kill(os.getpid(), number)
                try:
                    await asyncio.sleep(10)
                except asyncio.CancelledError:
                    await asyncio.sleep(0.01)
                    seen.append(interrupt.was_asked_for)

        asyncio.run(main())
        assert seen == [True]

    def test_one_that_comes_twice_at_once_counts_once_and_a_later_one_is_meant(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(terminal_module, "_SAME_PRESS_S", 0.2)
        harder: list[float] = []

        async def main() -> None:
            interrupt = Interrupt()
            interrupt.harder = lambda: harder.append(time.monotonic())
            waiting = asyncio.create_task(asyncio.sleep(10))
            with interrupt.cancels(waiting):
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0.01)
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0.3)
                assert waiting.cancelled()
                assert not harder
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0.01)

        asyncio.run(main())
        assert len(harder) == 1

    def test_nohup_keeps_a_hang_up_from_ending_it(self) -> None:
        code = (
            "import asyncio, os, signal\n"
            "from deploy.local.terminal import Interrupt\n"
            "async def main():\n"
            "    interrupt = Interrupt()\n"
            "    with interrupt.cancels(asyncio.current_task()):\n"
            "        os.kill(os.getpid(), signal.SIGHUP)\n"
            "        await asyncio.sleep(0.05)\n"
            "        print(interrupt.was_asked_for)\n"
            "asyncio.run(main())\n"
        )
        command = ["sh", "-c", 'trap "" HUP; exec "$0" -c "$1"', sys.executable, code]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        assert answer.stdout == "False\n"


def test_lines_of_programs_stand_behind_their_name_without_colours_in_a_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Terminal().echo("worker", "model.loaded")
    Terminal().echo("broker-redis", "bye bye")
    assert capsys.readouterr().out == "worker  model.loaded\n"


def test_a_failure_comes_with_the_last_lines_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().fail(ProgramFailed("gateway", "ended with status 2", Path("log/gateway.log"), ["first", "last"]))
    assert capsys.readouterr().err == "    first\n    last\ngateway ended with status 2; its log is log/gateway.log\n"
