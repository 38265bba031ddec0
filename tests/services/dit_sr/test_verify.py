"""The verifier on a folder of other sizes, seeds and names, against the plain form of every part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import plain_dit_sr
from services.dit_sr import verify
from services.dit_sr.denoiser import UNetModelSwin
from shared.golden import CaseResult
from shared.goldenweights import recipe_weights
from shared.resshift.referenceconfig import published_buffers
from tests.services.dit_sr.tiny import TINY

FIXED = {"conv_resample": True, "dims": 2, "use_fp16": False, "cond_lq": True}
CONFIG = TINY | {"lq_size": 32, "channel_mult": [1, 3], "swin_depth": 3, "attention_resolutions": [16], "mlp_ratio": 3}
WEIGHTS = {"network": {"recipe": "unit-fan-in", "seed": 404}}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def network() -> UNetModelSwin:
    made: UNetModelSwin = UNetModelSwin(**CONFIG)
    made.load_state_dict(recipe_weights(WEIGHTS["network"], made.state_dict(), Path()))
    return made.eval().requires_grad_(False)


def case(kind: str, config: dict[str, Any], inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "name": f"another {kind}",
        "kind": kind,
        "config": config,
        "weights": WEIGHTS,
        "slow": False,
        "tolerance": {"*": {"atol": 2e-5, "rtol": 1e-4}},
        "tensors": {
            "file": f"{kind}.bin",
            "inputs": {role: f"in.{role}" for role in inputs},
            "outputs": {role: f"out.{role}" for role in outputs},
        },
    }


def write(folder: Path, *, spoil: float = 0.0) -> None:
    made, x, t, lq = network(), draw(2, 3, 32, 16), torch.tensor([2, 9]), draw(2, 3, 64, 32)
    features, scale = draw(2, 3, 8, 12), draw(2, 4, 3)
    recipe = recipe_weights(WEIGHTS["network"], made.state_dict() | published_buffers(made), Path())
    parts = {
        "weights_recipe": (CONFIG | FIXED | {"module": "network"}, {}, recipe),
        "network": (
            CONFIG | FIXED,
            {"x": x, "t": t, "lq": lq},
            {"y": plain_dit_sr.forward(made, x, t, lq) + spoil},
        ),
        "adafm": (
            {"patch_size": 4},
            {"x": features, "scale": scale},
            {"y": plain_dit_sr.adafm(features, scale) + spoil},
        ),
    }
    for kind, (_, inputs, outputs) in parts.items():
        tensors = {f"in.{role}": tensor for role, tensor in inputs.items()}
        tensors |= {f"out.{role}": tensor for role, tensor in outputs.items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"{kind}.bin")
    cases = [case(kind, config, inputs, outputs) for kind, (config, inputs, outputs) in parts.items()]
    (folder / "index.json").write_text(json.dumps({"format": 1, "set": "other", "cases": cases}))


def outcomes(folder: Path) -> dict[str, CaseResult]:
    return {result.kind: result for result in verify.verify(folder)}


def test_other_sizes_and_names_are_verified(tmp_path: Path) -> None:
    write(tmp_path)
    results = outcomes(tmp_path)
    assert {kind: result.outcome for kind, result in results.items()} == dict.fromkeys(results, "passed"), results
    assert len(results["weights_recipe"].roles) > 100


def test_a_number_beyond_tolerance_is_found(tmp_path: Path) -> None:
    write(tmp_path, spoil=1e-3)
    results = outcomes(tmp_path)
    assert {kind for kind, result in results.items() if result.outcome == "failed"} == {"network", "adafm"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "no_such_kind"}, "unknown kind"),
        ({"config": CONFIG | FIXED | {"dims": 3}}, "dims"),
        ({"config": CONFIG | {"patches": 2}}, "patches"),
    ],
)
def test_what_it_does_not_know_is_a_failure(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    index["cases"] = [entry | change for entry in index["cases"] if entry["kind"] == "network"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    (result,) = verify.verify(tmp_path)
    assert result.outcome == "failed"
    assert said in result.detail
