"""TAD-SR as a whole: one evaluation of the student for each tile, or the chain of a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import nn

from services.tad_sr.service import RestoreRequest, UpscaleRequest
from shared.jobcontext import JobContext
from shared.problems import Problem
from shared.resshift.pipeline import ResShiftPipeline
from shared.resshift.requests import Restored, Upscaled
from shared.resshift.sampler import Sampler, sample, sample_deterministic
from shared.resshift.schedule import ResShiftSchedule
from shared.resshift.scheduler import ResShiftScheduler


class TadSrPipeline(ResShiftPipeline):
    """Denoiser, autoencoder and schedule of one model, on one device."""

    DENOISERS: ClassVar[Mapping[str, str]] = {"UNetModelSwin": "services.tad_sr.denoiser"}

    def __init__(
        self,
        denoiser: nn.Module,
        autoencoder: nn.Module,
        scheduler: ResShiftScheduler,
        scale: int = 4,
        multiple: int = 64,
        tile: int = 256,
        overlap: int = 32,
        steps: int = 1,
    ) -> None:
        """Options are those of `ResShiftPipeline`, and `steps`: evaluations of the denoiser for each tile.

        steps  1 for a student, which goes from the noisiest step straight to the clean latent. More for a teacher,
               whose chain is then walked deterministically, as it is when a student learns from it

        Raises ValueError for more steps than the chain has.
        """
        super().__init__(denoiser, autoencoder, scheduler, scale, multiple, tile, overlap)
        self.register_to_config(steps=steps)
        self.chain = self._chain(steps)

    def _chain(self, steps: int) -> ResShiftSchedule:
        return self.schedule.one_step() if steps == 1 else self.schedule.respaced(steps)

    @property
    def walk(self) -> Sampler:
        """How the chain is walked."""
        return sample if len(self.chain) == 1 else sample_deterministic

    def upscale(self, requests: Sequence[UpscaleRequest], job: JobContext) -> list[Upscaled | Problem]:
        """Pictures of one size four times as large, or an archive of such."""
        return self.upscaled(requests, job, self.chain, self.walk)

    def restore(self, requests: Sequence[RestoreRequest], job: JobContext) -> list[Restored | Problem]:
        """Portraits of one size at that size."""
        return self.restored(requests, job, self.chain, self.walk)
