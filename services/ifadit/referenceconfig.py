"""Configurations as golden folders write them, as those of our networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from services.ifadit import arcface, attribute_encoder, flow, irse, stylegan2

# Groups of ArcFace's IR networks by depth (TreB1eN/InsightFace_Pytorch).
UNITS_OF_DEPTH = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 152: (3, 8, 36, 3)}


def flow_config(config: Mapping[str, Any]) -> flow.FlowConfig:
    made = flow.FlowConfig(
        dim=config["dim"],
        condition=config["cond"],
        hidden=tuple(config["hidden"]),
        blocks=config["blocks"],
        clamp=config["clamp"],
        negative_slope=config["negative_slope"],
    )
    active = made.dim // 2
    if list(config.get("splits", [made.dim - active, active])) != [made.dim - active, active]:
        raise ValueError(f"a flow of {made.dim} splits into {made.dim - active} and {active}, not {config['splits']}")
    return made


def generator_config(config: Mapping[str, Any]) -> stylegan2.GeneratorConfig:
    size, channels = config["size"], {int(side): count for side, count in config["channels"].items()}
    made = stylegan2.GeneratorConfig(
        channels=tuple(channels[4 << level] for level in range(size.bit_length() - 2)),
        style_dim=config["style_dim"],
        n_mlp=config["n_mlp"],
        lr_mlp=config["lr_mlp"],
        blur=tuple(config["blur"]),
        seeds=(),
    )
    if (made.size, made.styles, 2 * len(made.channels) - 1) != (size, config["n_latent"], config["num_noises"]):
        raise ValueError(f"size {size} does not have {config['n_latent']} styles and {config['num_noises']} noise maps")
    return made


def _trunk(config: Mapping[str, Any], *, se: bool) -> irse.IrSeConfig:
    divisor = config.get("width_divisor", 1)
    return irse.IrSeConfig(
        widths=tuple(width // divisor for width in (64, 128, 256, 512)),
        units=UNITS_OF_DEPTH[config.get("depth", 50)],
        se_reduction=config.get("se_reduction", 16) if se else None,
        norm=True,
    )


def arcface_config(config: Mapping[str, Any]) -> arcface.IdentityEncoderConfig:
    crop = config.get("crop")
    trunk = _trunk(config, se=config["se"])
    return arcface.IdentityEncoderConfig(
        trunk=trunk,
        crop=(crop["top"], crop["bottom"], crop["left"], crop["right"]) if crop else None,
        input_size=config["input_size"],
        embedding=trunk.widths[-1],
        dropout=0.0,
        mirrored=False,
    )


def psp_config(config: Mapping[str, Any], input_size: int) -> attribute_encoder.AttributeEncoderConfig:
    trunk = _trunk(config, se=True)
    ends = np.cumsum(trunk.units) - 1
    return attribute_encoder.AttributeEncoderConfig(
        trunk=trunk,
        input_size=input_size,
        taps=(int(ends[1]), int(ends[2]), int(ends[3])),
        styles=config["n_styles"],
        coarse_end=config["coarse_end"],
        middle_end=config["middle_end"],
        style_width=trunk.widths[-1],
        style_dim=trunk.widths[-1],
    )
