"""`tenfold-admin custody`: the key-encryption key, the audit trail, the key that signs records, actors locked out."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from deploy.admin.keys import with_custody
from gateway.custody import Custody
from gateway.custody.checkpoints import read_file
from gateway.custody.kek import InsecureFileKek
from shared.settings import GatewaySettings, load


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `custody` to the command line."""
    group = commands.add_parser("custody", help="secret keys' keeper", description=(__doc__ or "").strip())
    actions = group.add_subparsers(title="actions", metavar="ACTION", required=True)

    creating = actions.add_parser("create-kek", help="write a new key-encryption key to TENFOLD_KEK_PATH; back it up")
    creating.set_defaults(run=_create_kek)

    showing = actions.add_parser("status", help="what custody's parts say, keys by state, secrets by version")
    showing.set_defaults(run=with_custody(_status))

    signing = actions.add_parser("rotate-signing-key", help="let another key sign records from the next start on")
    signing.set_defaults(run=with_custody(_rotate_signing_key))

    unlocking = actions.add_parser("unlock", help="let an officer recover again who was locked out")
    unlocking.add_argument("principal", metavar="PRINCIPAL", help="prn_…")
    unlocking.set_defaults(run=with_custody(_unlock))

    audit = actions.add_parser("audit", help="the audit trail")
    audits = audit.add_subparsers(title="actions", metavar="ACTION", required=True)
    verifying = audits.add_parser("verify", help="walk the whole trail; names the first entry that is not as written")
    verifying.add_argument(
        "--checkpoint", action="append", type=Path, default=[], metavar="FILE", help="checkpoints kept elsewhere"
    )
    verifying.set_defaults(run=with_custody(_verify, trusts_trail=False))
    stating = audits.add_parser("checkpoint", help="print a signed statement about the trail, to be kept elsewhere")
    stating.set_defaults(run=with_custody(_checkpoint))


def _create_kek(arguments: argparse.Namespace) -> int:
    settings = load(GatewaySettings)
    try:
        InsecureFileKek.create(settings.kek_path, environment=settings.environment)
    except FileExistsError:
        sys.stderr.write(f"{settings.kek_path} exists and is left as it is: every key made so far depends on it.\n")
        return 1
    sys.stderr.write("Without this file no picture can ever be recovered. Back it up, apart from Redis:\n")
    sys.stdout.write(f"{settings.kek_path}\n")
    return 0


async def _status(custody: Custody, arguments: argparse.Namespace) -> int:
    facts = await custody.ready()
    census = await custody.census()
    sys.stdout.write(json.dumps({**facts, **census}, indent=2, sort_keys=True) + "\n")
    return int("down" in facts.values())


async def _rotate_signing_key(custody: Custody, arguments: argparse.Namespace) -> int:
    sys.stdout.write(f"{await custody.rotate_signing_key()}\n")
    return 0


async def _unlock(custody: Custody, arguments: argparse.Namespace) -> int:
    await custody.unlock(arguments.principal)
    return 0


async def _verify(custody: Custody, arguments: argparse.Namespace) -> int:
    others = [checkpoint for path in arguments.checkpoint for checkpoint in read_file(path)]
    verdict = await asyncio.to_thread(custody.checkpoints.verify, others)
    if verdict.first_bad is None:
        sys.stdout.write(f"{verdict.count} entries, all as written\n")
        return 0
    sys.stdout.write(f"entry {verdict.first_bad} is not as written: {verdict.reason}\n")
    return 1


async def _checkpoint(custody: Custody, arguments: argparse.Namespace) -> int:
    made = await custody.checkpoints.make(custody.now())
    if made is None:
        sys.stderr.write("The trail is empty.\n")
        return 1
    sys.stdout.write(json.dumps(made, sort_keys=True) + "\n")
    return 0
