"""A worker's clock is wrong: leases, deadlines and heartbeats go by the broker's, so it makes no difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stack import ROOT, Stack

HOUR_S = 3600

# Python runs it before anything else of the process: what asks for the time gets the wrong one, as after a step.
WRONG_CLOCK = "import time\nright = time.time\ntime.time = lambda: right() + {}\n"


def off_by(folder: Path, seconds: int) -> str:
    """What PYTHONPATH must be for a process whose clock is off by so much."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WRONG_CLOCK.format(seconds))
    return f"{folder}:{ROOT}:{ROOT / 'client'}"


@pytest.mark.parametrize("seconds", [-HOUR_S, HOUR_S], ids=["an hour late", "an hour early"])
def test_a_worker_with_a_wrong_clock_works_and_its_lease_holds(own_stack: Stack, tmp_path: Path, seconds: int) -> None:
    own_stack.start("api")
    own_stack.start("worker", PYTHONPATH=off_by(tmp_path / "clock", seconds))
    job_id = own_stack.submit("sleep", {"seconds": 6, "steps": 60})  # the janitor looks every five
    record = own_stack.wait_for(job_id, "succeeded", within_s=60)
    assert (record["attempt"], record["fence"]) == ("1", "1")


def test_a_worker_whose_clock_is_a_day_early_hands_no_job_out_twice(own_stack: Stack, tmp_path: Path) -> None:
    own_stack.start("api")
    own_stack.start("worker")
    job_id = own_stack.submit("sleep", {"seconds": 8, "steps": 80})
    own_stack.wait_for(job_id, "running")
    # To this one every message that is being worked on looks abandoned since yesterday, and it delivers it again.
    own_stack.start("worker2", PYTHONPATH=off_by(tmp_path / "clock", 24 * HOUR_S))
    record = own_stack.wait_for(job_id, "succeeded", within_s=60)
    assert (record["attempt"], record["fence"]) == ("1", "1")
