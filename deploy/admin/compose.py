"""`tenfold-admin compose`: what `docker compose` needs before the first start, and after a method was added."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.docker.state import prepare
from deploy.local.home import KekLost
from deploy.methods import METHODS, load_service
from shared.service import Service


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `compose` to the command line."""
    group = commands.add_parser("compose", help="containers", description=(__doc__ or "").strip())
    actions = group.add_subparsers(title="actions", metavar="ACTION", required=True)

    preparing = actions.add_parser("init", help="make folders, passwords, ACL files and keys; keep those there are")
    preparing.add_argument("folder", nargs="?", type=Path, default=Path(), help="of docker-compose.yml; default: here")
    preparing.add_argument("--service", action="append", metavar="MODULE:ATTRIBUTE", help="default: all methods")
    preparing.set_defaults(run=_init)

    rendering = actions.add_parser("render", help="print docker-compose.yml as deploy/methods.py asks for it")
    rendering.add_argument("--service", action="append", metavar="MODULE:ATTRIBUTE", help="default: all methods")
    rendering.set_defaults(run=_render)


def _services(arguments: argparse.Namespace) -> dict[str, Service]:
    places = arguments.service or list(METHODS.values())
    return {place: load_service(place) for place in places}


def _init(arguments: argparse.Namespace) -> int:
    services = _services(arguments).values()
    try:
        home = prepare(
            arguments.folder,
            [service.name for service in services],
            [service.name for service in services if service.trains],
        )
    except (KekLost, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stderr.write(
        f"Ready for `docker compose up`. Everything secret lies in {home / 'secrets'}: back it up, and keep kek.json "
        "apart from the rest.\n"
    )
    return 0


def _render(arguments: argparse.Namespace) -> int:
    from deploy.docker.compose import render

    sys.stdout.write(render(_services(arguments)))
    return 0
