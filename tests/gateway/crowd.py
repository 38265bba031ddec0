"""A process of many callers with one principal: `python -m tests.gateway.crowd URL PRINCIPAL REQUESTS_PER_MINUTE`.

Prints how many of its requests were let in.
"""

from __future__ import annotations

import asyncio
import sys

import redis.asyncio
from starlette.requests import HTTPConnection

from gateway.metrics import Metrics
from gateway.principals import Principal
from gateway.throttle import Throttle
from shared.limits import Limits
from shared.problems import RateLimited

CALLERS = 60


async def main(url: str, principal_id: str, quota: int) -> int:
    principal = Principal(principal_id, "acme", "app", frozenset())
    async with redis.asyncio.Redis.from_url(url, decode_responses=True) as client:
        throttle = Throttle(client, Limits(requests_per_minute=quota), 60, Metrics())

        async def call() -> bool:
            try:
                await throttle.admit(HTTPConnection({"type": "http", "headers": [], "state": {}}), principal)
            except RateLimited:
                return False
            return True

        return sum(await asyncio.gather(*(call() for _ in range(CALLERS))))


if __name__ == "__main__":
    sys.stdout.write(f"{asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))}\n")
