"""Every golden case of TAD-SR, through the same code that `tenfold-admin verify` calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from services.tad_sr import verify
from services.tad_sr.denoiser import PAPER, PAPER_FACE, UNetModelSwin
from services.tad_sr.discriminator import PAPER_C_DIM, TimeAwareDiscriminator
from shared import golden
from shared.golden import Case, Runner
from shared.resshift.referenceconfig import denoiser_config, published_buffers

GOLDEN = Path(__file__).parents[2] / "golden" / "tad-sr"
KEYS = json.loads((GOLDEN / "paper_keys.json").read_text())


@pytest.fixture(scope="module")
def runners() -> Mapping[str, Runner]:
    return verify.runners()


# One number of 16,384 of `losses` lies twice as far as allowed where oneDNN has AVX2 and no AVX-512, in the plain form
# of the network as well. In float64 every case holds, on any processor.
ROUNDING = pytest.mark.xfail(strict=False, reason="float32 rounding alone exceeds the tolerance on some processors")


def parameter(case: Case, *more: pytest.MarkDecorator) -> pytest.ParameterSet:
    return pytest.param(case, id=case.name, marks=[*more, *([pytest.mark.slow] if case.slow else [])])


def in_float32(case: Case) -> pytest.ParameterSet:
    return parameter(case, ROUNDING) if case.name == "losses" else parameter(case)


@pytest.mark.parametrize("case", [in_float32(case) for case in golden.cases(GOLDEN)])
def test_a_case_computes_what_the_reference_computed(case: Case, runners: Mapping[str, Runner]) -> None:
    holds(case, runners)


@pytest.mark.parametrize("case", [parameter(case) for case in golden.cases(GOLDEN, dtype=torch.float64)])
def test_a_case_holds_without_rounding(case: Case, runners: Mapping[str, Runner]) -> None:
    holds(case, runners)


def holds(case: Case, runners: Mapping[str, Runner]) -> None:
    result = golden.check(case, runners)
    assert result.outcome == "passed", (result.detail, [role for role in result.roles if not role.passed])


@pytest.mark.parametrize(
    ("published", "config", "parameters"),
    [
        ("TAD-SR (= resshift_realsrx4_s15_v1)", PAPER, 118_593_583),
        ("TAD-faceir (= resshift_faceir_s4)", PAPER_FACE, 118_931_604),
    ],
)
def test_a_network_has_the_names_shapes_dtypes_and_number_of_the_published_file(
    published: str, config: Mapping[str, object], parameters: int
) -> None:
    with torch.device("meta"):
        network = UNetModelSwin(**config)
    state = network.state_dict() | published_buffers(network)
    assert {name: list(tensor.shape) for name, tensor in state.items()} == KEYS[published]
    integers = {name: "int64" for name, tensor in state.items() if tensor.dtype == torch.int64}
    assert integers == KEYS["_info"]["dtypes"][published]
    assert sum(tensor.numel() for tensor in network.parameters()) == parameters
    assert denoiser_config(KEYS["_info"][published]["config"], **verify.FIXED) == config


def test_the_discriminator_has_the_names_shapes_and_number_of_the_reference() -> None:
    with torch.device("meta"):
        teacher = UNetModelSwin(**PAPER)
        network = TimeAwareDiscriminator(teacher.feature_channels(), embed_dim=160, c_dim=PAPER_C_DIM)
    assert teacher.feature_places() == [3, 6, 9, 11, 12]
    state = network.state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == KEYS["discriminator (training only)"]
    assert sum(tensor.numel() for tensor in network.parameters()) == 20_764_320


def test_a_network_of_another_kind_is_refused() -> None:
    config = KEYS["_info"]["TAD-SR (= resshift_realsrx4_s15_v1)"]["config"]
    with pytest.raises(ValueError, match="resblock_updown"):
        denoiser_config(config | {"resblock_updown": True}, **verify.FIXED)
