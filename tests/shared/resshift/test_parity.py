"""Every golden case of what DiT-SR and TAD-SR share, through the same code that `tenfold-admin verify` calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from shared import golden
from shared.golden import Case, Runner
from shared.resshift import verify
from shared.resshift.autoencoder import PAPER_F4, PAPER_F8, VqAutoencoder, reference_config

GOLDEN = Path(__file__).parents[2] / "golden" / "resshift-diffusion"
KEYS = json.loads((GOLDEN / "paper_keys.json").read_text())


@pytest.fixture(scope="module")
def runners() -> Mapping[str, Runner]:
    return verify.runners()


def parameter(case: Case) -> pytest.ParameterSet:
    return pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else [])


@pytest.mark.parametrize("case", [parameter(case) for case in golden.cases(GOLDEN)])
def test_a_case_computes_what_the_reference_computed(case: Case, runners: Mapping[str, Runner]) -> None:
    result = golden.check(case, runners)
    assert result.outcome == "passed", (result.detail, [role for role in result.roles if not role.passed])


@pytest.mark.parametrize(
    ("published", "config"), [("autoencoder_vq_f4", PAPER_F4), ("ffhq512_vq_f8_dim8_face", PAPER_F8)]
)
def test_an_autoencoder_has_the_names_shapes_and_number_of_the_published_file(
    published: str, config: Mapping[str, object]
) -> None:
    with torch.device("meta"):
        network = VqAutoencoder(**config)
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == KEYS[published]
    assert sum(tensor.numel() for tensor in network.parameters()) == KEYS["_info"][published]["parameters"]
    assert reference_config(KEYS["_info"][published]["config"]) == config
