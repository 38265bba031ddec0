"""Training of the small autoencoder's decoder alone, as a restorer: the cheapest place to learn in.

A step costs a third of one that trains a denoiser along. Half of a batch is decoded from the latent of the poor picture
itself, a quarter from the way to the sharp one's, a quarter from that. The encoder, and so the latent, stays.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from shared.resshift.imageloss import ImageLoss
from shared.resshift.padding import upsample
from shared.resshift.smallautoencoder import SmallAutoencoder
from shared.resshift.trainingdata import Pairs
from shared.torchdevice import autocast
from shared.training import Learner
from shared.trainingrates import warmed_cosine

BATCH, CROP_PX = 16, 64
POOR, BETWEEN = 8, 4  # of a batch; the rest is sharp
RATE = 1e-3
LATENT_NOISE = 0.05
PERCEPTUAL_WEIGHT = 0.1  # makes the term two to three times as large as L1


class DecoderLearner(Learner):
    """The decoder of a trained autoencoder."""

    def __init__(self, autoencoder: SmallAutoencoder, pairs: Pairs, loss: ImageLoss, device: torch.device) -> None:
        self.autoencoder, self.pairs, self.loss, self.device = autoencoder, pairs, loss, device
        autoencoder.encoder.requires_grad_(False)
        self.optimizer = torch.optim.Adam(autoencoder.decoder.parameters(), RATE, betas=(0.9, 0.99))

    @property
    def networks(self) -> nn.Module:
        return self.autoencoder

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        return {"decoder": self.optimizer}

    def step(self, step: int, done: float, rng: Generator) -> Mapping[str, Tensor]:
        warmed_cosine(self.optimizer, RATE, step, done)
        hr, lq = (x.to(self.device) for x in self.pairs.draw(BATCH, CROP_PX, rng))
        share = torch.ones(BATCH, 1, 1, 1)  # of the way from the sharp latent to the poor one
        share[POOR:] = 0
        share[POOR : POOR + BETWEEN] = torch.rand(BETWEEN, 1, 1, 1, generator=rng)
        noise = LATENT_NOISE * torch.rand(BATCH, 1, 1, 1, generator=rng)
        with autocast(self.device):
            with torch.no_grad():
                z, z_y = self.autoencoder.encode(torch.cat([hr, upsample(lq, self.autoencoder.factor)])).chunk(2)
                mixed = z.lerp(z_y, share.to(z))
                mixed = mixed + (noise * torch.randn(z.shape, generator=rng)).to(z)
            terms = self.loss(self.autoencoder.decode(mixed).float(), hr, rng)
        self.optimizer.zero_grad()
        terms["image"].backward()
        self.optimizer.step()
        return {name: terms[name].detach() for name in ("l1", "perceptual", "weave")}
