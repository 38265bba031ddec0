"""DiT-SR as a whole: the chain walked by ancestral sampling, with all that time decides prepared once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from services.dit_sr.denoiser import UNetModelSwin
from services.dit_sr.layer import Filters
from services.dit_sr.service import RestoreRequest, UpscaleRequest
from shared.jobcontext import JobContext
from shared.problems import InvalidRequest, Problem
from shared.resshift.pipeline import Autoencoder, ResShiftPipeline
from shared.resshift.requests import Restored, Upscaled
from shared.resshift.sampler import Denoiser, sample
from shared.resshift.schedule import ResShiftSchedule
from shared.resshift.scheduler import ResShiftScheduler


class DitSrPipeline(ResShiftPipeline):
    """Denoiser, autoencoder and schedule of one model, on one device."""

    DENOISERS: ClassVar[Mapping[str, str]] = {"UNetModelSwin": "services.dit_sr.denoiser"}

    def __init__(
        self,
        denoiser: nn.Module,
        autoencoder: nn.Module,
        scheduler: ResShiftScheduler,
        scale: int = 4,
        multiple: int = 64,
        tile: int = 256,
        overlap: int = 32,
        steps: int = 15,
    ) -> None:
        """Options are those of `ResShiftPipeline`, and `steps`: how many a request that names none gets.

        Raises ValueError where `multiple` or `steps` does not suit the networks.
        """
        super().__init__(denoiser, autoencoder, scheduler, scale, multiple, tile, overlap)
        self.register_to_config(steps=steps)
        least = cast(UNetModelSwin, denoiser).multiple * cast(Autoencoder, autoencoder).factor
        if multiple * scale % least:
            raise ValueError(f"multiple is {multiple}, and the networks need a multiple of {-(-least // scale)}")
        if not 1 <= steps <= len(self.schedule):
            raise ValueError(f"steps is {steps}, and the chain has {len(self.schedule)}")
        self._filters: dict[int, list[Filters]] = {}

    def upscale(self, requests: Sequence[UpscaleRequest], job: JobContext) -> list[Upscaled | Problem]:
        """Pictures of one size four times as large, or an archive of such."""
        chain = self._chain(requests[0].steps)
        return [chain for _ in requests] if isinstance(chain, Problem) else self.upscaled(requests, job, chain, sample)

    def restore(self, requests: Sequence[RestoreRequest], job: JobContext) -> list[Restored | Problem]:
        """Portraits of one size at that size."""
        chain = self._chain(requests[0].steps)
        return [chain for _ in requests] if isinstance(chain, Problem) else self.restored(requests, job, chain, sample)

    def _chain(self, steps: int | None) -> ResShiftSchedule | Problem:
        trained = len(self.schedule)
        if steps is not None and steps > trained:
            return InvalidRequest(
                f"This model was trained for {trained} steps.",
                errors=[{"place": "steps", "message": f"at most {trained}", "kind": "less_than_equal"}],
            )
        return self.schedule.respaced(steps or self.config["steps"])

    def for_tiles(self) -> Denoiser:
        return _Walk(cast(UNetModelSwin, self.denoiser), self._filters)


class _Walk:
    """The denoiser along one walk: what its picture decides is computed once, what a timestep decides once for all."""

    def __init__(self, denoiser: UNetModelSwin, filters: dict[int, list[Filters]]) -> None:
        self._denoiser = denoiser
        self._filters = filters
        self._condition: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        """As the denoiser; all of `t` are equal, and `lq` is the same every time."""
        if self._condition is None:
            self._condition = self._denoiser.condition(lq)
        timestep = int(t[0])
        if timestep not in self._filters:
            with torch.autocast(x.device.type, enabled=False):  # half precision would round the filters for good
                self._filters[timestep] = self._denoiser.filters(t[:1])
        return self._denoiser.predict(x, self._condition, self._filters[timestep])
