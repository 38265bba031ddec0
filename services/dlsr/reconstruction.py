"""Add a little noise to a feature vector and take it away again (dlsr.md 3.2).

What comes out still holds the noise of the first timestep: the reference stops there, and its scores are made for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.dlsr.lfdn import LFDN
from services.dlsr.schedule import Schedule, Step

Denoise = Callable[[Tensor, Step], Tensor]


@dataclass(frozen=True)
class State:
    """One step of the walk: before, the prediction of z_0 that follows from the noise, and after; (B, D) each."""

    x: Tensor
    pred_z_0: Tensor
    x_prev: Tensor


def start(schedule: Schedule, index: int, z: Tensor, noise: Tensor) -> Tensor:
    """The vectors (B, D) with the noise of timestep `index`."""
    return schedule.add_noise(z, torch.full((len(z),), index, device=z.device), noise)


def walk(denoise: Denoise, steps: Sequence[Step], x: Tensor, noises: Iterable[Tensor]) -> Iterator[State]:
    """Step by step from x (B, D); `noises` gives (B, D) normals, one a step."""
    for step, noise in zip(steps, noises, strict=True):
        pred = denoise(x, step)
        eps = (x / step.alpha_bar_t**0.5 - pred) / (1 / step.alpha_bar_t - 1) ** 0.5
        pred_z_0 = (x - (1 - step.alpha_bar) ** 0.5 * eps) / step.alpha_bar**0.5
        x_prev = step.alpha_bar_prev**0.5 * pred_z_0 + (1 - step.alpha_bar_prev - step.sigma**2) ** 0.5 * eps
        x_prev = x_prev + step.sigma * noise
        yield State(x, pred_z_0, x_prev)
        x = x_prev


class Reconstructor:
    """A network with everything that does not depend on the vectors worked out: the shifts of its few timesteps.

    Steps that change nothing are not taken: of the reference's three, two.
    """

    def __init__(self, network: LFDN, schedule: Schedule, steps: Sequence[Step], index: int) -> None:
        self.network, self.schedule, self.index = network, schedule, index
        self.steps = [step for step in steps if not step.is_identity]
        device = next(network.parameters()).device
        with torch.inference_mode():
            self._shifts = {step.t: network.shifts(torch.tensor([step.t], device=device)) for step in self.steps}

    @property
    def noise_count(self) -> int:
        """Normals (D,) that a reconstruction takes: one to begin with and one a step."""
        return 1 + len(self.steps)

    def __call__(self, z: Tensor, noises: Tensor) -> Tensor:
        """Vectors z (B, D) and their normals (B, noise_count, D); returns the reconstructions (B, D)."""
        x = start(self.schedule, self.index, z, noises[:, 0])
        for state in walk(self._denoise, self.steps, x, noises.unbind(1)[1:]):
            x = state.x_prev
        return x

    def _denoise(self, x: Tensor, step: Step) -> Tensor:
        return self.network.denoise(x, self._shifts[step.t])


def keyed_noise(seed: int, keys: Sequence[str], draws: int, count: int, width: int) -> Tensor:
    """Normals (B, draws, count, width), drawn on the CPU.

    They depend on the seed and on each item's own key and nothing else: an item gets the same ones in any batch, and
    its first draws are the same however many are asked for.
    """
    noise = torch.empty(len(keys), draws, count, width)
    rng = torch.Generator()
    for row, key in zip(noise, keys, strict=True):
        digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
        rng.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        for draw in row:  # one by one: the generator ends a tensor of an odd size in a way of its own
            torch.randn(draw.shape, generator=rng, out=draw)
    return noise
