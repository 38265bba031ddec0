"""What the diagnostic service computes, with torch, as a real method would."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch.nn import functional as F

from shared.archivework import Item, worked
from shared.images import Picture
from shared.problems import ImageTooLarge, Problem
from shared.service import Archive, Image, JobContext, Response
from tests.diagnostic.network import Thinker, think
from tests.diagnostic.service import BlurResponse


class DiagnosticPipeline:
    """Blurs with a 5 x 5 box."""

    memory_bytes = 1000

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._network: Thinker | None = None  # 256 MiB, for the benchmarks alone

    @classmethod
    def load(cls, folder: Path | None, device: torch.device) -> Self:
        return cls(device)

    def blur(self, pictures: list[Picture], strength: int) -> list[Picture]:
        stacked = torch.stack([torch.from_numpy(picture.pixels) for picture in pictures]).permute(0, 3, 1, 2)
        x = stacked.to(self.device).float()
        for _ in range(strength):
            x = F.avg_pool2d(x, 5, 1, padding=2, count_include_pad=False)
        blurred = x.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [replace(picture, pixels=pixels) for picture, pixels in zip(pictures, blurred, strict=True)]

    def halves(self, picture: Picture) -> list[Picture]:
        middle = picture.pixels.shape[1] // 2
        return [replace(picture, pixels=pixels) for pixels in (picture.pixels[:, :middle], picture.pixels[:, middle:])]

    def blur_each(self, archive: Archive, seconds: float, job: JobContext) -> tuple[Archive, int]:
        parts = 0

        def narrow(picture: Picture) -> Picture:
            if picture.pixels.shape[1] > 64:
                raise ImageTooLarge(limit_px=64)
            return picture

        def work(items: Sequence[Item[Picture]]) -> list[Response | Problem]:
            nonlocal parts
            parts += 1
            time.sleep(seconds)
            blurred = [self.blur([item.content], 1)[0] for item in items]
            return [BlurResponse(image=Image.of(picture), batch=len(items), note=None) for picture in blurred]

        return worked(archive, job, narrow, work, at_once=2), parts

    def think(self, seeds: list[int], layers: int) -> list[float]:
        if self._network is None:
            self._network = Thinker().to(self.device)
        return think(self._network, seeds, layers)

    def fail(self, how: str) -> None:
        match how:
            case "bug":
                raise LookupError("a bug of the method")
            case "memory":
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            case "hang":
                time.sleep(3600)
            case "die":
                os._exit(9)

    @staticmethod
    def count(name: str, steps: int, seconds_a_step: float, job: JobContext) -> dict[str, Any]:
        """Count up to `steps` from where the last attempt stood, and save the count as a model."""
        state = job.restore()
        start = int(state) if state else 0
        for step in range(start + 1, steps + 1):
            time.sleep(seconds_a_step)
            job.progress(step, steps, loss=1 / step)
            job.checkpoint(str(step).encode())
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(f'{{"count": {steps}}}')
            model = job.save_model(name, Path(folder), steps=steps)
        return {"model": f"{model.method}/{model.name}@{model.version}", "resumed_at": start, "steps": steps}
