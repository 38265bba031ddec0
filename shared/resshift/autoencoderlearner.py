"""Training of the small autoencoder, which is also taught to restore: half of what it decodes lies between the two.

A denoiser's prediction is never the true latent: it errs towards the latent of the poor picture. So for half of a batch
the decoder gets z + u (z_y - z), u uniform in 0 .. 1, and still has to draw the sharp picture.
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
RATE = 8e-4
LATENT_NOISE = 0.1
PERCEPTUAL_WEIGHT = 0.1  # makes the term about three times as large as L1


class AutoencoderLearner(Learner):
    """L1 and perceptual loss of decoded latents, those of sharp pictures and those on the way to poor ones."""

    def __init__(self, autoencoder: SmallAutoencoder, pairs: Pairs, loss: ImageLoss, device: torch.device) -> None:
        self.autoencoder, self.pairs, self.loss, self.device = autoencoder, pairs, loss, device
        self.optimizer = torch.optim.Adam(autoencoder.parameters(), RATE, betas=(0.9, 0.99))

    @property
    def networks(self) -> nn.Module:
        return self.autoencoder

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        return {"autoencoder": self.optimizer}

    def step(self, step: int, done: float, rng: Generator) -> Mapping[str, Tensor]:
        warmed_cosine(self.optimizer, RATE, step, done)
        hr, lq = (x.to(self.device) for x in self.pairs.draw(BATCH, CROP_PX, rng))
        half = BATCH // 2
        share = torch.rand(half, 1, 1, 1, generator=rng).to(self.device)
        spread = torch.rand(BATCH, 1, 1, 1, generator=rng) * 2 * LATENT_NOISE
        poor = upsample(lq[:half], self.autoencoder.factor)
        with autocast(self.device):
            z = self.autoencoder.encode(torch.cat([hr, poor])).float()
            z, z_y = z[:BATCH], z[BATCH:]
            z = torch.cat([z[:half].lerp(z_y, share), z[half:]])
            z = z + (spread * torch.randn(z.shape, generator=rng)).to(self.device)
            terms = self.loss(self.autoencoder.decode(z).float(), hr, rng)
        self.optimizer.zero_grad()
        terms["image"].backward()
        self.optimizer.step()
        return {name: terms[name].detach() for name in ("l1", "perceptual", "weave")}
