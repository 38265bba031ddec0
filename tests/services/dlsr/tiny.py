"""Feature vectors with a structure that a small network learns in a second, and a preset of that size."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache

import torch

from services.dlsr.encoder import Encoder, EncoderConfig, load_encoder
from services.dlsr.encoding import Features
from services.dlsr.layers import normalised
from services.dlsr.learning import SMALL

PRESET = replace(
    SMALL,
    model_channels=48,
    bottleneck_channels=32,
    time_embed_dim=16,
    num_res_blocks=2,
    batch=64,
    epochs=30,
    most_steps=60,
    first_epochs=4,
    stretch=20,
    draws=2,
)
FACTORS = 8


@cache
def encoder() -> Encoder:
    """The package's, for small pictures."""
    return load_encoder(EncoderConfig("efficientnet-lite0", input_px=32, first_px=None), None, "cpu")


def structured(count: int, seed: int, world: int = 0) -> Features:
    """Vectors that few factors explain; those of another world are made by another map."""
    rng = torch.Generator().manual_seed(1_000 + world)
    map_, middle = (torch.randn(rows, encoder().dimension, generator=rng) for rows in (FACTORS, 1))
    rng = torch.Generator().manual_seed(seed)
    raw = middle + torch.randn(count, FACTORS, generator=rng) @ map_ / 2
    raw += 0.3 * torch.randn(raw.shape, generator=rng)
    vectors = normalised(raw, encoder().boundaries)
    keys = tuple(hashlib.sha256(f"{world}:{seed}:{place}".encode()).hexdigest() for place in range(count))
    return Features(vectors, keys)
