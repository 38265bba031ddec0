"""One denoising step of DiT-SR at paper size, against the plain form of the same network: CPU seconds and numbers."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import plain_dit_sr
from services.dit_sr.denoiser import PAPER, UNetModelSwin
from shared.nn.freezing import freeze

SIDE = 64  # of the latent
TIMESTEP = 7
ROUNDS = 7
BAR = 0.65
AGREEMENT = 1e-5


def measure() -> dict[str, Any]:
    """CPU seconds a step by median of interleaved rounds on one thread, their ratio, and the largest difference.

    A step of ours is what a sampler calls in its loop: what depends on picture or time alone was made before it. What
    that took is given beside.
    """
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNetModelSwin(**PAPER).requires_grad_(False)
    _randomize(network)
    plain_network = copy.deepcopy(network).eval()
    freeze(network)
    rng = torch.Generator().manual_seed(1)
    x, lq = (torch.randn(1, 3, SIDE, SIDE, generator=rng) for _ in range(2))
    t = torch.tensor([TIMESTEP])
    with torch.inference_mode():
        condition, filters = network.condition(lq), network.filters(t)

        def ours() -> Tensor:
            step: Tensor = network.predict(x, condition, filters)
            return step

        def plain() -> Tensor:
            return plain_dit_sr.forward(plain_network, x, t, lq)

        expected = plain()
        difference = float((ours() - expected).abs().max())
        times = [(_cpu_s(ours), _cpu_s(plain), _cpu_s(lambda: network.filters(t))) for _ in range(ROUNDS)]
    ours_s, plain_s, filters_s = (statistics.median(of) for of in zip(*times, strict=True))
    ratios = [one / other for one, other, _ in times]
    ratio = statistics.median(ratios)
    return {
        "latent": SIDE,
        "threads": torch.get_num_threads(),
        "ours_cpu_s": round(ours_s, 3),
        "plain_cpu_s": round(plain_s, 3),
        "filters_cpu_s_a_timestep": round(filters_s, 3),
        "ratio": round(ratio, 3),
        "ratios": [round(one, 3) for one in sorted(ratios)],
        "largest_difference": difference,
        "largest_number": float(expected.abs().max()),
        "bars": {
            f"CPU time of a step <= {BAR} of the plain form": ratio <= BAR,
            f"equal within {AGREEMENT}": difference <= AGREEMENT,
        },
    }


def _randomize(network: UNetModelSwin) -> None:
    """Weights of about unit gain, so that no stage goes silent and hides a difference."""
    rng = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / parameter[0].numel() ** 0.5)
        elif ".adaLN_scale_" in name:
            parameter.copy_(1 + 0.25 * torch.randn(parameter.shape, generator=rng))


def _cpu_s(work: Callable[[], Tensor | list[Any]]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
