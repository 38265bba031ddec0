"""TAD-SR's training of a one-step student, on a frozen teacher and a frozen autoencoder (tad-sr.md 4).

Differences from the paper's, for the small variant: the student is also compared with the sharp picture; the teacher's
target is a walk of few steps; noise is normal and scaled once, where the reference draws it uniformly and scales twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from services.tad_sr.denoiser import UNetModelSwin
from services.tad_sr.discriminator import TimeAwareDiscriminator
from services.tad_sr.losses import (
    adversarial,
    discriminator_times,
    distillation_times,
    hinge,
    noisy_features,
    regression,
    score_distillation,
)
from shared.resshift.imageloss import ImageLoss
from shared.resshift.padding import upsample
from shared.resshift.sampler import predict, sample_deterministic
from shared.resshift.schedule import ResShiftSchedule
from shared.resshift.smallautoencoder import SmallAutoencoder
from shared.resshift.trainingdata import Pairs
from shared.torchdevice import autocast
from shared.training import Learner
from shared.trainingrates import warmed_cosine

BATCH, CROP_PX = 8, 64
RATE = 2e-4
TEACHER_STEPS = 4
# The distillation's gradient grows as the noise shrinks: at a quarter of the paper's noise a tenth of its weight.
WEIGHTS = {"regression": 0.1, "distillation": 0.01, "adversarial": 0.02, "image": 2.0}


class StudentLearner(Learner):
    """The student and the discriminator that it is tried by."""

    def __init__(
        self,
        student: UNetModelSwin,
        discriminator: TimeAwareDiscriminator,
        teacher: UNetModelSwin,
        autoencoder: SmallAutoencoder,
        schedule: ResShiftSchedule,
        pairs: Pairs,
        loss: ImageLoss,
        device: torch.device,
    ) -> None:
        self.student, self.discriminator = student, discriminator
        self.teacher, self.autoencoder = teacher.requires_grad_(False), autoencoder.requires_grad_(False)
        self.schedule, self.pairs, self.loss, self.device = schedule, pairs, loss, device
        self._networks = nn.ModuleDict({"student": student, "discriminator": discriminator})
        self.student_optimizer = torch.optim.AdamW(student.parameters(), RATE, weight_decay=0)
        self.discriminator_optimizer = torch.optim.AdamW(discriminator.parameters(), RATE, weight_decay=0)

    @property
    def networks(self) -> nn.Module:
        return self._networks

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        return {"student": self.student_optimizer, "discriminator": self.discriminator_optimizer}

    def step(self, step: int, done: float, rng: Generator) -> Mapping[str, Tensor]:
        for optimizer in self.optimizers.values():
            warmed_cosine(optimizer, RATE, step, done)
        hr, lq = (x.to(self.device) for x in self.pairs.draw(BATCH, CROP_PX, rng))
        start, d_noise, h_noise = (
            torch.randn(len(lq), self.autoencoder.channels, *lq.shape[2:], generator=rng).to(self.device)
            for _ in range(3)
        )
        d_times, h_times = discriminator_times(BATCH, self.schedule, rng), distillation_times(BATCH, self.schedule, rng)
        with torch.no_grad():
            z, z_y = self.autoencoder.encode(torch.cat([hr, upsample(lq, self.autoencoder.factor)])).chunk(2)
            walk = self.schedule.respaced(TEACHER_STEPS)
            target = sample_deterministic(self.teacher, walk, z_y, lq, iter([start]), lambda step, of: None)
        one = self.schedule.one_step()
        student_x0 = predict(self.student, one, one.start(z_y, start), z_y, lq, torch.zeros(BATCH, dtype=torch.int64))

        real = noisy_features(self.teacher, self.schedule, z, z_y, lq, d_times, d_noise)
        fake = noisy_features(self.teacher, self.schedule, student_x0, z_y, lq, d_times, d_noise)
        judged = hinge(
            self.discriminator(real, d_times), self.discriminator([f.detach() for f in fake], d_times)
        ).mean()
        self.discriminator_optimizer.zero_grad()
        judged.backward()
        self.discriminator_optimizer.step()

        distilled = score_distillation(
            self.teacher, self.schedule, student_x0, target, z_y, lq, h_times, h_noise, double_scale=False
        )
        with autocast(self.device):
            images = self.loss(self.autoencoder.decode(student_x0).float(), hr, rng)
        terms = {
            "regression": regression(student_x0, target).mean(),
            "distillation": distilled.loss.mean(),
            "adversarial": adversarial(self.discriminator(fake, d_times)).mean(),
            "image": images["image"],
        }
        total = sum((WEIGHTS[name] * term for name, term in terms.items()), start=judged.new_zeros(()))
        self.student_optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.student_optimizer.step()
        seen = {name: images[name] for name in ("l1", "perceptual", "weave")} | terms | {"discriminator": judged}
        return {name: value.detach() for name, value in seen.items()}
