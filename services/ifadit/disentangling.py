"""Phase I: E_attr, M and G learn to draw any identity on the attributes of any face; D judges. E_id stays as it is.

T, which needs no pictures for its start, learns beside them on identities alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from services.ifadit.anonymizer import Ifadit
from services.ifadit.augmentation import jittered, mirrored, through_codec
from services.ifadit.discriminator import Discriminator, augmented, discriminator_loss, gradient_penalty
from services.ifadit.latents import WEIGHTS as LATENT_WEIGHTS
from services.ifadit.latents import latent_terms, weighted
from services.ifadit.masks import compose
from services.ifadit.objectives import above, cosine, low_pass_l1, masked_l1, perceptual
from services.ifadit.teachers import IdentityTeacher
from shared.nn.mobilenetv2 import MobileNetV2Features
from shared.torchdevice import autocast

BATCH = 12  # half of them keep their identity, half take another face's
MIXED_SHARE = 0.35  # of the other identities: mixtures of two, which G has to draw as well as real ones
CYCLES = 4  # faces a second step that are read again from a picture with another identity
ATTRIBUTE_NOISE = 0.05
LATENT_STEPS = 2  # T learns in every second step
RECONSTRUCTION_ONLY = 0.08  # share of the budget before identity counts, and where the adversary starts
RAMP = 0.12
WEIGHTS = {"pixels": 4.0, "features": 2.0, "light": 2.0, "identity": 4.0, "own": 1.0, "away": 1.0, "cycle": 1.0}
ADVERSARIAL, R1_GAMMA, R1_STEPS = 0.4, 2.0, 16
RATES = {"E_attr": 1e-3, "M": 1e-3, "G": 2.5e-3, "T": 1e-3, "ICL": 1e-3, "E_id": 2e-4, "discriminator": 4e-4}
STEADY = 0.6  # share of the budget before the learning rates fall


@dataclass(frozen=True, eq=False)
class Material:
    """What both phases learn from."""

    pictures: Tensor  # (N, 3, S, S) uint8, aligned faces
    taught: Tensor  # (N, D) the identity teacher's embeddings of them
    teacher: IdentityTeacher
    features: MobileNetV2Features

    def draw(self, count: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """Pictures (count, 3, S, S), 0..1, half mirrored, and the teacher's embeddings of them."""
        index = torch.randint(len(self.pictures), (count,), generator=rng)
        return mirrored(self.pictures[index].float() / 255, rng), self.taught[index]


def falling(done: float) -> float:
    """Learning rate as a share of its start: steady, then half a cosine to a fiftieth."""
    if done < STEADY:
        return 1.0
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - STEADY) / (1 - STEADY)))


def update(optimizer: torch.optim.Optimizer, loss: Tensor, rate_share: float) -> None:
    """One step of an optimizer at a share of its groups' own learning rates; gradients are clipped to 5 in all."""
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], 5.0)
        group["lr"] = group["initial_lr"] * rate_share
    optimizer.step()


def adam(model: nn.Module, parts: tuple[str, ...], betas: tuple[float, float], slower: float = 1.0) -> torch.optim.Adam:
    """Adam over parts of a model, each at its own rate."""
    groups = [
        {"params": [p for p in getattr(model, part).parameters() if p.requires_grad], "lr": RATES[part] * slower}
        for part in parts
    ]
    optimizer = torch.optim.Adam(groups, betas=betas)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


@torch.no_grad()
def embed_all(model: Ifadit, pictures: Tensor) -> Tensor:
    """E_id of uint8 pictures (N, 3, S, S)."""
    return torch.cat([model.embed(chunk.float() / 255) for chunk in pictures.split(128)])


class Critic:
    """D with its optimizer: both phases train it alike."""

    def __init__(self, discriminator: Discriminator) -> None:
        self.network = discriminator
        self.optimizer = torch.optim.Adam(discriminator.parameters(), RATES["discriminator"], betas=(0.0, 0.99))
        self.optimizer.param_groups[0]["initial_lr"] = RATES["discriminator"]

    def logits(self, x: Tensor) -> Tensor:
        """D in half precision."""
        with autocast(x.device):
            scores: Tensor = self.network(x)
        return scores.float()

    def realism(self, drawn: Tensor, rng: Generator) -> Tensor:
        """What the generator minimises; D itself does not learn from it."""
        self.network.requires_grad_(False)
        loss = F.softplus(-self.logits(augmented(drawn, rng))).mean()
        self.network.requires_grad_(True)
        return loss

    def learn(self, real: Tensor, fakes: list[Tensor], step: int, rate_share: float, rng: Generator) -> Tensor:
        """One step on real pictures and on each kind of drawn ones."""
        logits = self.logits(augmented(torch.cat([real, *(fake.detach() for fake in fakes)]), rng))
        scores = logits.split([len(real), *(len(fake) for fake in fakes)])
        loss = discriminator_loss(scores[0], scores[1:])
        if step % R1_STEPS == 0:
            loss = loss + 0.5 * R1_GAMMA * R1_STEPS * gradient_penalty(self.network, real[:8])
        update(self.optimizer, loss, rate_share)
        return loss.detach()


class DisentangleLearner:
    """Learner of phase I."""

    def __init__(self, model: Ifadit, discriminator: Discriminator, material: Material) -> None:
        self.model, self.material = model, material
        self.critic = Critic(discriminator)
        self.networks = nn.ModuleDict({"model": model, "discriminator": discriminator})
        model.E_id.eval().requires_grad_(False)
        self.bank = embed_all(model, material.pictures)
        self.mask = model.mean_face_mask()
        self.optimizers = {
            "drawing": adam(model, ("E_attr", "M", "G"), (0.5, 0.99)),
            "moving": adam(model, ("T",), (0.9, 0.99)),
            "discriminator": self.critic.optimizer,
        }

    def step(self, step: int, done: float, rng: Generator) -> Mapping[str, Tensor]:
        """One batch of half kept, half exchanged identities."""
        model, material, half = self.model, self.material, BATCH // 2
        x, taught_x = material.draw(BATCH, rng)
        donors, taught_donors = material.draw(half, rng)
        z_all = model.embed(torch.cat([x, donors]))
        # G is to obey the teacher's own identities as well as E_id's likeness of them: T gives it anything between.
        share = torch.rand(len(z_all), 1, generator=rng).to(x)
        z_all = F.normalize(z_all + share * (torch.cat([taught_x, taught_donors]) - z_all), dim=1)
        z_x, z_donor = z_all[:BATCH], z_all[BATCH:]
        mixed = (torch.rand(half, 1, generator=rng) < MIXED_SHARE).to(x)
        z_donor = F.normalize(z_donor + mixed * z_donor.roll(1, 0), dim=1)
        taught_donors = F.normalize(taught_donors + mixed * taught_donors.roll(1, 0), dim=1)
        z = torch.cat([z_x[:half], z_donor])
        target = torch.cat([taught_x[:half], taught_donors])

        attributes = model.E_attr(x)
        noise = torch.randn(attributes.shape, generator=rng).to(x) * ATTRIBUTE_NOISE
        y = compose(model.draw(z, attributes + noise), x, self.mask)
        # Jittered: what a teacher sees in every view is in the face; what it sees in one is a pattern made for it.
        seen = material.teacher(jittered(y, rng))
        maps_y, maps_x = (material.features(p[:half]) for p in (y, x))
        terms = {
            "pixels": masked_l1(y[:half], x[:half], self.mask),
            "features": perceptual(maps_y, maps_x),
            "light": low_pass_l1(y[half:], x[half:]),
            "identity": 1 - cosine(seen, target).mean(),
            "own": 1 - cosine(model.embed(y), z).mean(),
            "away": above(cosine(seen[half:], taught_x[half:]), 0.1),
        }
        if step % 2:
            crossed, home = through_codec(y[half : half + CYCLES], rng), x[half : half + CYCLES]
            again = compose(model.draw(z_x[half : half + CYCLES], model.E_attr(crossed)), crossed, self.mask)
            terms["cycle"] = WEIGHTS["pixels"] * masked_l1(again, home, self.mask) + WEIGHTS["features"] * perceptual(
                material.features(again), material.features(home)
            )
        ramp = min(1.0, max(0.0, (done - RECONSTRUCTION_ONLY) / RAMP))
        weights = WEIGHTS | {name: WEIGHTS[name] * ramp for name in ("identity", "own", "away")}
        loss, rate = weighted(terms, weights), falling(done)
        if ramp > 0:
            terms["realism"] = self.critic.realism(y, rng)
            loss = loss + ADVERSARIAL * ramp * terms["realism"]
        update(self.optimizers["drawing"], loss, rate)
        if ramp > 0:
            terms["critic"] = self.critic.learn(x, [y], step, rate, rng)
        latent: dict[str, Tensor] = {}
        if step % LATENT_STEPS == 0:
            latent = latent_terms(model, self.bank, rng)
            update(self.optimizers["moving"], weighted(latent, LATENT_WEIGHTS), rate)
        terms["crossed"] = cosine(seen[half:], target[half:]).mean()
        return {name: term.detach() for name, term in (terms | {f"latent {n}": t for n, t in latent.items()}).items()}
