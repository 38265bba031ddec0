"""The VQ autoencoder at 256 x 256 pixels against its plain form, with the published sizes and weights by formula."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import plainautoencoder
from shared.goldenweights import recipe_weights
from shared.nn.freezing import freeze
from shared.resshift.autoencoder import PAPER_F4, VqAutoencoder

SIDE_PX = 256
ROUNDS = 3
MIN_SPEED_UP = 1.3
MAX_DIFFERENCE = 1e-4


def measure() -> dict[str, Any]:
    """CPU seconds of both halves on one thread, the least of interleaved rounds, and how the results differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return _measure()
    finally:
        torch.set_num_threads(threads)


def _measure() -> dict[str, Any]:
    ours, plain = _network(), _network()
    freeze(ours)
    pixels = torch.rand(1, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = plainautoencoder.encode(plain, pixels)
    work: dict[str, Callable[[], Tensor]] = {
        "encode": lambda: ours.encode(pixels),
        "plain_encode": lambda: plainautoencoder.encode(plain, pixels),
        "decode": lambda: ours.decode(z),
        "plain_decode": lambda: plainautoencoder.decode(plain, z),
    }
    seconds = dict.fromkeys(work, float("inf"))
    results: dict[str, Tensor] = {}
    for _ in range(ROUNDS):
        for name, compute in work.items():
            began = time.process_time()
            results[name] = compute()
            seconds[name] = min(seconds[name], time.process_time() - began)
    difference = max(float((results[f"plain_{name}"] - results[name]).abs().max()) for name in ("encode", "decode"))
    speed_up = (seconds["plain_encode"] + seconds["plain_decode"]) / (seconds["encode"] + seconds["decode"])
    return {
        "side_px": SIDE_PX,
        "cpu_s": {name: round(value, 2) for name, value in seconds.items()},
        "speed_up": round(speed_up, 2),
        "largest_difference": difference,
        "bars": {
            f"at least {MIN_SPEED_UP} times as fast as the plain form": speed_up >= MIN_SPEED_UP,
            f"equal within {MAX_DIFFERENCE:g}": difference <= MAX_DIFFERENCE,
        },
    }


def _network() -> VqAutoencoder:
    with torch.device("meta"):
        network: VqAutoencoder = VqAutoencoder(**PAPER_F4)
    weights = recipe_weights({"recipe": "unit-fan-in", "seed": 22}, network.state_dict(), Path())
    network.load_state_dict(weights, assign=True)
    network.eval()
    return network
