"""TAD-SR of a few ten thousand weights: every part in the shape of the real ones."""

from __future__ import annotations

from typing import Any

import torch

from services.tad_sr.denoiser import UNetModelSwin
from services.tad_sr.pipeline import TadSrPipeline
from shared.resshift.autoencoder import VqAutoencoder
from shared.resshift.scheduler import ResShiftScheduler
from tests.shared.resshift.tiny import F4

TINY: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "attention_resolutions": [16, 8],
    "swin_depth": 2,
    "swin_embed_dim": 32,
    "num_head_channels": 32,
    "window_size": 8,
    "mlp_ratio": 2,
    "dropout": 0.0,
    "lq_size": 16,
}


def tiny_denoiser(seed: int = 0, **changes: Any) -> UNetModelSwin:
    """Random weights, none of them zero, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: UNetModelSwin = UNetModelSwin(**TINY | changes)
    rng = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=rng)
    network.eval()
    return network


def tiny_pipeline(seed: int = 0, **options: Any) -> TadSrPipeline:
    """A whole model of random weights: tiles of 32 px that overlap by 8."""
    return _pipeline(tiny_denoiser(seed), seed, {"multiple": 16, "tile": 32, "overlap": 8} | options)


def tiny_faces(seed: int = 1) -> TadSrPipeline:
    """The same for pictures that keep their size; its denoiser brings the picture down to the latent."""
    options = {"scale": 1, "multiple": 64, "tile": 64, "overlap": 16}
    return _pipeline(tiny_denoiser(seed, lq_size=64), seed, options)


def _pipeline(denoiser: UNetModelSwin, seed: int, options: dict[str, Any]) -> TadSrPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        autoencoder: VqAutoencoder = VqAutoencoder(**F4)
    for network in (denoiser, autoencoder):
        network.eval().requires_grad_(False)
    return TadSrPipeline(denoiser, autoencoder, ResShiftScheduler(), **options)
