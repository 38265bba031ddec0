"""The references' configurations and names in our terms; golden cases and published files come with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from shared.resshift.attention import relative_position_index
from shared.resshift.schedule import Prediction, ResShiftSchedule, StartRule, Table, exponential
from shared.resshift.windows import last_row_mask

PREDICTIONS: Mapping[str, Prediction] = {"xstart": "x0", "residual": "residual"}


def reference_schedule(diffusion: Mapping[str, Any], start_rule: StartRule) -> ResShiftSchedule:
    """The chain of a `diffusion` block. Raises ValueError for what no published model uses and this code lacks."""
    if diffusion["schedule_name"] != "exponential":
        raise ValueError(f"unknown schedule {diffusion['schedule_name']!r}")
    if diffusion["predict_type"] not in PREDICTIONS:
        raise ValueError(f"unknown predict_type {diffusion['predict_type']!r}")
    if start_rule not in get_args(StartRule):
        raise ValueError(f"unknown rule for the start of eta: {start_rule!r}")
    if diffusion["scale_factor"] != 1.0:
        raise ValueError(f"latents are not scaled; scale_factor is {diffusion['scale_factor']}")
    schedule = exponential(
        diffusion["steps"],
        kappa=diffusion["kappa"],
        min_noise=diffusion["min_noise_level"],
        sqrt_eta_end=diffusion["etas_end"],
        power=diffusion["schedule_kwargs"]["power"],
        start_rule=start_rule,
        prediction=PREDICTIONS[diffusion["predict_type"]],
    )
    respacing = diffusion["timestep_respacing"]
    return schedule if respacing is None else schedule.respaced(int(respacing))


def scaled_input(schedule: ResShiftSchedule, diffusion: Mapping[str, Any]) -> Table:
    """What a `diffusion` block divides the network's input by. In pixel space, three standard deviations and one."""
    if not diffusion["normalize_input"]:
        return np.ones(len(schedule))
    return schedule.input_std if diffusion["latent_flag"] else 3 * schedule.kappa * schedule.sqrt_eta + 1


# What every published network has, and ours always is.
_FIXED = {"conv_resample": True, "dims": 2, "use_fp16": False, "cond_lq": True}


def denoiser_config(config: Mapping[str, Any], **fixed: Any) -> dict[str, Any]:
    """Our configuration of a denoiser from a published one. Raises ValueError for a network of another kind.

    fixed  what the published networks of the method have besides
    """
    always = _FIXED | fixed
    if other := {name: config[name] for name, value in always.items() if config.get(name, value) != value}:
        raise ValueError(f"the network is another one where {other}")
    return {name: value for name, value in config.items() if name not in always}


def published_buffers(denoiser: nn.Module) -> dict[str, Tensor]:
    """What published files hold besides parameters, for maps as large as the network is built for.

    Both kinds follow from sizes: `relative_position_index` (w w, w w) of every block, and `attn_mask` (n, w w, w w) of
    those that shift.
    """
    found: dict[str, Tensor] = {}
    cpu = torch.device("cpu")
    for path, layer in denoiser.named_modules():
        if not (hasattr(layer, "blocks") and hasattr(layer, "resolution")):
            continue
        side = layer.resolution // layer.window
        for i, block in enumerate(layer.blocks):
            if block.shift:
                mask = last_row_mask(layer.window, block.shift, cpu)
                free = torch.zeros(side * (side - 1), *mask.shape)
                found[f"{path}.blocks.{i}.attn_mask"] = torch.cat([free, mask.expand(side, -1, -1)])
            found[f"{path}.blocks.{i}.attn.relative_position_index"] = relative_position_index(layer.window, cpu)
    return found
