"""The schedule as a component of a diffusers pipeline. It keeps the steps of one walk: take a new one for each request.

The mathematics is in `shared.resshift.schedule`; code that serves requests uses that, through `schedule`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from torch import Generator, Tensor

from shared.resshift.schedule import Prediction, ResShiftSchedule, StartRule, exponential


@dataclass
class ResShiftSchedulerOutput(BaseOutput):
    """What one step gives."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class ResShiftScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # of classes without types
    """`scheduler_config.json` and the interface that diffusers expects, around a `ResShiftSchedule`.

    The chain does not preserve variance: no other scheduler of diffusers can take its place.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        *,
        steps: int = 15,
        kappa: float = 2.0,
        min_noise: float = 0.04,
        sqrt_eta_end: float = 0.99,
        power: float = 0.3,
        start_rule: StartRule = "resshift",
        prediction: Prediction = "x0",
    ) -> None:
        self.schedule: ResShiftSchedule = exponential(
            steps,
            kappa=kappa,
            min_noise=min_noise,
            sqrt_eta_end=sqrt_eta_end,
            power=power,
            start_rule=start_rule,
            prediction=prediction,
        )
        self.set_timesteps(steps)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that is added to y where sampling starts."""
        return self._walked.kappa * float(self._walked.sqrt_eta[-1])

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Walk the chain in so many steps. `timesteps` are indices of the walked chain, from the noisiest to 0."""
        self._walked = self.schedule.respaced(num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1, device=device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """x_t as the network takes it."""
        return self._walked.scale_input(sample, timestep.expand(len(sample)))

    def add_noise(self, x0: Tensor, y: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t from the clean latent, the low-quality latent and noise."""
        return self._walked.add_noise(x0, y, timesteps, noise)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        y: Tensor,
        generator: Generator | None = None,
        return_dict: bool = True,
    ) -> ResShiftSchedulerOutput | tuple[Tensor, Tensor]:
        """Draw x_{t-1}. `y` (B, C, h, w) is the latent of the enlarged picture."""
        t = timestep.expand(len(sample))
        pred_x0 = self._walked.pred_x0(model_output, y)
        device = generator.device if generator is not None else sample.device
        noise = torch.randn(sample.shape, generator=generator, device=device, dtype=sample.dtype).to(sample.device)
        previous = self._walked.step(sample, pred_x0, t, noise)
        return ResShiftSchedulerOutput(previous, pred_x0) if return_dict else (previous, pred_x0)
