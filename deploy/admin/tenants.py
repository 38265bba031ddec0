"""`tenfold-admin tenants`: begin with a tenant."""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from deploy.admin.keys import with_custody
from gateway.custody import Custody
from gateway.custody.secretkeys import Caller, NewKey
from gateway.principals import Role


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tenants` to the command line."""
    group = commands.add_parser("tenants", help="tenants", description=(__doc__ or "").strip())
    actions = group.add_subparsers(title="actions", metavar="ACTION", required=True)
    creating = actions.add_parser(
        "create", help="one principal a role, printing their API keys once, and a secret key that serves by default"
    )
    creating.add_argument("tenant", metavar="NAME", help="1 to 64 of a-z, 0-9 and -")
    creating.set_defaults(run=with_custody(_create))


async def _create(custody: Custody, arguments: argparse.Namespace) -> int:
    if await custody.principals.list(arguments.tenant):
        sys.stderr.write(f"{arguments.tenant} has principals; `tenfold-admin keys create` adds one.\n")
        return 1
    made = {role: await custody.principals.create(arguments.tenant, role, "") for role in get_args(Role)}
    custodian, _ = made["custodian"]
    if await custody.keys.default(arguments.tenant) is None:
        await custody.keys.create(Caller(custodian), NewKey(label="default", default=True))
    sys.stderr.write(f"{arguments.tenant}: one API key a role, shown this once:\n")
    for role, (_, api_key) in made.items():
        sys.stdout.write(f"{role}\t{api_key}\n")
    return 0
