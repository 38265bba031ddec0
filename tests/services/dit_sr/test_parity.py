"""Every golden case of DiT-SR, through the same code that `tenfold-admin verify` calls, and the published names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from services.dit_sr import denoiser, verify
from services.dit_sr.denoiser import UNetModelSwin
from shared import golden
from shared.golden import Case, Runner
from shared.resshift import referenceconfig

GOLDEN = Path(__file__).parents[2] / "golden" / "dit-sr"
PUBLISHED = {
    "realsr_DiT": (denoiser.PAPER, 60_789_631),
    "realsr_DiT_Lite": (denoiser.PAPER_LITE, 30_894_862),
    "faceir_DiT": (denoiser.PAPER_FACE, 61_127_652),
}


@pytest.fixture(scope="session")
def runners() -> Mapping[str, Runner]:
    return verify.runners()


def parameter(case: Case) -> pytest.ParameterSet:
    return pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else [])


@pytest.mark.parametrize("case", [parameter(case) for case in golden.cases(GOLDEN)])
def test_a_case_computes_what_the_reference_computed(case: Case, runners: Mapping[str, Runner]) -> None:
    result = golden.check(case, runners)
    assert result.outcome == "passed", (result.detail, [role for role in result.roles if not role.passed])


@pytest.mark.parametrize("name", PUBLISHED)
class TestPublishedCheckpoints:
    def test_our_names_shapes_and_dtypes_are_theirs(self, name: str) -> None:
        keys = json.loads((GOLDEN / "paper_keys.json").read_text())
        with torch.device("meta"):
            network = UNetModelSwin(**PUBLISHED[name][0])
        ours = network.state_dict() | referenceconfig.published_buffers(network)
        assert {key: list(tensor.shape) for key, tensor in ours.items()} == keys[name]
        others = {key: str(t.dtype).removeprefix("torch.") for key, t in ours.items() if t.dtype != torch.float32}
        assert others == keys["_info"]["dtypes"][name]

    def test_it_has_as_many_parameters_as_theirs(self, name: str) -> None:
        config, count = PUBLISHED[name]
        with torch.device("meta"):
            network = UNetModelSwin(**config)
        assert sum(parameter.numel() for parameter in network.parameters()) == count

    def test_the_configuration_is_the_published_one(self, name: str) -> None:
        published: Mapping[str, Any] = json.loads((GOLDEN / "paper_keys.json").read_text())["_info"][name]["config"]
        assert referenceconfig.denoiser_config(published) == PUBLISHED[name][0]


@pytest.mark.parametrize("change", [{"cond_lq": False}, {"dims": 3}, {"use_fp16": True}, {"conv_resample": False}])
def test_a_network_of_another_kind_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        referenceconfig.denoiser_config(denoiser.PAPER | change)
