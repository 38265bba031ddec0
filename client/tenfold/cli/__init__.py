"""`tenfold`: the client as a command. Results go to stdout, everything for people to stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tenfold.cli import jobs, keys, methods
from tenfold.client import Client
from tenfold.problems import Problem

_FAILED, _CANNOT_START, _INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. The exit status: 0, or 1 if anything failed, 2 if nothing was tried, 130 after Ctrl-C."""
    args = _parser().parse_args(arguments)
    err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        api_key = args.api_key_file.read_text().strip() if args.api_key_file else None
        client = Client(args.url, api_key)
    except (OSError, ValueError) as error:
        err.print(f"tenfold: {error}")
        return _CANNOT_START
    with client:
        try:
            status: int = args.run(client, args, err)
            sys.stdout.flush()
            return status
        except Problem as problem:
            err.print(f"tenfold: {problem}")
        except BrokenPipeError:  # `| head` has seen enough; what is left unsaid must not fail once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except ValueError as error:
            err.print(f"tenfold: {error}")
        except KeyboardInterrupt:
            err.print("tenfold: interrupted; jobs that were started go on")
            return _INTERRUPTED
    return _FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tenfold",
        description="Ten vision methods as a service. The API key is TENFOLD_API_KEY, or stands in a file.",
        epilog="Exit status: 0 if all went well, 1 if anything failed.",
    )
    parser.add_argument("--url", metavar="URL", help="the service (default: TENFOLD_URL, or this machine)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file that holds the API key")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    methods.add_to(commands)
    jobs.add_to(commands)
    keys.add_to(commands)
    return parser
