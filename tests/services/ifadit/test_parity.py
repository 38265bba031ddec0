"""Every golden case of iFADIT, through the same code that `tenfold-admin verify` calls."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.ifadit import (
    arcface,
    attribute_encoder,
    compensation,
    configuration,
    flow,
    latent_mapper,
    referenceconfig,
    stylegan2,
    verify,
)
from shared import golden
from shared.golden import Case, Runner

GOLDEN = Path(__file__).parents[2] / "golden" / "ifadit"


@pytest.fixture(scope="session")
def runners() -> Mapping[str, Runner]:
    return verify.runners()


# The formula weights drive the gates of E_id and E_attr to logits of thousands: every unit multiplies a difference by
# up to four. Two float32 evaluations of one network then differ by more than the tolerance (float32 against float64:
# 6e-4 against an allowed 1e-4 for `arcface`; oneDNN on and off: 1e-2 against 1e-3 for `psp_full`; 15 % for the picture
# that `end_to_end` recovers from). The stored numbers come out on the processor they were made on, elsewhere perhaps.
# `TestWhereRoundingDecides` holds these networks to what float32 can say.
ROUNDING = pytest.mark.xfail(strict=False, reason="float32 rounding alone exceeds the tolerance on some processors")
DECIDED_BY_ROUNDING = ("arcface", "psp/psp_full", "end_to_end")


def parameter(case: Case) -> pytest.ParameterSet:
    marks = [*([pytest.mark.slow] if case.slow else []), *([ROUNDING] if case.name in DECIDED_BY_ROUNDING else [])]
    return pytest.param(case, id=case.name, marks=marks)


@pytest.mark.parametrize("case", [parameter(case) for case in golden.cases(GOLDEN)])
def test_a_case_computes_what_the_reference_computed(case: Case, runners: Mapping[str, Runner]) -> None:
    result = golden.check(case, runners)
    assert result.outcome == "passed", (result.detail, [role for role in result.roles if not role.passed])


def relative(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs|_2 / |theirs|_2"""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def evaluations(network: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """One network on one input in float32, summed in three orders."""
    yield network(x)
    yield network(x.contiguous(memory_format=torch.channels_last))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")  # the switch warns of Intel GPUs
        with torch.backends.mkldnn.flags(enabled=False):
            yield network(x)


@pytest.fixture(scope="session")
def networks() -> verify.Networks:
    return verify.Networks()


@pytest.mark.slow
class TestWhereRoundingDecides:
    CASES: ClassVar = {case.name: case for case in golden.cases(GOLDEN)}

    @pytest.mark.parametrize("name", ["arcface", "psp/psp_full"])
    def test_the_stored_numbers_are_as_near_as_float32_can_be(self, name: str, networks: verify.Networks) -> None:
        case = self.CASES[name]
        x = verify.picture(case.input("picture_u8"), torch.float32)[:1]
        if name == "arcface":
            stored = case.stored("outputs")["feature"][:1]
            network: nn.Module = networks.get(
                case, "arcface", arcface.IdentityEncoder, referenceconfig.arcface_config(case.config)
            )
        else:
            stored = case.stored("outputs")["codes"]
            config = referenceconfig.psp_config(case.config, x.shape[-1])
            network = networks.get(case, "encoder", attribute_encoder.AttributeEncoder, config)
        exact = copy.deepcopy(network).double()(x.double())
        spread = max(relative(ours, exact) for ours in evaluations(network, x))
        assert spread < 0.05
        assert relative(stored, exact) < 2 * spread

    def test_every_other_step_from_picture_to_recovered_picture_is_exact(self, networks: verify.Networks) -> None:
        case, paper = self.CASES["end_to_end"], configuration.PAPER
        stored = case.stored("outputs")
        transform = verify.build_flow(networks, case, paper.flow)
        mapper = networks.get(case, "latent_mapper", latent_mapper.LatentMapper, paper.mapper)
        generator = networks.get(case, "generator", stylegan2.Generator, paper.generator)
        right, wrong = stored["key_mapped"].double(), stored["key_wrong_mapped"].double()
        ours = {
            "key_mapped": generator.style(case.input("key")),
            "key_wrong_mapped": generator.style(case.input("key_wrong")),
            "anon.id_new": transform(stored["anon.id"].double(), right)[0],
            "recover.id": transform.inverse(stored["recover.icl_out"].double(), right)[0],
            "wrong.id": transform.inverse(stored["wrong.icl_out"].double(), wrong)[0],
            "anon.wplus": mapper.fuse(stored["anon.id_new"], stored["anon.attr"]),
        }
        for name in ("anon", "recover", "wrong"):
            ours[f"{name}.image_pool4"] = F.avg_pool2d(generator(stored[f"{name}.wplus"]), 4)
        assert {role: relative(value, stored[role]) for role, value in ours.items()} == pytest.approx(
            dict.fromkeys(ours, 0), abs=1e-5
        )


PAPER = {
    "arcface": (arcface.IdentityEncoder, arcface.PAPER, 43_797_696),
    "psp": (attribute_encoder.AttributeEncoder, attribute_encoder.PAPER, 209_450_688),
    "latent_mapper": (latent_mapper.LatentMapper, latent_mapper.PAPER, 787_456),
    "stylegan2_generator": (stylegan2.Generator, stylegan2.PAPER, 30_034_338),
    "flow": (flow.IdentityTransform, flow.PAPER, 1_647_616),
    "icl": (compensation.Compensation, compensation.PAPER, 5_247_488),
}


@pytest.mark.parametrize("part", PAPER)
def test_the_papers_networks_have_the_published_names_shapes_and_sizes(part: str) -> None:
    published = json.loads((GOLDEN / "paper_keys.json").read_text())[part]
    expected = [
        (name.removeprefix("encoder."), tuple(shape))
        for name, shape in published.items()
        if not name.startswith("decoder.")
    ]
    build, config, parameters = PAPER[part]
    with torch.device("meta"):
        network: nn.Module = build(config)
    assert [(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()] == expected
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
