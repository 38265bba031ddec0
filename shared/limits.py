"""What one API key may use: requests, pixels, unfinished jobs, stored bytes. And the problem when that is too much.

Use is counted in broker Redis, for each principal under keys of its own, by functions that are put before every script
that needs them (`limits.lua`): the gateway's when a request arrives, the job store's when a job begins or ends, the
ledger's when a file is stored or deleted. So a limit is checked in the same step that uses it up.
"""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

from shared.problems import QuotaExceeded, RateLimited

LUA = files("shared").joinpath("limits.lua").read_text()
"""To be put before a script."""

REQUESTS, PIXELS, JOBS, BYTES = "requests", "pixels", "running-jobs", "stored-bytes"
"""The policies' names, as in `RateLimit-Policy`."""


class Limits(NamedTuple):
    """The numbers of one principal. 0 is no limit."""

    requests_per_minute: int = 0
    pixels_per_hour: int = 0
    running_jobs: int = 0
    stored_bytes: int = 0


NO_LIMITS = Limits()


def prefix(principal: str) -> str:
    """What every key of a principal's use begins with. Every process that takes jobs or stores files writes there."""
    return f"tf:limits:{principal}:"


def too_much(policy: str, limits: Limits, wait_s: float | None, *policies: str) -> RateLimited | QuotaExceeded:
    """The problem for a request that `policy` refuses, one of `policies`; it passes when `wait_s` are over.

    `violated-policies` is the member that draft-ietf-httpapi-ratelimit-headers-11 defines for such a problem.
    """
    violated = {"violated-policies": list(policies or (policy,))}
    match policy:
        case "requests":
            limit = limits.requests_per_minute
            return RateLimited(f"{limit} requests a minute are allowed.", retry_after_s=wait_s, limit=limit, **violated)
        case "pixels":
            limit = limits.pixels_per_hour
            return RateLimited(f"{limit} pixels an hour are allowed.", retry_after_s=wait_s, limit=limit, **violated)
        case "running-jobs":
            limit = limits.running_jobs
            detail = f"{limit} unfinished jobs are allowed. Wait for one, or cancel one."
            return QuotaExceeded(detail, retry_after_s=wait_s, limit=limit, **violated)
        case "stored-bytes":
            limit = limits.stored_bytes
            detail = f"{limit} stored bytes are allowed. Delete files, or wait until some expire."
            return QuotaExceeded(detail, retry_after_s=wait_s, limit=limit, **violated)
    raise ValueError(f"{policy!r} is no policy")
