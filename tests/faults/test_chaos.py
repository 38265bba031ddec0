"""Everything is killed at random under traffic, and the ledger balances; at length: `python -m tests.faults.chaos`."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.chaos import chaos
from tests.faults.ledger import Ledger, Promise


@pytest.mark.slow
def test_nothing_accepted_is_lost_and_nothing_takes_effect_twice(tmp_path: Path) -> None:
    report = asyncio.run(chaos(tmp_path, seconds=60, kill_every_s=8, seed=1))
    assert report["clean"], json.dumps(report, indent=1)
    assert report["accepted_jobs"] > 0
    assert sum(report["kills"].values()) >= 5


class TestLedger:
    def test_an_accepted_job_that_nobody_knows_is_lost(self) -> None:
        ledger = Ledger([Promise("diagnostic/noop", {"job_1"}), Promise("diagnostic/noop", set())])
        assert [promise.jobs for promise in ledger.lost()] == [{"job_1"}]
        assert not ledger.is_clean()

    @pytest.mark.parametrize(
        "ledger",
        [
            Ledger([Promise("diagnostic/noop", {"job_1", "job_2"}, record={"state": "succeeded"})]),
            Ledger(versions=Counter({"chaos-1": 2})),
            Ledger(endings=Counter({"job_1": 2})),
        ],
        ids=["two jobs of one call", "two models of one training", "two ends of one job"],
    )
    def test_an_effect_that_happened_twice_is_found(self, ledger: Ledger) -> None:
        assert len(ledger.doubled()) == 1
        assert not ledger.is_clean()

    def test_a_recovery_needs_its_audit_entry(self) -> None:
        recovered = Promise("ifadit/recover", {"job_1"}, record={"state": "succeeded"})
        assert Ledger([recovered]).recoveries_without_audit_entry() == ["job_1"]
        assert Ledger([recovered], audited={"job_1"}).is_clean()

    def test_a_key_that_was_answered_and_is_gone_is_lost(self) -> None:
        assert Ledger(keys={"key_1", "key_2"}, keys_found={"key_1"}).report()["keys_lost"] == ["key_2"]
