"""The verifier on a folder of other sizes, seeds, names and weight sources, against formulas written out here."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from services.ifadit import verify
from shared.golden import CaseResult
from shared.goldenweights import recipe_weights

FLOW = {
    "dim": 7,
    "cond": 5,
    "hidden": [6, 4],
    "blocks": 3,
    "splits": [4, 3],
    "clamp": 1.5,
    "negative_slope": 0.2,
}
MAPPER = {"layers": [11, 6, 9], "negative_slope": 0.3}
GENERATOR = {
    "size": 8,
    "style_dim": 5,
    "n_mlp": 2,
    "channel_multiplier": 1,
    "channels": {"8": 4, "4": 6},
    "n_latent": 4,
    "num_noises": 3,
    "lr_mlp": 0.02,
    "blur": [1, 2, 1],
    "truncation": None,
    "crop": {"top": 1, "left": 2, "height": 3, "width": 4},
}
NORMAL = {"kind": "normal", "mean": 0.0, "std": 0.5}


def flow_spec() -> dict[str, Any]:
    spec: dict[str, Any] = {}
    for block in range(3):
        p = f"module_list.{block}."
        spec |= {
            f"{p}global_scale": {"shape": [1, 7], "kind": "normal", "mean": 9.0, "std": 1.0},
            f"{p}global_offset": {"shape": [1, 7]} | NORMAL,
            f"{p}w_perm": {"shape": [7, 7], "kind": "perm"},
            f"{p}w_perm_inv": {"shape": [7, 7], "kind": "perm_inv"},
        }
        for at, (n_in, n_out) in zip((0, 2, 4), ((9, 6), (6, 4), (4, 6)), strict=True):
            spec[f"{p}subnet.{at}.weight"] = {"shape": [n_out, n_in]} | NORMAL
            spec[f"{p}subnet.{at}.bias"] = {"shape": [n_out]} | NORMAL
    return spec


def loop_flow(w: Mapping[str, Tensor], x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The blocks coordinate by coordinate, one sample at a time."""
    outputs, logdets = [], []
    for sample, condition in zip(x.double(), c.double(), strict=True):
        value, logdet = sample.tolist(), 0.0
        for block in range(3):
            p = f"module_list.{block}."
            h = torch.cat([torch.tensor(value[:4], dtype=torch.float64), condition])
            for at in (0, 2, 4):
                h = w[f"{p}subnet.{at}.weight"].double() @ h + w[f"{p}subnet.{at}.bias"].double()
                h = h if at == 4 else torch.where(h > 0, h, 0.2 * h)
            h = 0.1 * h
            for i in range(3):
                s = 1.5 * torch.tanh(h[i]).item()
                value[4 + i] = value[4 + i] * torch.exp(torch.tensor(s, dtype=torch.float64)).item() + h[3 + i].item()
                logdet += s
            for i in range(7):
                g = 0.2 * torch.log1p(torch.exp(0.5 * w[f"{p}global_scale"][0, i].double())).item()
                value[i] = value[i] * g + w[f"{p}global_offset"][0, i].double().item()
                logdet += torch.log(torch.tensor(g)).item()
            value = [value[int(row.argmax())] for row in w[f"{p}w_perm"]]
        outputs.append(value)
        logdets.append(logdet)
    return torch.tensor(outputs, dtype=torch.float64), torch.tensor(logdets, dtype=torch.float64)


def blurred(x: Tensor, pad: tuple[int, int]) -> Tensor:
    kernel = torch.outer(*[torch.tensor([1.0, 2.0, 1.0]) / 2] * 2)
    return torch.cat([F.conv2d(F.pad(x[:, [i]], (*pad, *pad)), kernel[None, None]) for i in range(x.shape[1])], 1)


def styled(w: Mapping[str, Tensor], p: str, x: Tensor, style: Tensor, *, up: bool, rgb: bool) -> Tensor:
    """A modulated convolution with a weight of its own for every sample, as the paper writes it."""
    weight = w[f"{p}conv.weight"][0]
    drawn = []
    for sample, row in zip(x, style, strict=True):
        s = w[f"{p}conv.modulation.weight"] @ row / 5**0.5 + w[f"{p}conv.modulation.bias"]
        own = weight / weight[0].numel() ** 0.5 * s[None, :, None, None]
        if not rgb:
            own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            y = blurred(F.conv_transpose2d(sample[None], own.transpose(0, 1), stride=2), (1, 0))
        else:
            y = F.conv2d(sample[None], own, padding=weight.shape[-1] // 2)
        drawn.append(y)
    y = torch.cat(drawn)
    if rgb:
        return y + w[f"{p}bias"]
    y = y + w[f"{p}noise.weight"] * w[f"noise.{p}"] + w[f"{p}activate.bias"][:, None, None]
    return torch.where(y > 0, y, 0.2 * y) * 2**0.5


def plain_generator(w: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    noise = {f"noise.{p}": w[f"noises.noise_{i}"] for i, p in enumerate(("conv1.", "convs.0.", "convs.1."))}
    w = {**w, **noise}
    x = styled(w, "conv1.", w["input.input"].expand(len(rows), -1, -1, -1), rows[:, 0], up=False, rgb=False)
    rgb = styled(w, "to_rgb1.", x, rows[:, 1], up=False, rgb=True)
    x = styled(w, "convs.0.", x, rows[:, 1], up=True, rgb=False)
    x = styled(w, "convs.1.", x, rows[:, 2], up=False, rgb=False)
    spread = torch.zeros(len(rows), 3, 8, 8)
    spread[:, :, ::2, ::2] = rgb
    return styled(w, "to_rgbs.0.", x, rows[:, 3], up=False, rgb=True) + blurred(spread, (2, 0))


def generator_weights() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(5)
    shapes: dict[str, tuple[int, ...]] = {"input.input": (1, 6, 4, 4)}
    for i in (1, 2):
        shapes |= {f"style.{i}.weight": (5, 5), f"style.{i}.bias": (5,)}
    for p, n_in, n_out in (("conv1.", 6, 6), ("convs.0.", 6, 4), ("convs.1.", 4, 4)):
        shapes |= {
            f"{p}conv.weight": (1, n_out, n_in, 3, 3),
            f"{p}conv.modulation.weight": (n_in, 5),
            f"{p}conv.modulation.bias": (n_in,),
            f"{p}noise.weight": (1,),
            f"{p}activate.bias": (n_out,),
        }
    for p, n_in in (("to_rgb1.", 6), ("to_rgbs.0.", 4)):
        shapes |= {
            f"{p}bias": (1, 3, 1, 1),
            f"{p}conv.weight": (1, 3, n_in, 1, 1),
            f"{p}conv.modulation.weight": (n_in, 5),
            f"{p}conv.modulation.bias": (n_in,),
        }
    shapes |= {"noises.noise_0": (1, 1, 4, 4), "noises.noise_1": (1, 1, 8, 8), "noises.noise_2": (1, 1, 8, 8)}
    return {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def case(name: str, kind: str, config: Mapping[str, Any], **rest: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "config": config, "weights": None, "slow": False} | rest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = torch.Generator().manual_seed(3)
    spec = {"nine": {"seed": 77, "spec": flow_spec()}}
    (tmp_path / "w.json").write_text(json.dumps(spec))
    like = {name: torch.empty(rule["shape"]) for name, rule in flow_spec().items()}
    weights = recipe_weights({"recipe": "spec", "file": "w.json", "entry": "nine"}, like, tmp_path)
    x, key, wrong = (torch.randn(2, n, generator=rng) for n in (7, 5, 5))
    y, logdet = loop_flow(weights, x, key)
    tensors = {"a.x": x, "a.k": key, "a.q": wrong, "a.y": y.float(), "a.ld": logdet.float(), "a.bl": -logdet.float()}

    mapper = {"0.weight": (6, 11), "0.bias": (6,), "2.weight": (9, 6), "2.bias": (9,)}
    m = {f"model.{name}": torch.randn(shape, generator=rng).half() for name, shape in mapper.items()}
    rows = torch.randn(2, 3, 11, generator=rng)
    h = rows @ m["model.0.weight"].float().T + m["model.0.bias"].float()
    mapped_rows = torch.where(h > 0, h, 0.3 * h) @ m["model.2.weight"].float().T + m["model.2.bias"].float()
    tensors |= {f"m.{name}": tensor for name, tensor in m.items()} | {"rows": rows, "mapped_rows": mapped_rows}

    w = generator_weights()
    k, wplus = torch.rand(2, 5, generator=rng), torch.randn(2, 4, 5, generator=rng)
    c = k * (k.square().mean(1, keepdim=True) + 1e-8).rsqrt()
    for i in (1, 2):
        c = c @ w[f"style.{i}.weight"].T * 0.02 / 5**0.5 + w[f"style.{i}.bias"] * 0.02
        c = torch.where(c > 0, c, 0.2 * c) * 2**0.5
    drawn = plain_generator(w, wplus)
    tensors |= {f"g.{name}": tensor for name, tensor in w.items()} | {"k": k, "wplus": wplus, "c": c}
    tensors |= {"d": drawn[:, :, 1:4, 2:6].contiguous(), "d4": F.avg_pool2d(drawn, 4)}
    tensors["d0"] = F.avg_pool2d(plain_generator(w, c[:, None].expand(-1, 4, -1)), 4)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "t.safetensors")

    mac = hmac.new(b"k" * 32, bytes(32) + hashlib.sha256(b"{}").digest(), hashlib.sha256).hexdigest()
    chain = {"audit": "text", "audit_key_hex": (b"k" * 32).hex()}
    chain["audit_chain"] = [{"event": "{}", "prev_hex": bytes(32).hex(), "mac_hex": mac}]  # type: ignore[assignment]
    (tmp_path / "chain.json").write_text(json.dumps(chain))

    cases = [
        case(
            "one",
            "flow",
            FLOW,
            weights={"flow": {"recipe": "spec", "file": "w.json", "entry": "nine"}},
            tensors={
                "file": "t.safetensors",
                "inputs": {"x": "a.x", "key": "t.safetensors#a.k", "key_wrong": "a.q"},
                "outputs": {"y": "a.y", "x_back": "a.x", "logdet": "a.ld", "logdet_back": "a.bl"},
            },
            tolerance={"*": {"atol": 1e-5}},
        ),
        case(
            "two",
            "latent_mapper",
            MAPPER,
            weights={"latent_mapper": {"file": "t.safetensors", "prefix": "m."}},
            tensors={"file": "t.safetensors", "inputs": {"x": "rows"}, "outputs": {"y": "mapped_rows"}},
            tolerance={"y": {"atol": 1e-4}},
        ),
        case(
            "three",
            "stylegan2_generator",
            GENERATOR,
            weights={"generator": {"file": "t.safetensors", "prefix": "g."}},
            tensors={
                "file": "t.safetensors",
                "inputs": {"key_uniform": "k", "wplus": "wplus"},
                "outputs": {
                    "mapped": "c",
                    "image_from_wplus_crop": "d",
                    "image_from_wplus_pool4": "d4",
                    "image_from_mapped_pool4": "d0",
                },
            },
            tolerance={"*": {"atol": 1e-4}},
        ),
        case(
            "four",
            "audit_chain",
            {},
            values_file={"file": "chain.json", "keys": ["audit", "audit_key_hex", "audit_chain"]},
            tolerance={"*": {"atol": 0}},
        ),
    ]
    (tmp_path / "index.json").write_text(json.dumps({"format": 1, "set": "other", "cases": cases}))
    return tmp_path


def results(folder: Path) -> dict[str, CaseResult]:
    return {result.name: result for result in verify.verify(folder, "cpu", torch.float32)}


def test_another_folder_passes(folder: Path) -> None:
    for result in results(folder).values():
        assert result.outcome == "passed", result


def test_a_changed_number_fails_its_role_alone(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["cases"][0]["tensors"]["outputs"]["y"] = "a.x"
    index["cases"][3]["config"] = {"unused": True}
    (folder / "index.json").write_text(json.dumps(index))
    result = results(folder)["one"]
    assert result.outcome == "failed"
    assert [role.role for role in result.roles if not role.passed] == ["y"]


def test_an_unknown_kind_and_an_impossible_configuration_fail(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["cases"][1]["kind"] = "foreign"
    index["cases"][0]["config"]["splits"] = [3, 4]
    index["cases"][2]["config"]["num_noises"] = 5
    (folder / "index.json").write_text(json.dumps(index))
    found = results(folder)
    assert "unknown kind" in found["two"].detail
    assert "splits" in found["one"].detail
    assert "noise maps" in found["three"].detail
    assert {result.outcome for name, result in found.items() if name != "four"} == {"failed"}


def test_a_tampered_audit_chain_fails(folder: Path) -> None:
    chain = json.loads((folder / "chain.json").read_text())
    chain["audit_chain"][0]["event"] = "{ }"
    (folder / "chain.json").write_text(json.dumps(chain))
    assert results(folder)["four"].outcome == "failed"


def test_stored_weights_that_lack_a_tensor_fail(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["cases"][1]["weights"]["latent_mapper"]["prefix"] = "m.model.0."
    (folder / "index.json").write_text(json.dumps(index))
    assert results(folder)["two"].outcome == "failed"
