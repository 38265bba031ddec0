"""Golden vectors of what DiT-SR and TAD-SR share: one runner a kind, from the config alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import golden
from shared.golden import Case, CaseResult, Observed, Runner
from shared.nn.freezing import freeze
from shared.resshift import degradationverify
from shared.resshift.autoencoder import VqAutoencoder, reference_config
from shared.resshift.padding import pad_reflect, up_to_multiple, upsample
from shared.resshift.referenceconfig import reference_schedule, scaled_input
from shared.resshift.schedule import ResShiftSchedule, Table, at
from shared.resshift.tiling import Axis, Band, tile_starts


def verify(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Iterator[CaseResult]:
    """Rerun every case of a folder in the golden format; one result a case, as it is ready."""
    yield from golden.run(golden.cases(folder, device, dtype), runners())


def runners() -> dict[str, Runner]:
    """A runner for every kind of the set."""
    return {
        "schedule": run_schedule,
        "equations": run_equations,
        "weights_recipe": run_weights_recipe,
        "autoencoder": run_autoencoder,
        "bicubic_upsample": run_bicubic_upsample,
        "reflect_pad": run_reflect_pad,
        "tile_starts": run_tile_starts,
        "tile_blend": run_tile_blend,
        **degradationverify.RUNNERS,
    }


def run_schedule(case: Case) -> Observed:
    schedule = reference_schedule(case.config["diffusion"], case.config["eta_start_rule"])
    variance, clipped = schedule.posterior_variance, _clipped(schedule)
    mean_x0 = schedule.alpha / schedule.eta
    k, m, j = schedule.deterministic_weights()
    tables = {
        "sqrt_etas": schedule.sqrt_eta,
        "etas": schedule.eta,
        "etas_prev": schedule.eta_prev,
        "alpha": schedule.alpha,
        "input_scale": scaled_input(schedule, case.config["diffusion"]),
        "timestep_map": schedule.timestep_map,
        "posterior_variance": variance,
        "posterior_variance_clipped": clipped,
        "posterior_log_variance_clipped": np.log(clipped),
        "posterior_mean_coef1": schedule.eta_prev / schedule.eta,
        "posterior_mean_coef2": mean_x0,
        "weight_loss_mse": 0.5 / clipped * mean_x0**2,
        "ddim_k": k,
        "ddim_m": m,
        "ddim_j": j,
    }
    return Observed({role: torch.from_numpy(np.ascontiguousarray(table)) for role, table in tables.items()})


def _clipped(schedule: ResShiftSchedule) -> Table:
    """The posterior's variance with the second entry in place of the first, which is 0 and has no logarithm."""
    variance = schedule.posterior_variance
    return np.append(variance[min(1, len(variance) - 1)], variance[1:])


def run_equations(case: Case) -> Observed:
    schedule = reference_schedule(case.config["diffusion"], case.config["eta_start_rule"])
    x0, y, noise, x_t, t = (case.input(role) for role in ("x0", "y", "noise", "x_t", "t"))
    variance, clipped = schedule.posterior_variance, _clipped(schedule)
    return Observed(
        {
            "q_sample": schedule.add_noise(x0, y, t, noise),
            "prior_sample": schedule.start(y, noise),
            "posterior_mean": schedule.posterior_mean(x_t, x0, t),
            "posterior_variance": at(variance, t, x_t).flatten(),
            "posterior_log_variance": at(np.log(clipped), t, x_t).flatten(),
            "scale_input": x_t / at(scaled_input(schedule, case.config["diffusion"]), t, x_t),
            "eps_from_x0": schedule.pred_eps(x_t, x0, y, t),
        }
    )


def autoencoder_of(case: Case, config: Mapping[str, Any]) -> VqAutoencoder:
    """The autoencoder of a case, with the weights of the part `autoencoder`, in eval mode."""
    with torch.device("meta"):
        network: VqAutoencoder = VqAutoencoder(**reference_config(config))
    network.load_state_dict(case.weights("autoencoder", network.state_dict()), assign=True)
    nn.Module.to(network, case.device)
    freeze(network)
    return network


def run_weights_recipe(case: Case) -> Observed:
    config = dict(case.config)
    if (module := config.pop("module")) != "autoencoder":
        raise ValueError(f"unknown module {module!r}")
    return Observed(dict(autoencoder_of(case, config).state_dict()))


def run_autoencoder(case: Case) -> Observed:
    network = autoencoder_of(case, case.config)
    seen: dict[str, Tensor] = {}
    places = {
        "encoder_conv_in": network.encoder.conv_in,
        "encoder_mid_attn": network.encoder.mid.attn_1,
        "encoder_out": network.encoder,
    }
    hooks = [
        module.register_forward_hook(lambda _, __, output, role=role: seen.update({role: output}))
        for role, module in places.items()
    ]
    z = network.encode(case.input("image"))
    for hook in hooks:
        hook.remove()
    stored = case.stored("outputs")
    z_q = network.quantize(z)
    # At a tie of two codes either is right, so the decoder starts from the stored choice (`codebook ties`).
    start = stored["z_q"].to(z) if "z_q" in stored else z_q
    return Observed(
        seen
        | {
            "z": z,
            "indices": network.quantize.indices(z),
            "z_q": z_q,
            "decoded": network.decode(start, quantize=False),
            "decoded_not_quantised": network.decode(z, quantize=False),
        }
    )


def run_bicubic_upsample(case: Case) -> Observed:
    return Observed({"y": upsample(case.input("x"), case.config["factor"])})


def run_reflect_pad(case: Case) -> Observed:
    x, multiple = case.input("x"), case.config["multiple"]
    return Observed({"y": pad_reflect(x, *(up_to_multiple(side, multiple) for side in x.shape[-2:]))})


def run_tile_starts(case: Case) -> Observed:
    return Observed(values={"starts": [tile_starts(*tiling) for tiling in case.config["tilings"]]})


def run_tile_blend(case: Case) -> Observed:
    config, pictures = case.config, []
    tile, stride, factor = config["tile"], config["stride"], config["factor"]
    for x in case.input("x"):
        rows, columns = (Axis.plan(side, tile, stride, multiple=1) for side in x.shape[-2:])
        band, finished, index = Band(rows, columns, len(x), factor, "flat"), [], 0
        for top in rows.starts:
            for column, left in enumerate(columns.starts):
                part = x[None, :, top : top + rows.tile, left : left + columns.tile]
                mapped = F.interpolate(part, scale_factor=factor, mode="nearest")[0]
                band.add(column, mapped * (1 + config["gain"] * index) + config["offset"] * index)
                index += 1
            finished.append(band.next_row())
        if index != config["tiles"]:
            raise ValueError(f"{index} tiles instead of {config['tiles']}")
        pictures.append(torch.cat(finished, 1))
    return Observed({"y": torch.stack(pictures)})
