"""The verifier on a folder of other sizes, names and steps, against formulas written out here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from services.dlsr import verify
from services.dlsr.lfdn import LFDN, LFDNConfig
from shared.golden import CaseResult

SIZES = {"indices": [3, 9], "model_channels": 11, "bottleneck_channels": 6, "time_embed_dim": 5, "num_res_blocks": 2}
CHAIN = {"timesteps": 30, "linear_start": 0.002, "linear_end": 0.03}


def run(folder: Path, case: dict[str, Any], tensors: dict[str, torch.Tensor]) -> CaseResult:
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "t.safetensors")
    whole = {"name": "x", "slow": False, "tolerance": {"*": {"atol": 1e-4, "rtol": 1e-4}}, "weights": None, **case}
    (folder / "index.json").write_text(json.dumps({"format": 1, "set": "dlsr", "cases": [whole]}))
    (result,) = verify.verify(folder)
    return result


def alpha_bars() -> np.ndarray:
    roots = np.linspace(CHAIN["linear_start"] ** 0.5, CHAIN["linear_end"] ** 0.5, int(CHAIN["timesteps"]))
    return np.cumprod(1 - roots**2)


@pytest.mark.parametrize(("listed", "start", "eta"), [((1,), 1, 1.0), ((1, 2, 3, 4), 4, 0.0), ((1, 6, 11), 11, 1.0)])
def test_other_steps_are_walked_as_the_equations_say(
    tmp_path: Path, listed: tuple[int, ...], start: int, eta: float
) -> None:
    rng = torch.Generator().manual_seed(5)
    network = LFDN(LFDNConfig(9, 11, 6, 5, 2)).double().eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.3)
    z = torch.randn(4, 9, generator=rng).double()
    noises = torch.randn(len(listed) + 2, 4, 9, generator=rng).double()
    abar = alpha_bars()
    x = abar[start] ** 0.5 * z + (1 - abar[start]) ** 0.5 * noises[1]
    for place in reversed(range(len(listed))):
        t = listed[place]
        f = network(x, torch.full((4,), t))
        e = (x / abar[t] ** 0.5 - f) / (1 / abar[t] - 1) ** 0.5
        now, prev = abar[t - 1], abar[listed[place - 1] - 1] if place else abar[0]
        x0 = (x - (1 - now) ** 0.5 * e) / now**0.5
        sigma = eta * ((1 - prev) / (1 - now) * (1 - now / prev)) ** 0.5
        x = prev**0.5 * x0 + (1 - prev - sigma**2) ** 0.5 * e + sigma * noises[len(listed) - place + 1]
    steps = [{"t": listed[place], "index": place} for place in reversed(range(len(listed)))]
    weights = {"file": "t.safetensors", "prefix": "w."}
    case = {
        "kind": "reconstruction",
        "config": {**SIZES, **CHAIN, "steps": steps, "start": start, "eta": eta, "subset": None, "spacing_n": None},
        "weights": {"end": weights, "first": weights},
        "tensors": {
            "file": "t.safetensors",
            "inputs": {"z": "a", "noises": "b"},
            "outputs": {"zhat_end": "c", "zhat_first": "c"},
        },
    }
    tensors = {"a": z.float(), "b": noises.float(), "c": x.float()}
    tensors |= {f"w.{name}": value.float() for name, value in network.state_dict().items()}
    result = run(tmp_path, case, tensors)
    assert result.outcome == "passed", result
    tensors["c"] = tensors["c"] + 0.01
    assert run(tmp_path, case, tensors).outcome == "failed"


def test_an_odd_width_ends_its_time_table_with_a_zero(tmp_path: Path) -> None:
    from services.dlsr.lfdn import sinusoid

    table = sinusoid(torch.tensor([0, 7]), 11)
    assert table.shape == (2, 11)
    assert bool((table[:, -1] == 0).all())
    assert table[1, 0].item() == pytest.approx(np.cos(7), abs=1e-6)
    assert table[1, 6].item() == pytest.approx(np.sin(7 * 10_000 ** (-1 / 5)), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "config"),
    [("polish", {}), ("network", {**SIZES, "parameterization": "eps"})],
)
def test_what_it_does_not_know_fails(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    case = {
        "kind": kind,
        "config": config,
        "weights": {"network": {"file": "t.safetensors", "prefix": ""}},
        "tensors": {"file": "t.safetensors", "inputs": {"x": "x", "t": "t"}, "outputs": {"y": "x"}},
    }
    result = run(tmp_path, case, {"x": torch.zeros(1, 9), "t": torch.zeros(1, dtype=torch.int64)})
    assert result.outcome == "failed"
