"""Training of a small denoiser, with pictures as the judge, and on what it will meet when it samples.

Differences from the paper's training (mean squared error of x_0 in the latent, x_t made from the true x_0):
1. After a first part on latents alone, the decoded prediction is compared with the sharp picture, and the decoder
   learns along; the encoder, and so the latent, stays. A weak latent error keeps predictions decodable.
2. A small network's prediction is blurrier than x_0. Sampling then shows it an x_t that no training has shown. So half
   of a batch starts where sampling starts, and most of the rest has an x_t made from the network's own first guess.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from shared.resshift.imageloss import ImageLoss
from shared.resshift.padding import upsample
from shared.resshift.schedule import ResShiftSchedule
from shared.resshift.smallautoencoder import SmallAutoencoder
from shared.resshift.trainingdata import Pairs
from shared.torchdevice import autocast
from shared.training import Learner
from shared.trainingrates import warmed_cosine

BATCH, CROP_PX = 8, 64
STARTS = 4  # of a batch: where sampling starts, with as many steps as any of WALKS
WALKS = (15, 8, 4, 2, 1)
GUESSED = 3  # of a batch: at any other time, x_t from the network's own guess; the rest from the true latent
RATE = 8e-4
DECODER_RATE = 8e-4
LATENTS_ALONE = 0.2  # share of the budget before pictures are compared, where nothing was learned before
LATENT_WEIGHT = 0.05


class DenoiserLearner(Learner):
    """A denoiser and the decoder of its latents."""

    def __init__(
        self,
        denoiser: nn.Module,
        autoencoder: SmallAutoencoder,
        schedule: ResShiftSchedule,
        pairs: Pairs,
        loss: ImageLoss,
        device: torch.device,
        latents_alone: float = LATENTS_ALONE,
    ) -> None:
        self.denoiser, self.autoencoder = denoiser, autoencoder
        self.schedule, self.pairs, self.loss, self.device = schedule, pairs, loss, device
        self.latents_alone = latents_alone
        self.starts = torch.tensor([int(schedule.respaced(steps).timestep_map[-1]) for steps in WALKS])
        autoencoder.encoder.requires_grad_(False)
        self._networks = nn.ModuleDict({"denoiser": denoiser, "autoencoder": autoencoder})
        self.denoiser_optimizer = torch.optim.AdamW(denoiser.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0)
        self.decoder_optimizer = torch.optim.Adam(autoencoder.decoder.parameters(), DECODER_RATE, betas=(0.9, 0.99))

    @property
    def networks(self) -> nn.Module:
        return self._networks

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        return {"denoiser": self.denoiser_optimizer, "decoder": self.decoder_optimizer}

    def predict(self, x_t: Tensor, t: Tensor, z_y: Tensor, lq: Tensor) -> Tensor:
        """The clean latent, float32."""
        with autocast(self.device):
            output = self.denoiser(self.schedule.scale_input(x_t, t), t, lq)
        return self.schedule.pred_x0(output.float(), z_y)

    def noised(self, z: Tensor, z_y: Tensor, lq: Tensor, rng: Generator, own: bool) -> tuple[Tensor, Tensor]:
        """x_t and t of a batch: starts, guesses (where `own`), and true latents."""
        t = torch.randint(len(self.schedule), (len(z),), generator=rng)
        t[:STARTS] = self.starts[torch.randint(len(self.starts), (STARTS,), generator=rng)]
        noise = torch.randn(z.shape, generator=rng).to(z)
        first = self.starts[torch.randint(len(self.starts), (GUESSED,), generator=rng)]
        first_noise = torch.randn((GUESSED, *z.shape[1:]), generator=rng).to(z)
        x0 = torch.cat([z_y[:STARTS], z[STARTS:]])  # with z_y for x_0, x_t is where sampling starts
        if own:
            guessed = slice(STARTS, STARTS + GUESSED)
            with torch.no_grad():
                start = self.schedule.add_noise(z_y[guessed], z_y[guessed], first, first_noise)
                x0[guessed] = self.predict(start, first, z_y[guessed], lq[guessed])
        return self.schedule.add_noise(x0, z_y, t, noise), t

    def step(self, step: int, done: float, rng: Generator) -> Mapping[str, Tensor]:
        warmed_cosine(self.denoiser_optimizer, RATE, step, done)
        warmed_cosine(self.decoder_optimizer, DECODER_RATE, step, done)
        hr, lq = (x.to(self.device) for x in self.pairs.draw(BATCH, CROP_PX, rng))
        with torch.no_grad(), autocast(self.device):
            z, z_y = self.autoencoder.encode(torch.cat([hr, upsample(lq, self.autoencoder.factor)])).float().chunk(2)
        on_pictures = done >= self.latents_alone
        x_t, t = self.noised(z, z_y, lq, rng, own=on_pictures)
        pred_x0 = self.predict(x_t, t, z_y, lq)
        latent = (pred_x0 - z).square().mean()
        total, seen = latent, {"latent": latent.detach()}
        if on_pictures:
            with autocast(self.device):
                terms = self.loss(self.autoencoder.decode(pred_x0).float(), hr, rng)
            total = terms["image"] + LATENT_WEIGHT * latent
            seen |= {name: terms[name].detach() for name in ("l1", "perceptual", "weave")}
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        self.denoiser_optimizer.step()
        if on_pictures:
            self.decoder_optimizer.step()
        return seen
