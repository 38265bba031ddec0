"""API keys of the tenant `local`, one a role, and its default secret key: made at the first start, kept at the others.

Run by the supervisor as `python -m deploy.local.bootstrap`, with the gateway's settings, before the gateway starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import get_args

from deploy.local.home import Home, write_private
from gateway.custody.secretkeys import Caller, NewKey
from gateway.custody.service import Custody
from gateway.principals import Principal, Role
from shared import telemetry
from shared.problems import ApiKeyInvalid, Problem
from shared.settings import GatewaySettings, load

TENANT = "local"


async def bootstrap(custody: Custody, home: Home) -> None:
    """Make what is not there, or no longer accepted, yet."""
    principals = {role: await _principal(custody, home, role) for role in get_args(Role)}
    if await custody.keys.default(TENANT) is None:
        await custody.keys.create(Caller(principals["custodian"]), NewKey(label="default", default=True))


async def _principal(custody: Custody, home: Home, role: Role) -> Principal:
    path = home.keys / role
    if path.exists():
        with contextlib.suppress(ApiKeyInvalid):  # revoked, or custody's files were removed: a new one takes its place
            return await custody.principals.authenticate(path.read_text().strip())
    principal, api_key = await custody.principals.create(TENANT, role, label="this machine")
    write_private(path, f"{api_key}\n", 0o600)
    return principal


async def _main(settings: GatewaySettings) -> None:
    custody = await Custody.connect(settings, actor="bootstrap")
    try:
        await bootstrap(custody, Home(settings.home))
    finally:
        await custody.close()


def main() -> int:
    settings = load(GatewaySettings)
    telemetry.configure(settings.log_level, settings.log_format)
    try:
        asyncio.run(_main(settings))
    except (Problem, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
