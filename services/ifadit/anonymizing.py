"""Phase II: all six networks together, on what the service does: anonymize, store in a file, recover, or fail to.

The networks of phase I go on learning: on every identity figure that was measured better than T and ICL alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn

from services.ifadit.anonymizer import Ifadit
from services.ifadit.augmentation import jittered, through_codec
from services.ifadit.discriminator import Discriminator
from services.ifadit.disentangling import ATTRIBUTE_NOISE, Critic, Material, adam, embed_all, falling, update
from services.ifadit.latents import WEIGHTS as LATENT_WEIGHTS
from services.ifadit.latents import draw_keys, latent_terms, weighted
from services.ifadit.masks import compose
from services.ifadit.objectives import above, between, cosine, low_pass_l1, masked_l1, perceptual, unit_norm

BATCH = 8
REAL = 8  # further faces that E_id and D see, so that neither learns from drawn ones and a handful
KEPT = 4  # faces of a batch that are also drawn with their own identity, as in phase I
SLOWER = 0.5  # of phase I's learning rates
LATENT_WEIGHT = 0.5
WEIGHTS = {
    "privacy": 2.0,
    "diversity": 2.0,
    "recovery": 5.0,
    "wrong": 2.0,
    "compensation": 1.0,
    "draw": 3.0,
    "distil": 6.0,
    "image": 1.0,
    "light": 2.0,
    "kept": 1.0,
    "norm": 1.0,
    "realism": 1.0,
}


class AnonymizeLearner:
    """Learner of phase II."""

    def __init__(self, model: Ifadit, discriminator: Discriminator, material: Material) -> None:
        self.model, self.material = model, material
        self.critic = Critic(discriminator)
        self.networks = nn.ModuleDict({"model": model, "discriminator": discriminator})
        model.E_id.eval()  # its batch norms keep their statistics, its weights learn
        self.bank = embed_all(model, material.pictures)
        self.mask = model.mean_face_mask()
        self.optimizers = {
            "drawing": adam(model, ("E_attr", "M", "G"), (0.5, 0.99), SLOWER),
            "moving": adam(model, ("T", "ICL", "E_id"), (0.9, 0.99)),
            "discriminator": self.critic.optimizer,
        }

    def picture_loss(self, drawn: Tensor, x: Tensor) -> Tensor:
        """How far a drawn face is from the face it should be."""
        features = self.material.features
        return 4 * masked_l1(drawn, x, self.mask) + 2 * perceptual(features(drawn), features(x))

    def step(self, step: int, done: float, rng: Generator) -> Mapping[str, Tensor]:
        """Anonymize with two keys, recover the first with its key and with a third."""
        model, teacher = self.model, self.material.teacher
        x, taught = self.material.draw(BATCH, rng)
        real, taught_real = self.material.draw(REAL, rng)
        z = model.embed(x)
        c1, c2, c3 = model.condition(draw_keys(model, 3 * BATCH, rng).to(x)).split(BATCH)
        z1, z2 = model.move(z, c1), model.move(z, c2)
        attributes = model.E_attr(x)
        noise = torch.randn(attributes.shape, generator=rng).to(x) * ATTRIBUTE_NOISE
        drawn = model.draw(
            torch.cat([z1, z2, z[:KEPT]]), torch.cat([attributes + noise, attributes, attributes[:KEPT]])
        )
        y1, y2, kept = compose(drawn, torch.cat([x, x, x[:KEPT]]), self.mask).split([BATCH, BATCH, KEPT])

        stored = through_codec(y1, rng)
        e = model.embed(stored)
        u = model.compensate(e)
        z_right, z_wrong = model.move_back(u, c1), model.move_back(u, c3)
        a = model.E_attr(stored)
        right, wrong = compose(
            model.draw(torch.cat([z_right, z_wrong]), torch.cat([a, a])), torch.cat([stored, stored]), self.mask
        ).split(BATCH)

        seen = teacher(jittered(torch.cat([y1, y2, right, wrong, kept]), rng))
        t1, t2, t_right, t_wrong, t_kept = seen.split([BATCH] * 4 + [KEPT])
        terms = {
            "privacy": above(cosine(t1, taught), 0.0) + above(cosine(t2, taught), 0.0) + above(cosine(e, z), 0.0),
            "diversity": above(cosine(t1, t2), 0.05) + between(torch.cat([t1, t2]), 0.1),
            "recovery": 1 - cosine(t_right, taught).mean() + 0.5 * (1 - cosine(z_right, z).mean()),
            "wrong": above(cosine(t_wrong, taught), 0.0)
            + above(cosine(t_wrong, t_right), 0.05)
            + 0.5 * above(cosine(t_wrong, t1), 0.2),
            "compensation": (u - z1.detach()).square().sum(1).mean(),
            "draw": (2 - cosine(t1, z1).mean() - cosine(t2, z2).mean()) / 2
            + 0.5 * (1 - cosine(e, z1).mean())
            + 0.5 * (1 - cosine(t_wrong, z_wrong).mean()),
            "distil": 1
            - cosine(torch.cat([z, model.embed(jittered(real, rng))]), torch.cat([taught, taught_real])).mean()
            + 0.5 * (1 - cosine(e, t1.detach()).mean()),
            "image": self.picture_loss(right, x),
            "light": low_pass_l1(y1, x) + low_pass_l1(y2, x) + low_pass_l1(wrong, x),
            "kept": self.picture_loss(kept, x[:KEPT]) + 3 * (1 - cosine(t_kept, taught[:KEPT]).mean()),
            "norm": unit_norm(z1) + unit_norm(z_wrong) + unit_norm(z_right),
            "realism": self.critic.realism(torch.cat([y1, y2, wrong]), rng),
        }
        latent = latent_terms(model, self.bank, rng)
        rate = falling(done)
        loss = weighted(terms, WEIGHTS) + LATENT_WEIGHT * weighted(latent, LATENT_WEIGHTS)
        self.optimizers["moving"].zero_grad()
        update(self.optimizers["drawing"], loss, rate)
        self._moved(rate)
        half = BATCH // 2
        terms["critic"] = self.critic.learn(torch.cat([x, real]), [y1[:half], y2[half:], wrong], step, rate, rng)
        faces = {
            "anonymity": (t1, taught),
            "two keys": (t1, t2),
            "right": (t_right, taught),
            "other": (t_wrong, taught),
        }
        terms |= {f"cos {name}": cosine(*pair).mean() for name, pair in faces.items()}
        return {name: term.detach() for name, term in (terms | {f"latent {n}": t for n, t in latent.items()}).items()}

    def _moved(self, rate: float) -> None:
        """The step of T, ICL and E_id, whose gradients came with the others'."""
        optimizer = self.optimizers["moving"]
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 5.0)
            group["lr"] = group["initial_lr"] * rate
        optimizer.step()
