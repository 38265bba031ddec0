"""`tenfold jobs …`: what was started, what became of it, stop it."""

from __future__ import annotations

import argparse
from itertools import islice
from typing import Any

from rich.console import Console

from tenfold.cli import output
from tenfold.client import Client


def add_to(commands: Any) -> None:
    """Add the commands to the parser."""
    jobs = commands.add_parser("jobs", help="list, show and cancel jobs")
    verbs = jobs.add_subparsers(metavar="COMMAND", required=True)
    listing = verbs.add_parser("list", help="one line a job, newest first: name, operation, state, time of birth")
    listing.add_argument("-n", "--limit", type=int, default=20, help="how many at most (default: %(default)s)")
    listing.set_defaults(run=_list)
    for name, run, text in (
        ("show", _show, "the record of each as a line of JSON"),
        ("cancel", _cancel, "ask for each to be stopped; prints name and state"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("jobs", nargs="+", metavar="JOB")
        verb.set_defaults(run=run)


def _list(client: Client, args: argparse.Namespace, err: Console) -> int:
    for job in islice(client.jobs.list(), args.limit):
        output.line(job.id, f"{job.method}/{job.operation}", job.state, job.created_at and job.created_at.isoformat())
    return 0


def _show(client: Client, args: argparse.Namespace, err: Console) -> int:
    return output.each(args.jobs, lambda job: output.shown(client.jobs.get(job)), err)


def _cancel(client: Client, args: argparse.Namespace, err: Console) -> int:
    return output.each(args.jobs, lambda job: output.line(job, client.jobs.cancel(job).state), err)
