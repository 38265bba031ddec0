"""A whole iFADIT of 16 x 16 pixels: every part in the shape of the real ones, small enough for a property test."""

from __future__ import annotations

import torch

from services.ifadit.anonymizer import Ifadit
from services.ifadit.arcface import IdentityEncoderConfig
from services.ifadit.attribute_encoder import AttributeEncoderConfig
from services.ifadit.compensation import CompensationConfig
from services.ifadit.configuration import IfaditConfig
from services.ifadit.flow import FlowConfig
from services.ifadit.irse import IrSeConfig
from services.ifadit.latent_mapper import LatentMapperConfig
from services.ifadit.masks import EdgeConfig, EllipseConfig
from services.ifadit.stylegan2 import GeneratorConfig, SeedConfig

TINY = IfaditConfig(
    identity=IdentityEncoderConfig(
        trunk=IrSeConfig(widths=(4, 8, 8), units=(1, 1, 2), se_reduction=2, norm=True),
        crop=None,
        input_size=16,
        embedding=10,
        dropout=0.0,
        mirrored=False,
    ),
    attributes=AttributeEncoderConfig(
        trunk=IrSeConfig(widths=(4, 6, 8), units=(1, 1, 1), se_reduction=2, norm=False),
        input_size=16,
        taps=(0, 1, 2),
        styles=6,
        coarse_end=2,
        middle_end=4,
        style_width=6,
        style_dim=5,
    ),
    mapper=LatentMapperConfig(layers=(15, 12, 12), negative_slope=0.2, identity_gain=8.0, unit_identity=True),
    generator=GeneratorConfig(
        channels=(8, 8, 4),
        style_dim=12,
        n_mlp=2,
        lr_mlp=0.01,
        blur=(1, 3, 3, 1),
        seeds=(SeedConfig(rows=(0, 3), channels=2, size=8),),
    ),
    flow=FlowConfig(dim=10, condition=12, hidden=(12, 8), blocks=4, clamp=2.0, negative_slope=0.01),
    compensation=CompensationConfig(layers=(10, 16, 10), negative_slope=0.2, skip=True),
    key_scheme="v2-gauss",
    edge=EdgeConfig(dilate=1, gaussian=5, sigma=1.0),
    face=EllipseConfig(center=(0.5, 0.575), half_axes=(0.38, 0.45)),
)


def randomize(model: torch.nn.Module, seed: int, spread: float = 0.2) -> None:
    """Other parameters and statistics than those that construction gives, so that no term stays at 0 or 1."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(1 + torch.rand(tensor.shape, generator=rng))
            elif tensor.is_floating_point() and not name.endswith(("w_perm", "w_perm_inv", "kernel")):
                tensor.add_(spread * torch.randn(tensor.shape, generator=rng).to(tensor.dtype))


def tiny_model(seed: int = 0) -> Ifadit:
    """A `TINY` with random weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Ifadit(TINY)
    randomize(model, seed)
    model.T.float().double()  # numbers that a file in float32 holds exactly
    return model.eval().requires_grad_(False)
