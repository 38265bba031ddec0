"""A DiT-SR denoiser with every part of the real ones, small enough for a property test."""

from __future__ import annotations

from typing import Any

import torch

from services.dit_sr.denoiser import UNetModelSwin
from services.dit_sr.pipeline import DitSrPipeline
from shared.resshift.autoencoder import VqAutoencoder
from shared.resshift.scheduler import ResShiftScheduler
from tests.shared.resshift.tiny import F4

TINY: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "attention_resolutions": [16, 8],
    "swin_depth": 2,
    "swin_embed_dim": 32,
    "num_head_channels": 16,
    "window_size": 8,
    "mlp_ratio": 2,
    "dropout": 0.1,
    "lq_size": 16,
}


def denoiser(seed: int = 0, **changed: Any) -> UNetModelSwin:
    """With random weights of a seed, in eval mode."""
    made: UNetModelSwin = UNetModelSwin(**TINY | changed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / fan_in**0.5)
    made.eval().requires_grad_(False)
    return made


def pipeline(*, faces: bool = False) -> DitSrPipeline:
    """A whole model of random weights: one that enlarges, or one for faces, which was trained for four steps."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        autoencoder = VqAutoencoder(**F4)
    scheduler = ResShiftScheduler(steps=4, min_noise=0.2) if faces else ResShiftScheduler()
    own = denoiser(lq_size=64) if faces else denoiser()
    options = {"scale": 1, "multiple": 64, "tile": 64, "overlap": 16} if faces else {"multiple": 16, "tile": 32}
    made = DitSrPipeline(own, autoencoder, scheduler, **{"overlap": 8, "steps": 2} | options)
    for network in made.networks:
        network.eval().requires_grad_(False)
    return made
