"""A whole pipeline of a few thousand weights: a real autoencoder and schedule around the smallest denoiser there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from shared.resshift.autoencoder import VqAutoencoder
from shared.resshift.pipeline import ResShiftPipeline
from shared.resshift.scheduler import ResShiftScheduler

F4 = {
    "embed_dim": 3,
    "n_embed": 16,
    "z_channels": 3,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 1],
    "num_res_blocks": [1, 1, 1],
    "attn_resolutions": [],
}


class OneConvolution(ModelMixin, ConfigMixin):  # type: ignore[misc]  # classes without types
    """Mixes latent, condition and time in a convolution of one tap: a tile knows nothing of its neighbours."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, channels: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conv = nn.Conv2d(channels + 4, channels, 1)

    def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        lq = nn.functional.interpolate(lq, x.shape[-2:], mode="area")
        time = (t.float() / 15).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[-2:])
        mixed: Tensor = self.conv(torch.cat([x, lq, time], 1))
        return mixed


class TinyPipeline(ResShiftPipeline):
    DENOISERS: ClassVar[Mapping[str, str]] = {"OneConvolution": __name__}


def tiny(seed: int = 0, autoencoder: Mapping[str, Any] = F4, **options: Any) -> TinyPipeline:
    """A pipeline with random weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = OneConvolution(channels=autoencoder["embed_dim"]), VqAutoencoder(**autoencoder)
    pipeline = TinyPipeline(*parts, ResShiftScheduler(), **{"multiple": 8, "tile": 32, "overlap": 8} | options)
    for network in pipeline.networks:
        network.eval().requires_grad_(False)
    return pipeline
