"""`tenfold-admin keys`: principals and their API keys. A new API key is printed once and kept nowhere."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import get_args

from gateway.custody import Custody
from gateway.principals import LABEL_MAX_CHARACTERS, PrincipalNotFound, Role
from shared.limits import Limits
from shared.settings import GatewaySettings, load

ACTOR = "tenfold-admin"


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `keys` to the command line."""
    group = commands.add_parser("keys", help="API keys of tenants", description=(__doc__ or "").strip())
    actions = group.add_subparsers(title="actions", metavar="ACTION", required=True)

    creating = actions.add_parser("create", help="add a principal and print its API key")
    creating.add_argument("--tenant", required=True, metavar="NAME", help="1 to 64 of a-z, 0-9 and -")
    creating.add_argument("--role", required=True, choices=get_args(Role))
    creating.add_argument("--label", default="", help=f"who holds it, at most {LABEL_MAX_CHARACTERS} characters")
    _add_limits(creating)
    creating.set_defaults(run=with_custody(_create))

    limiting = actions.add_parser("limit", help="change what a principal may use, and print what it is limited to")
    limiting.add_argument("principal", metavar="PRINCIPAL", help="prn_…")
    _add_limits(limiting)
    limiting.set_defaults(run=with_custody(_limit))

    listing = actions.add_parser("list", help="list principals, revoked ones too")
    listing.add_argument("--tenant", metavar="NAME", help="default: all tenants")
    listing.set_defaults(run=with_custody(_list))

    rotating = actions.add_parser("rotate", help="print another API key; the one in use stays valid until the next")
    rotating.add_argument("principal", metavar="PRINCIPAL", help="prn_…")
    rotating.set_defaults(run=with_custody(_rotate))

    revoking = actions.add_parser("revoke", help="end a principal for good, or one of its API keys")
    revoking.add_argument("principal", metavar="PRINCIPAL", help="prn_…")
    revoking.add_argument("--api-key", metavar="NAME", help="its first 11 characters (tf_…): end this one only")
    revoking.set_defaults(run=with_custody(_revoke))


async def _create(custody: Custody, arguments: argparse.Namespace) -> int:
    limits = {name: value for name, value in _limits(arguments).items() if value is not None}
    principal, api_key = await custody.principals.create(arguments.tenant, arguments.role, arguments.label, limits)
    sys.stderr.write(f"{principal.id}: {principal.role} of {principal.tenant}. Its API key is shown this once:\n")
    sys.stdout.write(f"{api_key}\n")
    return 0


async def _limit(custody: Custody, arguments: argparse.Namespace) -> int:
    if changes := _limits(arguments):
        principal = await custody.principals.limit(arguments.principal, changes)
    elif (found := await custody.principals.find(arguments.principal)) is not None:
        principal = found
    else:
        raise PrincipalNotFound
    own = dict(principal.limits)
    for name, value in load(GatewaySettings).limits._replace(**own)._asdict().items():
        origin = "its own" if name in own else "the installation's"
        sys.stdout.write(f"{name}\t{value or 'no limit'}\t{origin}\n")
    return 0


def _add_limits(command: argparse.ArgumentParser) -> None:
    for name in Limits._fields:
        command.add_argument(
            f"--{name.replace('_', '-')}",
            type=_limit_value,
            default=argparse.SUPPRESS,
            metavar="NUMBER",
            help="0: no limit; default: as the installation (TENFOLD_" + name.upper() + ")",
        )


def _limit_value(text: str) -> int | None:
    if text == "default":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of 0 (no limit) or more nor `default`")
    return int(text)


def _limits(arguments: argparse.Namespace) -> dict[str, int | None]:
    """The limits that the command line names; None where one is to be the installation's."""
    return {name: value for name, value in vars(arguments).items() if name in Limits._fields}


async def _list(custody: Custody, arguments: argparse.Namespace) -> int:
    for record in await custody.principals.list(arguments.tenant):
        made = datetime.fromtimestamp(record.created_at, UTC)
        state = ",".join(record.api_keys) if record.revoked_at is None else "revoked"
        fields = (record.principal.id, record.principal.tenant, record.principal.role, f"{made:%Y-%m-%d}", state)
        sys.stdout.write("\t".join((*fields, record.label)) + "\n")
    return 0


async def _rotate(custody: Custody, arguments: argparse.Namespace) -> int:
    sys.stdout.write(f"{await custody.principals.rotate(arguments.principal)}\n")
    return 0


async def _revoke(custody: Custody, arguments: argparse.Namespace) -> int:
    if arguments.api_key is None:
        await custody.principals.revoke(arguments.principal)
    else:
        await custody.principals.revoke_key(arguments.principal, arguments.api_key)
    return 0


def with_custody(
    action: Callable[[Custody, argparse.Namespace], Awaitable[int]], *, trusts_trail: bool = True
) -> Callable[[argparse.Namespace], int]:
    """Run an action with the installation's custody, connected and closed around it."""

    async def within(arguments: argparse.Namespace) -> int:
        custody = await Custody.connect(load(GatewaySettings), actor=ACTOR, trusts_trail=trusts_trail)
        try:
            return await action(custody, arguments)
        finally:
            await custody.close()

    return lambda arguments: asyncio.run(within(arguments))
