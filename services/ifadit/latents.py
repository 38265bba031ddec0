"""What T has to do is mostly a matter of identities alone: these terms need no picture and cost next to nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from services.ifadit.anonymizer import Ifadit
from services.ifadit.objectives import above, between, cosine, mean_discrepancy, unit_norm

BATCH = 64
CHANNEL_NOISE = 0.5  # length of what a picture in between adds to a unit identity, as measured in trials
LOG_SCALE_START, SHIFT_START = 2.0, 0.8  # of the subnets' outputs: factors of e^+-0.4, shifts of a coordinate's size
WEIGHTS = {"privacy": 3.0, "diversity": 3.0, "inter": 1.0, "recovery": 2.0, "wrong": 3.0, "likeness": 20.0, "norm": 2.0}


@torch.no_grad()
def listen_to_keys(model: Ifadit, rng: Generator) -> None:
    """Start T's subnets so that the key moves identities from the first step.

    With torch's own start the condition moves an identity by 2 % of its length, and T stays in the minimum where it
    ignores the key, which recovers best: the cosine of two keys' results was still 1.00 after 900 steps.
    """
    for block in model.T.module_list:
        layers = [layer for layer in block.modules() if isinstance(layer, nn.Linear)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, a=model.config.flow.negative_slope, generator=rng)
            nn.init.zeros_(layer.bias)
        log_scales = len(layers[-1].weight) // 2
        layers[-1].weight[:log_scales] *= LOG_SCALE_START
        layers[-1].weight[log_scales:] *= SHIFT_START


def draw_keys(model: Ifadit, count: int, rng: Generator) -> Tensor:
    """Key vectors (count, key_dim) of scheme v2-gauss."""
    return torch.randn(count, model.config.key_dim, generator=rng)


def latent_terms(model: Ifadit, bank: Tensor, rng: Generator) -> dict[str, Tensor]:
    """Terms on identities drawn from `bank` (N, D), the encoder's embeddings of real faces.

    `likeness` pulls what T makes, forwards with any key and backwards with a wrong one, to the distribution of real
    identities: others are drawn badly by G, and a T without it knows two or three faces only.
    """
    z, real, other = (bank[torch.randint(len(bank), (count,), generator=rng)] for count in (BATCH, 2 * BATCH, BATCH))
    c1, c2 = (model.condition(draw_keys(model, BATCH, rng).to(z)) for _ in range(2))
    moved1, moved2 = model.move(z, c1), model.move(z, c2)
    noise = torch.randn(z.shape, generator=rng).to(z) * (CHANNEL_NOISE / z.shape[1] ** 0.5)
    back, wrong = model.move_back(moved1 + noise, c1), model.move_back(moved1 + noise, c2)
    moved = torch.cat([moved1, moved2])
    return {
        "privacy": above(cosine(moved1, z), 0.0),
        "diversity": above(cosine(moved1, moved2), 0.0),
        "inter": between(moved, 0.1),
        "recovery": 1 - cosine(back, z).mean(),
        "wrong": above(cosine(wrong, z), 0.0) + 0.5 * above(cosine(wrong, moved1), 0.1),
        "likeness": mean_discrepancy(F.normalize(moved, dim=1), real)
        + mean_discrepancy(F.normalize(wrong, dim=1), other),
        "norm": unit_norm(moved) + unit_norm(wrong),
    }


def weighted(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The sum of the terms, each times its weight."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()
