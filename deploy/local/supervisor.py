"""Run several programs as one: start them in order, restart what falls, stop them in an order that loses nothing.

A program is ready when its own check says so, not when it was started. One that falls is started again after a growing
pause; one that keeps falling is given up, and so is the whole. Children lead process groups of their own, so that the
Ctrl-C of a terminal reaches only the supervisor, which then drains; they stay in its session, and the kernel ends them
when it dies without a goodbye (`launch.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from deploy.local.logs import LogFile

_LAUNCH = Path(__file__).with_name("launch.py")
_READY_POLL_S = 0.05
_AFTER_KILL_S = 5.0  # a killed process that is not gone by then hangs in the kernel


@dataclass(frozen=True)
class RestartPolicy:
    """How often, and after which pauses, a program that ended is started again."""

    first_s: float = 0.5
    """Pause after the first fall; doubled after each further one."""
    longest_s: float = 10.0
    steady_s: float = 30.0
    """A program that ran this long has no past: its next fall counts as the first."""
    falls: int = 5
    """This many falls in a row, and the program is given up."""
    first_falls: int = 2
    """The same for a program that was never ready: it will hardly mend itself."""

    def pause_s(self, falls: int) -> float:
        """Seconds to wait after so many falls in a row (1, 2, …)."""
        return min(self.longest_s, self.first_s * 2.0 ** (falls - 1))


@dataclass(frozen=True)
class Program:
    """What to run, and how to tell that it is ready and how it wants to be stopped."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the supervisor's own environment."""
    ready: Callable[[], Awaitable[bool]] | None = None
    """Asked every 50 ms; a program without it is ready at once."""
    ready_within_s: float = 60.0
    stop_within_s: float = 10.0
    """Time between SIGTERM and SIGKILL."""
    stop_order: int = 0
    """Those with the lowest number end first, side by side; the next ones when they are gone."""
    told_first: bool = False
    """Gets a SIGTERM before everything else, to refuse new work, and a second one when its own turn to end comes."""
    orphan_signal: int = signal.SIGKILL
    """What it gets from the kernel when the supervisor dies."""


class ProgramFailed(Exception):
    """A program did not become ready, failed at its one task, or kept falling. `tail` has its last lines."""

    def __init__(self, name: str, what: str, log: Path, tail: Sequence[str]) -> None:
        super().__init__(f"{name} {what}; its log is {log}")
        self.tail = list(tail)


class Supervisor:
    """Owner of a set of child processes: an asynchronous context manager that drains when it is left."""

    def __init__(
        self,
        log_folder: Path,
        *,
        say: Callable[[str, str], None],
        echo: Callable[[str, str], None] | None = None,
        policy: RestartPolicy | None = None,
        inherited: Sequence[int] = (),
    ) -> None:
        """`say(name, sentence)` hears what happens to a program, `echo(name, line)` each line that it prints.

        `inherited` are file descriptors that every child keeps open: a lock held by one is held until the last is gone.
        """
        self._log_folder = log_folder
        self._say = say
        self._echo = echo
        self._policy = policy or RestartPolicy()
        self._inherited = tuple(inherited)
        self._children: dict[str, _Child] = {}  # what runs now
        self._keepers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, *programs: Program) -> None:
        """Start programs side by side and return when all are ready. Raises `ProgramFailed` if one is given up."""
        firsts = []
        for program in programs:
            first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._keepers.append(asyncio.create_task(self._keep(program, first), name=program.name))
            firsts.append(first)
        await asyncio.gather(*firsts)

    async def run(self, program: Program) -> int:
        """Run a program to its end and return its exit status; negative: the signal that ended it."""
        child = await self._spawn(program)
        return await child.wait()

    async def run_to_success(self, program: Program) -> None:
        """Run a program to its end. Raises `ProgramFailed` unless it succeeds within `ready_within_s`."""
        child = await self._spawn(program)
        try:
            code = await asyncio.wait_for(child.wait(), program.ready_within_s)
        except TimeoutError:
            await child.stop(0)
            raise child.failed(f"did not finish within {program.ready_within_s:.0f} s") from None
        if code != 0:
            raise child.failed(ending(code))

    async def until_given_up(self) -> None:
        """Never return; raise `ProgramFailed` as soon as a started program is given up."""
        done, _ = await asyncio.wait(self._keepers, return_when=asyncio.FIRST_EXCEPTION)
        for keeper in done:
            keeper.result()

    def running(self, name: str) -> bool:
        """Whether a process of this name runs at the moment."""
        return name in self._children

    async def stop(self) -> None:
        """End everything: a first word to those that take work, then one `stop_order` after the other."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for child in self._children.values():
            if child.program.told_first:
                child.send(signal.SIGTERM)
        for order in sorted({child.program.stop_order for child in self._children.values()}):
            together = [child for child in self._children.values() if child.program.stop_order == order]
            await asyncio.gather(*map(self._end, together))

    async def _end(self, child: _Child) -> None:
        if not await child.stop(child.program.stop_within_s):
            self._say(child.program.name, f"did not end within {child.program.stop_within_s:.0f} s and was killed")

    def kill(self) -> None:
        """End everything now, without a drain."""
        for child in self._children.values():
            child.send(signal.SIGKILL)

    async def _keep(self, program: Program, first: asyncio.Future[None]) -> None:
        falls = 0
        while True:
            since = time.monotonic()
            child = await self._spawn(program)
            if await child.became_ready():
                if not first.done():
                    first.set_result(None)
                what = ending(await child.wait())
            else:
                what = "was not ready in time" if child.code is None else ending(child.code)
                await child.stop(0)
            falls = 1 if time.monotonic() - since >= self._policy.steady_s else falls + 1
            if falls >= (self._policy.falls if first.done() else self._policy.first_falls):
                failure = child.failed(f"{what}, {falls} times in a row")
                if not first.done():
                    first.set_exception(failure)
                raise failure
            pause_s = self._policy.pause_s(falls)
            self._say(program.name, f"{what}; it is started again in {pause_s:.1f} s")
            await asyncio.sleep(pause_s)

    async def _spawn(self, program: Program) -> _Child:
        launcher = (sys.executable, "-I", "-S", str(_LAUNCH))
        wishes = (str(os.getpid()), str(int(program.orphan_signal)))
        read_end, write_end = os.pipe()  # not asyncio's: its wait() may last until every copy of the pipe is closed
        try:
            process = await asyncio.create_subprocess_exec(
                *launcher,
                *wishes,
                *program.command,
                env={**os.environ, **program.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=asyncio.subprocess.STDOUT,
                process_group=0,
                pass_fds=self._inherited,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        child = _Child(program, process, read_end, self._log_folder / f"{program.name}.log", self._echo)
        self._children[program.name] = child
        child.ended.add_done_callback(lambda _: self._forget(child))
        return child

    def _forget(self, child: _Child) -> None:
        if self._children.get(child.program.name) is child:
            del self._children[child.program.name]


class _Child:
    """One process, and the task that carries what it prints to its log."""

    def __init__(
        self,
        program: Program,
        process: asyncio.subprocess.Process,
        output: int,
        log_path: Path,
        echo: Callable[[str, str], None] | None,
    ) -> None:
        self.program = program
        self._process = process
        self._log = LogFile(log_path)
        self._echo = echo
        pipe = open(output, "rb", buffering=0)  # noqa: SIM115 - the transport of `_read` closes it
        self._reader = asyncio.create_task(self._read(pipe), name=f"log of {program.name}")
        self.ended = asyncio.create_task(self._end(), name=f"end of {program.name}")

    @property
    def code(self) -> int | None:
        return self._process.returncode

    def send(self, number: int) -> None:
        """Send a signal to the process and to what it started itself; harmless when they are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def wait(self) -> int:
        """The exit status, once the process has ended and its last line is in the log."""
        return await asyncio.shield(self.ended)

    async def became_ready(self) -> bool:
        """True once the program's check holds; False when the process ended before, or its time ran out."""
        if self.program.ready is None:
            return True
        until = time.monotonic() + self.program.ready_within_s
        while self.code is None and time.monotonic() < until:
            if await self.program.ready():
                return True
            await asyncio.sleep(_READY_POLL_S)
        return False

    async def stop(self, within_s: float) -> bool:
        """End the process, with a SIGTERM first if `within_s` is not 0; False if that time was not enough."""
        if within_s > 0:
            self.send(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wait(), within_s)
        in_time = within_s == 0 or self.code is not None
        self.send(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait(), _AFTER_KILL_S)
        return in_time

    def failed(self, what: str) -> ProgramFailed:
        return ProgramFailed(self.program.name, what, self._log.path, self._log.tail)

    async def _end(self) -> int:
        code = await self._process.wait()
        self.send(signal.SIGKILL)  # what it may have left behind in its group would hold the pipe open
        await self._reader
        return code

    async def _read(self, pipe: IO[bytes]) -> None:
        loop = asyncio.get_running_loop()
        stream = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
        with self._log, contextlib.closing(transport):
            while chunk := await stream.read(65536):
                for line in self._log.write(chunk):
                    if self._echo:
                        self._echo(self.program.name, line)


def ending(code: int) -> str:
    """Words for an exit status: negative ones are signals."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
