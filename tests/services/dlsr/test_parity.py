"""Every golden case of DLSR, through the same code that `tenfold-admin verify` calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from services.dlsr import verify
from services.dlsr.reconstruction import start, walk
from services.dlsr.schedule import reverse_steps
from shared import golden
from shared.golden import Case, Runner

GOLDEN = Path(__file__).parents[2] / "golden" / "dlsr"
CASES = {case.name: case for case in golden.cases(GOLDEN)}


def of_kind(kind: str) -> Case:
    return next(case for case in CASES.values() if case.kind == kind)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_case_computes_what_the_reference_computed(case: Case) -> None:
    result = golden.check(case, verify.runners())
    assert result.outcome == "passed", (result.detail, [role for role in result.roles if not role.passed])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_everything_that_is_stored_is_compared(case: Case) -> None:
    stored = {*case.stored("intermediates"), *case.stored("outputs")}
    not_made = {"aligned", "loss_vlb"}  # the encoder pools without it; the reference logs it with weight 0
    assert stored - not_made == {role.role for role in golden.check(case, verify.runners()).roles}


def test_an_encoder_that_pads_for_the_size_it_sees_fails() -> None:
    wrong: Mapping[str, Runner] = {"encoder": lambda case: verify.run_encoder(case, dynamic_padding=True)}
    result = golden.check(of_kind("encoder"), wrong)
    assert result.outcome == "failed"
    passed = {role.role: role.passed for role in result.roles}
    assert passed["feat1"], "the first layers pad alike"
    assert passed["feat2"], "the first layers pad alike"
    assert not passed["feat3"]
    assert not passed["z"]


def test_the_last_step_of_the_reference_changes_nothing() -> None:
    case = of_kind("reconstruction")
    schedule = verify.schedule_of(case.config)
    steps = reverse_steps(schedule, (1, 2, 3), eta=1.0)
    assert [step.is_identity for step in steps] == [False, False, True]
    _, forward, *rest = case.input("noises")
    network = verify.build_lfdn(case, "end")

    x = start(schedule, 3, case.input("z"), forward)
    *_, last = walk(verify.every_time(network), steps, x, rest)
    torch.testing.assert_close(last.x_prev, last.x, atol=1e-6, rtol=0)
