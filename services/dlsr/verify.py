"""Golden vectors of DLSR: one runner a kind, from the config alone (the table in the golden format's description)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.dlsr import scores
from services.dlsr.layers import layer_cosines, normalised, pooled
from services.dlsr.lfdn import LFDN, LFDNConfig
from services.dlsr.reconstruction import Denoise, Reconstructor, start, walk
from services.dlsr.schedule import Schedule, linear_schedule, reverse_steps
from shared import golden
from shared.golden import Case, CaseResult, Observed, Runner
from shared.nn.efficientnet import EfficientNet, EfficientNetConfig, SameConv2d
from shared.nn.published import load_exactly
from shared.training import Average


def verify(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Iterator[CaseResult]:
    """Rerun every case of a folder in the golden format; one result a case, as it is ready."""
    yield from golden.run(golden.cases(folder, device, dtype), runners())


def runners() -> dict[str, Runner]:
    """A runner for every kind of the set."""
    return {
        "schedule": run_schedule,
        "normalise": run_normalise,
        "network": run_network,
        "training_loss": run_training_loss,
        "reconstruction": run_reconstruction,
        "score": run_score,
        "ema": run_ema,
        "encoder": run_encoder,
    }


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    return linear_schedule(config["timesteps"], config["linear_start"], config["linear_end"])


def build_lfdn(case: Case, part: str) -> LFDN:
    config = case.config
    if config.get("parameterization", "x0") != "x0":
        raise ValueError(f"LFDN predicts x0, not {config['parameterization']!r}")
    sizes = (config[name] for name in ("model_channels", "bottleneck_channels", "time_embed_dim", "num_res_blocks"))
    with torch.device("meta"):
        network = LFDN(LFDNConfig(config["indices"][-1], *sizes))
    network.load_state_dict(case.weights(part, network.state_dict()), assign=True)
    return network.eval().requires_grad_(False)


def run_schedule(case: Case) -> Observed:
    schedule = schedule_of(case.config)
    alpha_bar = schedule.alpha_bar
    tables = {
        "betas": schedule.betas,
        "alphas_cumprod": alpha_bar,
        "sqrt_alphas_cumprod": np.sqrt(alpha_bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alpha_bar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / alpha_bar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alpha_bar - 1),
    }
    return Observed({name: torch.from_numpy(table) for name, table in tables.items()})


def run_normalise(case: Case) -> Observed:
    return Observed({"z": normalised(case.input("raw"), case.config["indices"], case.config["eps"])})


def run_network(case: Case) -> Observed:
    network = build_lfdn(case, "network")
    x, t = case.input("x"), case.input("t")
    watched: dict[str, nn.Module] = {"input_proj": network.input_proj, "time_embed": network.time_embed}
    watched |= {f"block{i}": block for i, block in enumerate(network.res_blocks)}
    seen: dict[str, Tensor] = {}
    for name, module in watched.items():
        module.register_forward_hook(_keep(seen, name))
    return Observed({"y": network(x, t)} | seen)


def _keep(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        seen[name] = output

    return hook


def run_training_loss(case: Case) -> Observed:
    z, t = case.input("z"), case.input("t")
    x_noisy = schedule_of(case.config).add_noise(z, t, case.input("noise"))
    return Observed({"x_noisy": x_noisy, "loss": F.mse_loss(build_lfdn(case, "network")(x_noisy, t), z)})


def run_reconstruction(case: Case) -> Observed:
    """The steps as the index lists them, the one that changes nothing included; and as the product takes them."""
    schedule, z = schedule_of(case.config), case.input("z")
    listed = case.config["steps"]
    steps = reverse_steps(schedule, [step["t"] for step in reversed(listed)], case.config["eta"])
    if [step["index"] for step in listed] != list(range(len(steps)))[::-1]:
        raise ValueError("the indices of the steps do not count down to 0")
    _, forward, *rest = case.input("noises")
    noises = torch.stack([forward, *(n for n, step in zip(rest, steps, strict=True) if not step.is_identity)], dim=1)
    observed: dict[str, Tensor] = {}
    for part in ("end", "first"):
        network = build_lfdn(case, part)
        observed[f"zhat_{part}"] = Reconstructor(network, schedule, steps, case.config["start"])(z, noises)
        if part == "end":
            x = start(schedule, case.config["start"], z, forward)
            states = list(walk(every_time(network), steps, x, rest))
            observed |= {
                "x_in": torch.stack([state.x for state in states]),
                "pred_x0": torch.stack([state.pred_z_0 for state in states]),
                "x_prev": torch.stack([state.x_prev for state in states]),
            }
    by_index = steps[::-1]
    observed |= {
        "ddim_alphas": torch.tensor([step.alpha_bar for step in by_index]),
        "ddim_alphas_prev": torch.tensor([step.alpha_bar_prev for step in by_index]),
        "ddim_sigmas": torch.tensor([step.sigma for step in by_index]),
    }
    return Observed(observed)


def every_time(network: LFDN) -> Denoise:
    """The network as the reference calls it, its timesteps embedded anew."""
    return lambda x, step: network(x, torch.full((len(x),), step.t, device=x.device))


def run_score(case: Case) -> Observed:
    z, end, first = (case.input(role) for role in ("z", "zhat_end", "zhat_first"))
    boundaries = case.config["indices"]
    parts = {
        "mse": scores.mse(z, end, boundaries),
        "mfsim": scores.mfsim(z, end, boundaries),
        "mfsim_all_layers": scores.mfsim_all(z, end, boundaries),
        "lr": scores.lr(z, end, first, boundaries),
    }
    cosines = layer_cosines(z, end, boundaries).T
    return Observed({name: value.sum(1) for name, value in parts.items()} | {"cos_per_layer": cosines})


def run_ema(case: Case) -> Observed:
    config = case.config
    weight = torch.tensor(config["weight"], dtype=torch.float32)
    bias = torch.tensor(config["bias"], dtype=torch.float32)
    layer = nn.Linear(len(weight) // len(bias), len(bias))
    layer.load_state_dict({"weight": weight.reshape(layer.weight.shape), "bias": bias})
    average = Average(layer, config["decay"])
    rows = []
    for _ in range(config["updates"]):
        with torch.no_grad():
            layer.weight.add_(config["weight_step"])
            layer.bias.mul_(config["bias_factor"])
        average.update(layer)
        rows.append(torch.cat([average.values["weight"].flatten(), average.values["bias"]]))
    return Observed({"weight_and_bias": torch.stack(rows)})


def run_encoder(case: Case, *, dynamic_padding: bool = False) -> Observed:
    """The encoder with its batch norms folded, as it is served. `dynamic_padding` is the known mistake, for a test."""
    config = case.config
    static_px = None if dynamic_padding else config["static_image_size"]
    plain = EfficientNetConfig(config["width"], config["depth"], "swish", squeeze_excite=True, static_px=static_px)
    with torch.device("meta"):
        network = EfficientNet(plain)
    for name, padding in ({} if dynamic_padding else config["paddings"]).items():
        conv = network.get_submodule(name)
        found = conv.paddings(*case.input("image").shape[-2:]) if isinstance(conv, SameConv2d) else ()
        if list(found) != padding:
            raise ValueError(f"{name} pads {found}, not {padding}")
    load_exactly(network, case.weights("encoder", network.state_dict()), case.source("encoder")["file"])
    maps = network.folded()(case.input("image"), config["outblocks"])
    raw = pooled(maps, config["outstrides"], config["align_stride"])
    tensors = {f"feat{place}": map_ for place, map_ in enumerate(maps, start=1)}
    return Observed(tensors | {"pooled": raw, "z": normalised(raw, config["indices"], config["eps"])})
