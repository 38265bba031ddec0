"""Golden vectors of DiT-SR: one runner a kind, from the config alone (the table in the golden format's description).

The modules are the product's own, run as the product runs them: frozen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from services.dit_sr.adafm import adafm, filter_matrix
from services.dit_sr.denoiser import UNetModelSwin
from services.dit_sr.layer import SwinTransformerBlockAdaFM
from shared import golden
from shared.golden import Case, CaseResult, Observed, Runner
from shared.nn.freezing import freeze
from shared.resshift.padding import upsample
from shared.resshift.referenceconfig import denoiser_config, published_buffers, reference_schedule
from shared.resshift.sampler import predict
from shared.resshift.unet import timestep_embedding
from shared.resshift.verify import autoencoder_of
from shared.resshift.windows import from_windows, last_row_mask, shifted, to_windows


class Denoisers:
    """Networks of the cases seen so far: at paper size, making the weights takes longer than running them."""

    def __init__(self) -> None:
        self._known: dict[str, UNetModelSwin] = {}

    def get(self, case: Case, config: Mapping[str, Any], part: str = "network") -> UNetModelSwin:
        """The network of a published configuration with the weights of a part, in eval mode; made once."""
        source = json.dumps([str(case.folder), case.source(part), config, str(case.device), str(case.dtype)])
        if source not in self._known:
            with torch.device("meta"):
                network = UNetModelSwin(**denoiser_config(config))
            state = network.state_dict()
            weights = case.weights(part, state)
            network.load_state_dict({name: weights[name] for name in state}, assign=True)
            freeze(network)
            self._known[source] = network
        return self._known[source]


def verify(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Iterator[CaseResult]:
    """Rerun every case of a folder in the golden format; one result a case, as it is ready."""
    yield from golden.run(golden.cases(folder, device, dtype), runners())


def runners() -> dict[str, Runner]:
    """A runner for every kind of the set. They share the networks they build."""
    denoisers = Denoisers()
    with_network: dict[str, Callable[[Denoisers, Case], Observed]] = {
        "network": run_network,
        "swin_block": run_swin_block,
        "posterior_step": run_posterior_step,
        "sampling_loop": run_sampling_loop,
    }
    bound: dict[str, Runner] = {kind: _bind(run, denoisers) for kind, run in with_network.items()}
    return bound | {
        "weights_recipe": run_weights_recipe,
        "timestep_embedding": run_timestep_embedding,
        "adafm": run_adafm,
    }


def _bind(run: Callable[[Denoisers, Case], Observed], denoisers: Denoisers) -> Runner:
    return lambda case: run(denoisers, case)


def run_weights_recipe(case: Case) -> Observed:
    """The state dict that a recipe makes, published buffers included."""
    config = dict(case.config)
    if (module := config.pop("module")) != "network":
        raise ValueError(f"the set has no module {module!r}")
    with torch.device("meta"):
        network = UNetModelSwin(**denoiser_config(config))
    return Observed(case.weights("network", network.state_dict() | published_buffers(network)))


def run_network(denoisers: Denoisers, case: Case) -> Observed:
    """A forward pass with every stage."""
    network = denoisers.get(case, case.config)
    stages = {
        "time_embed": network.time_embed,
        **{f"input_blocks.{i}": block for i, block in enumerate(network.input_blocks)},
        "middle_block": network.middle_block,
        **{f"output_blocks.{i}": block for i, block in enumerate(network.output_blocks)},
    }
    seen: dict[str, Tensor] = {}
    hooks = [stage.register_forward_hook(_keep(seen, name)) for name, stage in stages.items()]
    try:
        y = network(case.input("x"), case.input("t"), case.input("lq"))
    finally:
        for hook in hooks:
            hook.remove()
    entered = network.enter(case.input("x"), network.condition(case.input("lq")))  # the one stage that is no module
    return Observed(seen | {"input_blocks.0": entered, "y": y})


def _keep(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        seen[name] = output

    return hook


def run_swin_block(denoisers: Denoisers, case: Case) -> Observed:
    """One block with what goes in and out of its parts. Tensors of windows are those of the attention, shifted."""
    config = dict(case.config)
    path, shift = config.pop("block"), config.pop("shift")
    block = denoisers.get(case, config).get_submodule(path)
    if not isinstance(block, SwinTransformerBlockAdaFM) or block.shift != shift:
        raise ValueError(f"{path} is no block that shifts by {shift}")
    x, emb = case.input("x"), case.input("emb")
    size, w = (x.shape[2], x.shape[3]), block.window
    tokens = to_windows(x, w)
    scale_msa, scale_mlp = block.scales(emb)
    filters = block.filters(emb)

    norm1 = block.norm1(tokens)
    attn_in = adafm(norm1, filters.msa)
    attended = block.attend(attn_in, size)
    norm2 = block.norm2(tokens + attended)
    mlp_in = adafm(norm2, filters.mlp)

    def as_map(windows: Tensor) -> Tensor:
        return from_windows(windows, w, *size)

    def as_windows(windows: Tensor) -> Tensor:
        return to_windows(as_map(windows).roll((-shift, -shift), dims=(2, 3)), w).flatten(0, 1)

    tensors = {
        "norm1": as_map(norm1),
        "scale_msa": scale_msa,
        "scale_mlp": scale_mlp,
        "attn_in_windows": as_windows(attn_in),
        "attn_out_windows": as_windows(attended),
        "norm2": as_map(norm2),
        "mlp_in": as_map(mlp_in),
        "mlp_out": as_map(block.mlp(mlp_in, skip=torch.zeros_like(mlp_in))),
        "y": as_map(block(tokens, filters, size)),
    }
    if shift:
        free = shifted(1, *size, w, shift, x.device).free
        mask = last_row_mask(w, shift, x.device)
        tensors["attn_mask"] = torch.cat(
            [torch.zeros_like(mask).expand(free, -1, -1), mask.expand(size[1] // w, -1, -1)]
        )
    return Observed(tensors)


def run_timestep_embedding(case: Case) -> Observed:
    return Observed({"y": timestep_embedding(case.input("t"), case.config["dim"], case.config["max_period"])})


def run_adafm(case: Case) -> Observed:
    x, scale, p = case.input("x"), case.input("scale"), case.config["patch_size"]
    if scale.shape[1] != p:
        raise ValueError(f"a map of {scale.shape[1]} for patches of {p}")
    matrix = filter_matrix(scale)
    y = from_windows(adafm(to_windows(x, p), matrix), p, x.shape[2], x.shape[3])
    kernel = matrix[:, :, 0].unflatten(1, (p, p))  # what becomes of a single one in the corner
    return Observed({"equivalent_matrix": matrix, "equivalent_circular_kernel": kernel, "y": y})


def run_posterior_step(denoisers: Denoisers, case: Case) -> Observed:
    """One step of the chain at a time of its own for each picture."""
    network = denoisers.get(case, case.config["network"])
    schedule = reference_schedule(case.config["diffusion"], "resshift")
    x_t, y, noise, lq, t = (case.input(role) for role in ("x_t", "y", "noise", "lq", "t"))
    pred_x0 = predict(network, schedule, x_t, y, lq, t)
    return Observed(
        {
            "scaled_input": schedule.scale_input(x_t, t),
            "pred_x0": pred_x0,
            "mean": schedule.posterior_mean(x_t, pred_x0, t),
            "sample": schedule.step(x_t, pred_x0, t, noise),
        }
    )


def run_sampling_loop(denoisers: Denoisers, case: Case) -> Observed:
    """From picture to picture, with the recorded noise."""
    network = denoisers.get(case, case.config["network"])
    autoencoder = autoencoder_of(case, case.config["autoencoder"])
    schedule = reference_schedule(case.config["diffusion"], "resshift")
    lq, step_noise = case.input("lq"), case.input("step_noise")
    z_y = autoencoder.encode(upsample(lq, case.config["diffusion"]["sf"]))
    x = x_start = schedule.start(z_y, case.input("noise_T"))
    samples, predictions = [], []
    for now, noise in zip(reversed(range(len(schedule))), step_noise, strict=True):
        t = torch.full((len(x),), now, device=x.device)
        predictions.append(predict(network, schedule, x, z_y, lq, t))
        x = schedule.step(x, predictions[-1], t, noise)
        samples.append(x)
    return Observed(
        {
            "z_y": z_y,
            "x_T": x_start,
            "pred_x0": torch.stack(predictions),
            "samples": torch.stack(samples),
            "sr": autoencoder.decode(x).clamp(-1, 1),
        }
    )
