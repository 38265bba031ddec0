"""The supervisor, over small real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.supervisor import Program, ProgramFailed, RestartPolicy, Supervisor

QUICK = RestartPolicy(first_s=0.05, longest_s=0.2, steady_s=30.0, falls=4, first_falls=2)


class Heard:
    """What the supervisor said and echoed, in order."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.echoed: list[tuple[str, str]] = []

    def say(self, name: str, sentence: str) -> None:
        self.said.append((name, sentence))

    def echo(self, name: str, line: str) -> None:
        self.echoed.append((name, line))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def supervisor(tmp_path: Path, heard: Heard) -> Supervisor:
    return Supervisor(tmp_path / "log", say=heard.say, echo=heard.echo, policy=QUICK)


def python(name: str, code: str, **options: object) -> Program:
    return Program(name, [sys.executable, "-I", "-u", "-c", textwrap.dedent(code)], **options)  # type: ignore[arg-type]


def exists(path: Path) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return os.access(path, os.F_OK)

    return check


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs: a zombie that nobody reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


SLEEP = "import time; time.sleep(60)"
# Writes its process id, then notes the order in which programs end.
POLITE = """
    import os, signal, sys, time
    name, folder = {name!r}, {folder!r}
    def end(*_):
        time.sleep({drain_s})
        with open(folder + "/order", "a") as file:
            file.write(name + " ")
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
    open(folder + "/" + name, "w").write(str(os.getpid()))
    while True:
        time.sleep(60)
"""


def polite(name: str, folder: Path, drain_s: float = 0.0, **options: object) -> Program:
    code = textwrap.dedent(POLITE).format(name=name, folder=str(folder), drain_s=drain_s)
    return python(name, code, ready=exists(folder / name), **options)


class TestStart:
    def test_it_waits_until_a_program_says_that_it_is_ready(self, supervisor: Supervisor, tmp_path: Path) -> None:
        code = f"import time; time.sleep(0.3); open({str(tmp_path / 'up')!r}, 'w'); time.sleep(60)"

        async def main() -> None:
            async with supervisor:
                await supervisor.start(python("slow", code, ready=exists(tmp_path / "up")))
                assert (tmp_path / "up").exists()

        asyncio.run(main())

    def test_a_program_that_ends_before_it_is_ready_fails_the_start_with_its_last_words(
        self, supervisor: Supervisor, tmp_path: Path
    ) -> None:
        program = python("broken", "import sys; sys.exit('no such colour')", ready=exists(tmp_path / "never"))

        async def main() -> None:
            async with supervisor:
                await supervisor.start(program)

        with pytest.raises(
            ProgramFailed, match=r"broken ended with status 1, 2 times in a row.*broken\.log"
        ) as failure:
            asyncio.run(main())
        assert failure.value.tail == ["no such colour"]

    def test_a_program_that_never_gets_ready_fails_the_start(self, supervisor: Supervisor, tmp_path: Path) -> None:
        program = python("deaf", SLEEP, ready=exists(tmp_path / "never"), ready_within_s=0.2)

        async def main() -> None:
            async with supervisor:
                await supervisor.start(program)

        with pytest.raises(ProgramFailed, match="was not ready in time"):
            asyncio.run(main())

    def test_a_single_task_that_fails_raises_and_one_that_lasts_too_long_is_ended(self, supervisor: Supervisor) -> None:
        async def main() -> None:
            async with supervisor:
                await supervisor.run_to_success(python("good", "pass"))
                with pytest.raises(ProgramFailed, match="bad ended with status 3"):
                    await supervisor.run_to_success(python("bad", "import sys; sys.exit(3)"))
                with pytest.raises(ProgramFailed, match="late did not finish"):
                    await supervisor.run_to_success(python("late", SLEEP, ready_within_s=0.2))
                assert not supervisor.running("late")

        asyncio.run(main())

    def test_children_stay_in_the_session_and_lead_groups_of_their_own(
        self, supervisor: Supervisor, heard: Heard
    ) -> None:
        async def main() -> None:
            async with supervisor:
                await supervisor.run_to_success(
                    python("child", "import os; print(os.getsid(0), os.getpgrp() == os.getpid())")
                )

        asyncio.run(main())
        assert heard.echoed == [("child", f"{os.getsid(0)} True")]


class TestRestart:
    def test_a_killed_program_comes_back(self, supervisor: Supervisor, heard: Heard, tmp_path: Path) -> None:
        async def main() -> None:
            async with supervisor:
                await supervisor.start(polite("phoenix", tmp_path))
                first = int((tmp_path / "phoenix").read_text())
                (tmp_path / "phoenix").unlink()
                os.kill(first, signal.SIGKILL)
                await until((tmp_path / "phoenix").exists)
                await until(lambda: (tmp_path / "phoenix").read_text() not in ("", str(first)))

        asyncio.run(main())
        assert heard.said == [("phoenix", "was ended by SIGKILL; it is started again in 0.1 s")]

    def test_one_that_keeps_falling_is_given_up_after_growing_pauses(
        self, supervisor: Supervisor, heard: Heard, tmp_path: Path
    ) -> None:
        since = time.monotonic()

        async def main() -> None:
            async with supervisor:
                await supervisor.start(python("moth", "import sys; print('ouch'); sys.exit(9)"))
                await supervisor.until_given_up()

        with pytest.raises(ProgramFailed, match="moth ended with status 9, 4 times in a row") as failure:
            asyncio.run(main())
        assert failure.value.tail == ["ouch"]
        assert len(heard.said) == 3
        assert time.monotonic() - since >= 0.05 + 0.1 + 0.2
        assert (tmp_path / "log/moth.log").read_text() == "ouch\n" * 4

    def test_pauses_double_up_to_a_bound(self) -> None:
        policy = RestartPolicy(first_s=0.5, longest_s=10.0)
        assert [policy.pause_s(falls) for falls in range(1, 8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]

    def test_a_program_that_ran_steadily_has_no_past(self, tmp_path: Path, heard: Heard) -> None:
        policy = RestartPolicy(first_s=0.01, steady_s=0.05, falls=2)
        supervisor = Supervisor(tmp_path, say=heard.say, policy=policy)

        async def main() -> None:
            async with supervisor:
                await supervisor.start(python("mayfly", "import time; time.sleep(0.1)"))
                await until(lambda: len(heard.said) >= 4)

        asyncio.run(main())

    def test_what_a_program_leaves_behind_does_not_keep_it_from_coming_back(
        self, supervisor: Supervisor, heard: Heard, tmp_path: Path
    ) -> None:
        code = f"""
            import subprocess, sys
            child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
            open({str(tmp_path / "orphan")!r}, "a").write(f"{{child.pid}} ")
        """

        async def main() -> None:
            async with supervisor:
                await supervisor.start(python("parent", code))
                await until(lambda: len(heard.said) >= 1)
                first = int((tmp_path / "orphan").read_text().split()[0])
                await until(lambda: not alive(first))

        asyncio.run(main())


class TestDrain:
    def test_programs_end_in_their_order_each_before_the_next_whichever_was_restarted(
        self, supervisor: Supervisor, tmp_path: Path
    ) -> None:
        async def main() -> None:
            async with supervisor:
                await supervisor.start(
                    polite("door", tmp_path, stop_order=1),
                    polite("store", tmp_path, stop_order=2),
                    polite("worker", tmp_path, drain_s=0.3),
                )
                first = int((tmp_path / "store").read_text())
                (tmp_path / "store").unlink()
                os.kill(first, signal.SIGKILL)
                await until((tmp_path / "store").exists)

        asyncio.run(main())
        assert (tmp_path / "order").read_text().split() == ["worker", "door", "store"]

    def test_a_door_is_told_first_and_again_when_its_turn_to_end_comes(
        self, supervisor: Supervisor, heard: Heard, tmp_path: Path
    ) -> None:
        door = f"""
            import signal, sys
            waiting = {{signal.SIGTERM}}
            signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
            open({str(tmp_path / "door")!r}, "w")
            signal.sigwait(waiting); print("closed to new work", flush=True)
            signal.sigwait(waiting); print("ends", flush=True)
        """
        worker = """
            import signal, sys, time
            def end(*_):
                time.sleep(0.5); print("finished", flush=True); sys.exit(0)
            signal.signal(signal.SIGTERM, end); print("works", flush=True); time.sleep(60)
        """

        async def main() -> None:
            async with supervisor:
                await supervisor.start(
                    python("door", door, ready=exists(tmp_path / "door"), told_first=True, stop_order=1)
                )
                await supervisor.start(python("worker", worker))
                await until(lambda: ("worker", "works") in heard.echoed)

        asyncio.run(main())
        assert [line for _, line in heard.echoed] == ["works", "closed to new work", "finished", "ends"]

    def test_one_that_does_not_end_in_time_is_killed(
        self, supervisor: Supervisor, heard: Heard, tmp_path: Path
    ) -> None:
        code = f"""
            import os, signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
            time.sleep(60)
        """

        async def main() -> None:
            async with supervisor:
                await supervisor.start(python("mule", code, ready=exists(tmp_path / "pid"), stop_within_s=0.2))

        asyncio.run(main())
        assert heard.said == [("mule", "did not end within 0 s and was killed")]
        assert not alive(int((tmp_path / "pid").read_text()))

    def test_the_last_lines_reach_the_log(self, supervisor: Supervisor, tmp_path: Path) -> None:
        code = f"""
            import signal, sys, time
            def end(*_):
                sys.stdout.write("x" * 200000 + " good-bye"); sys.exit(0)
            signal.signal(signal.SIGTERM, end)
            open({str(tmp_path / "up")!r}, "w"); time.sleep(60)
        """

        async def main() -> None:
            async with supervisor:
                await supervisor.start(python("talker", code, ready=exists(tmp_path / "up")))

        asyncio.run(main())
        log = (tmp_path / "log/talker.log").read_text()
        assert log.endswith(" good-bye\n")
        assert log.count("x") == 200000
        assert (tmp_path / "log/talker.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
class TestDeathOfTheParent:
    @pytest.fixture
    def family(self, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
        """A process that supervises two programs, one of them stubborn; and their process ids."""
        code = f"""
            import asyncio, pathlib, sys
            sys.path.insert(0, {str(Path.cwd())!r})
            from tests.deploy.test_supervisor import POLITE, exists, polite, python
            from deploy.local.supervisor import Supervisor
            folder = pathlib.Path({str(tmp_path)!r})
            stubborn = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);" \\
                f"open({{str(folder / 'stubborn')!r}}, 'w').write(str(os.getpid())); time.sleep(60)"
            async def main():
                async with Supervisor(folder / "log", say=lambda *_: None) as supervisor:
                    up = exists(folder / "stubborn")
                    await supervisor.start(polite("calm", folder), python("stubborn", stubborn, ready=up))
                    open(folder / "up", "w")
                    await asyncio.sleep(60)
            asyncio.run(main())
        """
        parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
        end = time.monotonic() + 20
        while not (tmp_path / "up").exists():
            assert parent.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        try:
            yield parent, [int((tmp_path / name).read_text()) for name in ("calm", "stubborn")]
        finally:
            parent.kill()
            parent.wait()

    def test_children_end_when_the_supervisor_is_killed(
        self, family: tuple[subprocess.Popen[bytes], list[int]]
    ) -> None:
        parent, children = family
        assert all(map(alive, children))
        parent.kill()
        parent.wait()
        end = time.monotonic() + 5
        while any(map(alive, children)):
            assert time.monotonic() < end
            time.sleep(0.02)


def test_a_child_keeps_what_it_inherits(tmp_path: Path, heard: Heard) -> None:
    with (tmp_path / "lock").open("w") as lock:
        supervisor = Supervisor(tmp_path, say=heard.say, echo=heard.echo, inherited=[lock.fileno()])
        code = f"import os; print(os.path.samestat(os.fstat({lock.fileno()}), os.stat({str(tmp_path / 'lock')!r})))"

        async def main() -> None:
            async with supervisor:
                await supervisor.run_to_success(python("heir", code))

        with contextlib.suppress(ProgramFailed):
            asyncio.run(main())
    assert heard.echoed == [("heir", "True")]
