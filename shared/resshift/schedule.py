"""Residual shifting (Yue et al., ResShift): from the low-quality latent y to the clean latent x_0 in T steps.

x_t = x_0 + eta_t (y - x_0) + kappa sqrt(eta_t) eps,   t = 0 (least noise) .. T-1 (where sampling starts)

Everything here is a function of tables in float64. Tensors keep their dtype and device; `t` (B,) int64 indexes the
chain that is walked, which after `respaced` is not the index that the network was trained with: `trained_index`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Table = NDArray[np.float64]
Prediction = Literal["x0", "residual"]
"""What the network answers with: x_0 itself, or y - x_0."""
StartRule = Literal["resshift", "capped"]
"""How the chain's first sqrt(eta) follows from the least noise: current ResShift, or older code with a cap."""

CAP = 0.001**0.5  # of the first sqrt(eta), under the rule "capped"


def at(table: Table, t: Tensor, like: Tensor) -> Tensor:
    """The values of a table at t, shaped (B, 1, 1, 1), in the dtype and device of `like`."""
    values = torch.from_numpy(table)[t.cpu()].to(like.device, like.dtype)
    return values.reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True, eq=False)
class ResShiftSchedule:
    """The chain's numbers, in float64. Frozen: concurrent requests share one."""

    eta: Table
    """(T,) share of the residual y - x_0 that is shifted in, rising; not the eta of DDIM"""
    kappa: float
    """standard deviation of the noise where eta = 1"""
    timestep_map: NDArray[np.int64]
    """(T,) index in the chain that the network was trained on"""
    prediction: Prediction = "x0"

    def __len__(self) -> int:
        return len(self.eta)

    @property
    def eta_prev(self) -> Table:
        """eta_{t-1}; 0 before the first."""
        return np.append(0.0, self.eta[:-1])

    @property
    def alpha(self) -> Table:
        """What one step shifts: eta_t - eta_{t-1}."""
        return self.eta - self.eta_prev

    @property
    def sqrt_eta(self) -> Table:
        return np.sqrt(self.eta)

    @property
    def input_std(self) -> Table:
        """Standard deviation of x_t where latents have variance 1: what the network's input is divided by."""
        return np.sqrt(self.eta * self.kappa**2 + 1)

    @property
    def posterior_variance(self) -> Table:
        """Of q(x_{t-1} | x_t, x_0); 0 at t = 0."""
        return self.kappa**2 * self.eta_prev / self.eta * self.alpha

    def respaced(self, steps: int) -> ResShiftSchedule:
        """The same chain in fewer steps, as the reference spaces them. Raises ValueError beyond the trained number."""
        trained = len(self)
        if not 1 <= steps <= trained:
            raise ValueError(f"{steps} steps of a chain of {trained}: 1 to {trained} can be walked")
        kept = np.array([int(trained / steps * step) for step in range(steps)], dtype=np.int64)
        return replace(self, eta=self.eta[kept], timestep_map=self.timestep_map[kept])

    def one_step(self) -> ResShiftSchedule:
        """The noisiest step alone: from where sampling starts straight to x_0 (SinSR, TAD-SR)."""
        return replace(self, eta=self.eta[-1:], timestep_map=self.timestep_map[-1:])

    def trained_index(self, t: Tensor) -> Tensor:
        """What the network is told in place of t."""
        return torch.from_numpy(self.timestep_map)[t.cpu()].to(t.device)

    def scale_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's input: x_t at about unit variance."""
        return x_t / at(self.input_std, t, x_t)

    def add_noise(self, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t, drawn from q(x_t | x_0, y)."""
        return x0 + at(self.eta, t, x0) * (y - x0) + at(self.kappa * self.sqrt_eta, t, x0) * noise

    def start(self, y: Tensor, noise: Tensor) -> Tensor:
        """x_T, where sampling starts: as if x_0 were y."""
        return y + self.kappa * float(self.sqrt_eta[-1]) * noise

    def pred_x0(self, output: Tensor, y: Tensor) -> Tensor:
        """The clean latent that a network's output stands for."""
        return output if self.prediction == "x0" else y - output

    def target(self, x0: Tensor, y: Tensor) -> Tensor:
        """What the network should answer with: the inverse of `pred_x0`."""
        return x0 if self.prediction == "x0" else y - x0

    def pred_eps(self, x_t: Tensor, x0: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """The noise that leads from x_0 to x_t."""
        eta = at(self.eta, t, x_t)
        return (x_t - (1 - eta) * x0 - eta * y) / at(self.kappa * self.sqrt_eta, t, x_t)

    def posterior_mean(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0). At t = 0 nothing of x_t is kept: the answer is x_0."""
        return at(self.eta_prev / self.eta, t, x_t) * x_t + at(self.alpha / self.eta, t, x_t) * x0

    def step(self, x_t: Tensor, pred_x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw x_{t-1} from q(x_{t-1} | x_t, x_0). At t = 0 the variance is 0: the answer is `pred_x0`."""
        std = at(np.sqrt(self.posterior_variance), t, x_t)
        return self.posterior_mean(x_t, pred_x0, t) + std * noise

    def deterministic_weights(self) -> tuple[Table, Table, Table]:
        """(k, m, j) of x_{t-1} = k x_0 + m x_t + j y (Wang et al., SinSR): the noise in x_t is kept, not drawn anew."""
        m = np.sqrt(self.eta_prev / self.eta)
        j = self.eta_prev - np.sqrt(self.eta_prev * self.eta)
        return 1 - m - j, m, j

    def deterministic_step(self, x_t: Tensor, pred_x0: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """x_{t-1} with the noise of x_t, as DDIM does it. At t = 0 the answer is `pred_x0`."""
        k, m, j = (at(table, t, x_t) for table in self.deterministic_weights())
        return k * pred_x0 + m * x_t + j * y


def exponential(
    steps: int,
    *,
    kappa: float,
    min_noise: float,
    sqrt_eta_end: float,
    power: float,
    start_rule: StartRule,
    prediction: Prediction,
) -> ResShiftSchedule:
    """The published schedule: sqrt(eta) grows geometrically over a warped index.

    min_noise     standard deviation of the noise at t = 0, unless a rule starts lower
    sqrt_eta_end  sqrt(eta) at t = T-1 (called `etas_end` in the published configurations, in spite of the root)
    power         below 1: small steps at the noisy end
    """
    start = min(min_noise / kappa, min_noise, *((CAP,) if start_rule == "capped" else ()))
    if steps == 1:
        sqrt_eta = np.array([sqrt_eta_end])
    else:
        warped = (np.arange(steps) / (steps - 1)) ** power * (steps - 1)
        sqrt_eta = start * ((sqrt_eta_end / start) ** (1 / (steps - 1))) ** warped
    return ResShiftSchedule(sqrt_eta**2, kappa, np.arange(steps, dtype=np.int64), prediction)


# Published configurations: super-resolution (the two start rules agree), and faces of DiT-SR and ResShift.
SR = exponential(15, kappa=2.0, min_noise=0.04, sqrt_eta_end=0.99, power=0.3, start_rule="resshift", prediction="x0")
FACES = exponential(4, kappa=2.0, min_noise=0.2, sqrt_eta_end=0.99, power=0.3, start_rule="resshift", prediction="x0")
