"""`make bench`, or `python -m benchmarks [NAME …] [--seconds S]`: ratios measured here and now.

Each benchmark prints one JSON object and leaves it in `benchmarks/reports/NAME.KIND.json`. All reports together are the
table in `docs/performance.md`, which is written anew at the end; `--table` writes it from the reports alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    autoencoder,
    backlog,
    denoiser,
    detector,
    faces,
    guarding,
    neighbours,
    overhead,
    stacks,
    table,
)

REPORTS = Path(__file__).parent / "reports"
SOAK_MINUTES = 15.0

# name: what it runs, given seconds of measuring at one setting. `soak` takes minutes of its own.
BENCHMARKS: dict[str, Callable[[float], dict[str, Any]]] = {
    "noop": overhead.noop,
    "model": overhead.model,
    "batching": overhead.batching,
    "mixed": neighbours.mixed,
    "streaming": neighbours.streaming,
    "faces": lambda _: dict(faces.measure()),
    "fitting": guarding.fitting,
    "guard": guarding.guard,
    "stacks": lambda _: stacks.stacks(),
    "denoiser": lambda _: denoiser.measure(),
    "autoencoder": lambda _: autoencoder.measure(),
    "detector": lambda _: detector.measure(),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n\n")[0])
    names = [*BENCHMARKS, "backlog", "soak"]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all but soak")
    parser.add_argument("--seconds", type=float, default=10, help="of measuring, at one setting")
    parser.add_argument("--jobs", type=int, default=10_000, help="of the backlog, in thousands")
    parser.add_argument("--minutes", type=float, default=SOAK_MINUTES, help="of the soak")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="where the reports lie")
    parser.add_argument("--table", type=Path, default=table.PAGE, help="the page that is written from them")
    parser.add_argument("--only-table", action="store_true", help="measure nothing")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - set(names):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if arguments.jobs % backlog.PART or arguments.jobs < 2 * backlog.PART:
        parser.error(f"--jobs takes a multiple of {backlog.PART}, at least {2 * backlog.PART}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and with it everything that was started
    arguments.reports.mkdir(parents=True, exist_ok=True)
    chosen = [] if arguments.only_table else arguments.names or [name for name in names if name != "soak"]
    for name in chosen:
        report = {"benchmark": name, **_circumstances(), **_run(name, arguments)}
        text = json.dumps(report, indent=1)
        kind = torch.backends.cpu.get_cpu_capability().lower()
        (arguments.reports / f"{name}.{kind}.json").write_text(text + "\n")
        sys.stdout.write(text + "\n")
    table.write(arguments.reports, arguments.table)
    return 0


def _run(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    if name == "backlog":
        return backlog.backlog(arguments.jobs)
    if name == "soak":
        return neighbours.soak(60 * arguments.minutes)
    return BENCHMARKS[name](arguments.seconds)


def _circumstances() -> dict[str, Any]:
    """What the numbers depend on. A load that is not ours spoils absolute ones; the ratios suffer less."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    sys.exit(main())
