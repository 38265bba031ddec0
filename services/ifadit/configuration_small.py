"""The sizes of the model that this project trains and ships: 64 px, 10 style rows of 128."""

from __future__ import annotations

from services.ifadit.arcface import IdentityEncoderConfig
from services.ifadit.attribute_encoder import AttributeEncoderConfig
from services.ifadit.compensation import CompensationConfig
from services.ifadit.configuration import IfaditConfig
from services.ifadit.flow import FlowConfig
from services.ifadit.irse import IrSeConfig
from services.ifadit.latent_mapper import LatentMapperConfig
from services.ifadit.masks import EdgeConfig, EllipseConfig
from services.ifadit.stylegan2 import GeneratorConfig, SeedConfig

SMALL = IfaditConfig(
    identity=IdentityEncoderConfig(
        trunk=IrSeConfig(widths=(24, 64, 128, 128), units=(1, 2, 2, 1), se_reduction=8, norm=True),
        crop=None,
        input_size=64,
        embedding=128,
        dropout=0.0,
        mirrored=True,
    ),
    attributes=AttributeEncoderConfig(
        trunk=IrSeConfig(widths=(24, 48, 96, 128), units=(1, 1, 2, 1), se_reduction=None, norm=False),
        input_size=64,
        taps=(1, 3, 4),
        styles=10,
        coarse_end=3,
        middle_end=6,
        style_width=48,
        style_dim=128,
    ),
    mapper=LatentMapperConfig(layers=(256, 128, 128), negative_slope=0.2, identity_gain=8.0, unit_identity=True),
    generator=GeneratorConfig(
        channels=(128, 128, 96, 64, 24),
        style_dim=128,
        n_mlp=2,
        lr_mlp=1.0,
        blur=(1, 3, 3, 1),
        seeds=(SeedConfig(rows=(0, 3), channels=24, size=8), SeedConfig(rows=(3, 6), channels=6, size=16)),
    ),
    flow=FlowConfig(dim=128, condition=128, hidden=(96, 64, 64, 96), blocks=4, clamp=2.0, negative_slope=0.01),
    compensation=CompensationConfig(layers=(128, 256, 256, 128), negative_slope=0.2, skip=True),
    key_scheme="v2-gauss",
    edge=EdgeConfig(dilate=1, gaussian=9, sigma=1.5),
    face=EllipseConfig(center=(0.5, 0.575), half_axes=(0.38, 0.45)),
)
