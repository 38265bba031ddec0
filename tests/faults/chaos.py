"""`python -m tests.faults.chaos --seconds 600 --kill-every 10`: kill anything at random under traffic, then count.

A whole installation runs as real processes. Callers send calls with idempotency keys until they are answered; somebody
kills worker, trainer, gateway, the APIs and both Redis servers with SIGKILL, one after the other at random, and starts
them again as a supervisor would. At the end the ledger is balanced: accepted jobs that were lost, effects that happened
twice, secret keys that are gone, recoveries without an audit entry, times at which readiness lied. One JSON object goes
to stdout; the exit status is 0 only if all of these are none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tests.faults.ledger import Ledger, audited_jobs
from tests.faults.traffic import Callers
from tests.fleet import DIAGNOSTIC, MAIN_JOB, UP_WITHIN_S, Fleet

Layout = Literal["embedded", "apart"]

SETTLE_S = 240.0  # leases of 15 s, a janitor of 15 s, messages astray for 60 s, and what was waiting
OFFICERS = 4


async def chaos(
    folder: Path,
    *,
    seconds: float,
    kill_every_s: float,
    seed: int,
    layout: Layout = "embedded",
    main_job: bool = True,
    ledger: Ledger | None = None,
) -> dict[str, Any]:
    """Run it in `folder` and return the report."""
    ledger = ledger or Ledger()
    methods = DIAGNOSTIC | (MAIN_JOB if main_job else {})
    fleet = Fleet(folder, methods, layout=layout, trainer=True, TENFOLD_DEVICE="cpu")
    with fleet:
        keys = {role: [fleet.key(role)] for role in ("app", "custodian")}
        keys["officer"] = [await asyncio.to_thread(fleet.new_key, "officer") for _ in range(OFFICERS)]
        callers = Callers(fleet.url, keys, ledger, seed)
        try:
            killing = asyncio.create_task(_kill(fleet, seconds, kill_every_s, random.Random(seed), ledger))  # noqa: S311
            await callers.run(seconds, main_job=main_job)
            await killing
            await asyncio.to_thread(fleet.until, fleet.is_ready, UP_WITHIN_S)
            await callers.settle(SETTLE_S)
            await callers.read_everything()
        finally:
            await callers.close()
        _read_events(fleet, ledger)
        ledger.audited = audited_jobs(fleet.home.folder / "audit")
    return {"seconds": seconds, "kill_every_s": kill_every_s, "seed": seed, "layout": layout, **ledger.report()}


async def _kill(fleet: Fleet, seconds: float, every_s: float, rng: random.Random, ledger: Ledger) -> None:
    """Kill one after the other; what was killed is up again before the next one falls."""
    until = time.monotonic() + seconds
    victims: list[str] = []
    while time.monotonic() + every_s < until:
        next_at = time.monotonic() + every_s
        if not victims:  # everybody's turn comes before anybody's second
            victims = [*fleet.names, *fleet.servers]
            rng.shuffle(victims)
        victim = victims.pop()
        ledger.kills[victim] += 1
        await asyncio.to_thread(fleet.kill, victim)
        down = await asyncio.to_thread(fleet.readiness) if victim in (*fleet.servers, "gateway") else None
        if down and down["status"] == 200:
            ledger.untruths.append(f"ready although {victim} was killed")
        await asyncio.sleep(rng.uniform(0, every_s / 4))
        for name in {victim, *fleet.ended()}:
            await asyncio.to_thread(fleet.start, name)
        await asyncio.sleep(max(0.0, next_at - time.monotonic()))


def _read_events(fleet: Fleet, ledger: Ledger) -> None:
    """How often each job ended, from its own stream of events."""
    with fleet.broker() as broker:
        for method in fleet.methods:
            for name in broker.scan_iter(f"tf:{method}:job:*:events"):
                states = [json.loads(event["data"]) for _, event in broker.xrange(name) if event["kind"] == "state"]
                ends = [state["state"] for state in states if state["state"] in ("succeeded", "failed", "cancelled")]
                ledger.endings[name.split(":")[3]] = len(ends)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--kill-every", type=float, default=10, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=("embedded", "apart"), default="embedded")
    parser.add_argument("--without-main-job", action="store_true", help="leave ifadit and its keys out")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where to run; kept, with all logs")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and with it everything that was started
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="tenfold-chaos-"))
    try:
        report = asyncio.run(
            chaos(
                folder,
                seconds=arguments.seconds,
                kill_every_s=arguments.kill_every,
                seed=arguments.seed,
                layout=arguments.layout,
                main_job=not arguments.without_main_job,
            )
        )
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0 if report["clean"] else 1


if __name__ == "__main__":
    sys.exit(main())
