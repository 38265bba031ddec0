"""`tenfold keys …`: a custodian's work with secret keys. What is shown is their state: they never leave custody."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from tenfold.cli import output
from tenfold.client import Client
from tenfold.resources.keys import Purpose
from tenfold.types import Key

_CHANGES = {
    "rotate": "give new pictures a new version of each",
    "disable": "stop each at once",
    "enable": "let each work again",
    "cancel-destroy": "call off the end of each; it stays disabled",
}


def add_to(commands: Any) -> None:
    """Add the commands to the parser."""
    keys = commands.add_parser("keys", help="make, list and change secret keys (needs a custodian's API key)")
    verbs = keys.add_subparsers(metavar="COMMAND", required=True)
    create = verbs.add_parser("create", help="make a key; prints its name and state as JSON")
    create.add_argument("--label", help="what people call it")
    create.add_argument("--default", action="store_true", help="let it serve requests that name no key")
    create.add_argument("--forensic", action="store_true", help="allow exact recovery where a request asks for it")
    create.set_defaults(run=_create)
    verbs.add_parser("list", help="one line a key: name, version, state, label").set_defaults(run=_list)
    show = verbs.add_parser("show", help="the state of each as a line of JSON")
    show.set_defaults(run=_show)
    destroy = verbs.add_parser("destroy", help="ask for the end of each, or confirm what another custodian asked for")
    destroy.add_argument("--reason", required=True, help="why; the audit trail keeps it")
    destroy.set_defaults(run=_destroy)
    for name, text in _CHANGES.items():
        verbs.add_parser(name, help=f"{text}; prints name, version, state").set_defaults(run=_change, change=name)
    for name in ("show", "destroy", *_CHANGES):
        verbs.choices[name].add_argument("keys", nargs="+", metavar="KEY")


def _create(client: Client, args: argparse.Namespace, err: Console) -> int:
    purposes: list[Purpose] | None = ["anonymize", "recover", "forensic"] if args.forensic else None
    output.shown(client.keys.create(label=args.label, default=args.default or None, purposes=purposes))
    return 0


def _list(client: Client, args: argparse.Namespace, err: Console) -> int:
    for key in client.keys.list():
        output.line(key.key_id, key.key_version, key.state, key.label)
    return 0


def _show(client: Client, args: argparse.Namespace, err: Console) -> int:
    return output.each(args.keys, lambda key: output.shown(client.keys.get(key)), err)


def _destroy(client: Client, args: argparse.Namespace, err: Console) -> int:
    return output.each(args.keys, lambda key: _line(client.keys.destroy(key, reason=args.reason)), err)


def _change(client: Client, args: argparse.Namespace, err: Console) -> int:
    change = getattr(client.keys, args.change.replace("-", "_"))
    return output.each(args.keys, lambda key: _line(change(key)), err)


def _line(key: Key) -> None:
    output.line(key.key_id, key.key_version, key.state)
