"""`tenfold-admin`: what an operator does beside the running service.

Results go to stdout, everything else to stderr; exit status 1 says that something is not as it should be, 2 that the
command makes no sense.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.admin import compose, custody, doctor, keys, tenants, verify, weights
from shared.problems import Problem


def parser() -> argparse.ArgumentParser:
    """The whole command line. Each part registers its own commands, and sets `run(arguments) -> exit status`."""
    top = argparse.ArgumentParser(prog="tenfold-admin", description="Operate an installation of Tenfold.")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for part in (doctor, tenants, keys, custody, weights, verify, compose):
        part.register(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    _find_local_installation()
    try:
        status: int = arguments.run(arguments)
    except Problem as problem:
        sys.stderr.write(f"{problem.detail} ({problem.code})\n")
        return 1
    except ValueError as error:  # of settings: a name or a value that makes no sense
        sys.stderr.write(f"{error}\n")
        return 2
    return status


def _find_local_installation() -> None:
    """Let a terminal beside `make up` find what that wrote: its addresses and secrets are not in the environment."""
    folder = Path(os.environ.get("TENFOLD_HOME", ".tenfold")) / "secrets"
    if folder.is_dir():
        os.environ.setdefault("TENFOLD_SECRETS_DIR", str(folder.absolute()))


if __name__ == "__main__":
    sys.exit(main())
