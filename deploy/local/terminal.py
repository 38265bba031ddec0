"""What the person at the terminal sees, and how Ctrl-C reaches a running installation."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator

from deploy.local.supervisor import ProgramFailed

_SAME_PRESS_S = 1.0  # a signal to make reaches its children twice: from the terminal and from make
_SHOWN = {"gateway": 36, "worker": 32, "trainer": 35}  # with their ANSI colours; the others only write their logs


class Terminal:
    """Lines on standard output: ours as they are, those of programs behind their name. Errors go to standard error."""

    def __init__(self) -> None:
        self._has_colours = sys.stdout.isatty()

    def write(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def say(self, name: str, sentence: str) -> None:
        """What happened to a program."""
        self.write(f"{name} {sentence}")

    def echo(self, name: str, line: str) -> None:
        """A line that a program printed."""
        if name in _SHOWN:
            label = f"{name:7}"
            self.write(f"\033[{_SHOWN[name]}m{label}\033[0m {line}" if self._has_colours else f"{label} {line}")

    def fail(self, error: Exception) -> None:
        """Why nothing runs."""
        for line in error.tail if isinstance(error, ProgramFailed) else ():
            sys.stderr.write(f"    {line}\n")
        sys.stderr.write(f"{error}\n")


class Interrupt:
    """The wish of the person, or of the system, that this process ends: SIGINT, SIGTERM, or the terminal is gone.

    The first wish cancels the task that waits, which drains; a later one calls `harder`, if that is set by then.
    """

    def __init__(self) -> None:
        self.harder: Callable[[], None] | None = None
        self._since: float | None = None

    @property
    def was_asked_for(self) -> bool:
        return self._since is not None

    @contextlib.contextmanager
    def cancels(self, task: asyncio.Task[object]) -> Iterator[None]:
        """Listen while the block runs. A process that was told to ignore hang-ups (nohup) goes on ignoring them."""
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._heard, task)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _heard(self, task: asyncio.Task[object]) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
            task.cancel()
        elif now - self._since > _SAME_PRESS_S and self.harder:
            self.harder()
