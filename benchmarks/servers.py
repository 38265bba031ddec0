"""The servers that are compared: an installation of ours, bare FastAPI, LitServe. Each is killed at its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.fleet import DIAGNOSTIC, ROOT, UP_WITHIN_S, Fleet
from tests.redis_server import free_port


@contextmanager
def fleet(methods: Mapping[str, str] = DIAGNOSTIC, *, trainer: bool = False) -> Iterator[Fleet]:
    """An embedded installation on the CPU, one torch thread, warmed by a call."""
    with (
        tempfile.TemporaryDirectory(prefix="tenfold-bench-", ignore_cleanup_errors=True) as folder,
        Fleet(Path(folder), methods, trainer=trainer, TENFOLD_DEVICE="cpu", TENFOLD_LOG_LEVEL="warning") as ours,
    ):
        warm = f"{ours.url}/v1/diagnostic/noop"
        httpx.post(warm, headers=ours.headers(), json={}, timeout=120).raise_for_status()
        yield ours


@contextmanager
def bare() -> Iterator[tuple[str, int]]:
    """Bare FastAPI: its address and its process."""
    port = free_port()
    with _served([sys.executable, "-m", "benchmarks.bare", str(port)], port) as pid:
        yield f"http://127.0.0.1:{port}", pid


@contextmanager
def litserve(python: Path) -> Iterator[tuple[str, int]]:
    """LitServe, in the environment whose interpreter this is."""
    port = free_port()
    with _served([str(python), str(ROOT / "benchmarks" / "litserved.py"), str(port)], port) as pid:
        yield f"http://127.0.0.1:{port}", pid


def litserve_environment(folder: Path) -> Path | None:
    """An environment beside ours with LitServe in it, which sees our packages; None where pip cannot make it."""
    python = folder / "bin" / "python"
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)  # noqa: S603
        ours = "\n".join(path for path in sys.path if path.endswith("site-packages"))
        (next(folder.glob("lib/python*")) / "site-packages" / "ours.pth").write_text(ours + "\n")
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "litserve"]
        subprocess.run(install, check=True, capture_output=True, timeout=300)  # noqa: S603
    except (subprocess.SubprocessError, OSError):
        return None
    return python


@contextmanager
def _served(command: list[str], port: int) -> Iterator[int]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(  # noqa: S603
        command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )
    try:
        _until(lambda: _answers(port), process)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # LitServe has processes of its own
        process.wait()


def _answers(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
    except httpx.TransportError:
        return False
    return True


def _until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + UP_WITHIN_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} does not serve")
        time.sleep(0.1)
