"""`tenfold-admin verify SET [DIR]`: rerun golden vectors on this machine."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.methods import VERIFIERS

if TYPE_CHECKING:
    from shared.golden import CaseResult, RoleResult

GOLDEN = Path("tests/golden")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    command = commands.add_parser(
        "verify",
        help="compare the networks with their reference",
        description="Rerun a folder of golden vectors. Prints the largest error of every output and, last, a summary; "
        "exit status 1 if a case is beyond its tolerance or of an unknown kind.",
    )
    command.add_argument("set", choices=sorted(VERIFIERS), metavar="SET", help=", ".join(sorted(VERIFIERS)))
    command.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="the vectors; default: tests/golden/SET")
    command.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    command.add_argument("--quick", action="store_true", help="leave out the cases of paper size")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run every case; 1 unless all that ran passed and at least one did."""
    from shared import golden  # it needs torch, which the other commands can do without

    folder = arguments.folder or GOLDEN / arguments.set
    try:
        cases = golden.cases(folder, arguments.device)
    except golden.GoldenUnreadable as error:
        sys.stderr.write(f"{error}\n")
        return 1
    runners = importlib.import_module(VERIFIERS[arguments.set]).runners()
    left_out = [case for case in cases if arguments.quick and case.slow]
    counts = {"passed": 0, "failed": 0, "skipped": len(left_out)}
    since = time.monotonic()
    for result in golden.run([case for case in cases if case not in left_out], runners):
        counts[result.outcome] += 1
        sys.stdout.write(_report(result))
        sys.stdout.flush()
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    sys.stdout.write(f"{arguments.set}: {summary} in {time.monotonic() - since:.1f} s on {arguments.device}, float32\n")
    return 0 if counts["passed"] and not counts["failed"] else 1


def _report(result: CaseResult) -> str:
    lines = [f"{result.outcome:8}{result.name} ({result.kind})" + (f": {result.detail}" if result.detail else "")]
    lines += [_line(role) for role in result.roles]
    return "".join(f"{line}\n" for line in lines)


def _line(role: RoleResult) -> str:
    return f"        {role.error:10.3g}  {role.role}" + ("" if role.passed else f"  BEYOND TOLERANCE: {role.detail}")
