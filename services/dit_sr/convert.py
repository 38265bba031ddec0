"""From the authors' published files to a model folder (dit-sr.md 6, resshift-diffusion.md 7).

Two files make a model: the denoiser (`realsr.pth`, `faceir.pth`, …) and its autoencoder (`autoencoder_vq_f4.pth`,
`ffhq512_vq_f8_dim8_face.pth`). They are known by what they hold, and read as numbers, never as code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from torch import Tensor

from services.dit_sr.denoiser import PAPER, PAPER_FACE, PAPER_LITE, UNetModelSwin
from services.dit_sr.pipeline import DitSrPipeline
from shared.publishedweights import WeightsRefused
from shared.resshift.checkpoint import CODEBOOK, TIME_EMBEDDING, build, build_autoencoder, find
from shared.resshift.scheduler import ResShiftScheduler


class Published(NamedTuple):
    """A published model: its denoiser, its chain, and how its authors run it."""

    denoiser: Mapping[str, Any]
    chain: Mapping[str, Any]
    options: Mapping[str, int]


# Tiles of 256: what ResShift's author advises for large pictures, where the published command has 512.
_REALSR = {"scale": 4, "multiple": 64, "tile": 256, "overlap": 32, "steps": 15}
_FACES = {"scale": 1, "multiple": 512, "tile": 512, "overlap": 64, "steps": 4}
PUBLISHED = (
    Published(PAPER, {"steps": 15, "min_noise": 0.04}, _REALSR),
    Published(PAPER_LITE, {"steps": 15, "min_noise": 0.04}, _REALSR),
    Published(PAPER_FACE, {"steps": 4, "min_noise": 0.2}, _FACES),
)
# Two tensors tell the published networks apart: the width of the whole, and what comes in beside the latent.
_TELLING = (TIME_EMBEDDING, "input_blocks.0.0.weight")


def convert(sources: Sequence[Path], target: Path) -> None:
    """Write the model that the files are of.

    sources  the denoiser's and the autoencoder's file, or folders that hold them; other files are ignored
    target   the folder to write, made if it is not there

    Raises WeightsRefused, with the file and the tensor in the message; then nothing was written.
    """
    files = find(sources)
    published = _published(files.denoiser.tensors, files.denoiser.name)
    ours, theirs = published.denoiser["in_channels"], files.autoencoder.tensors[CODEBOOK].shape[-1]
    if ours != theirs:
        raise WeightsRefused(
            f"{files.autoencoder.name} has latents of {theirs} channels, {files.denoiser.name} of {ours}: "
            "they do not belong together"
        )
    denoiser = build(UNetModelSwin, published.denoiser, files.denoiser)
    autoencoder = build_autoencoder(files.autoencoder)
    scheduler = ResShiftScheduler(**published.chain)
    DitSrPipeline(denoiser, autoencoder, scheduler, **published.options).save(target, torch.float32)


def _published(tensors: Mapping[str, Tensor], file: str) -> Published:
    found = {name: tuple(tensors[name].shape) if name in tensors else None for name in _TELLING}
    for published in PUBLISHED:
        with init_empty_weights():
            state = UNetModelSwin(**published.denoiser).state_dict()
        if found == {name: tuple(state[name].shape) for name in _TELLING}:
            return published
    said = ", ".join(f"{name} is {shape or 'missing'}" for name, shape in found.items())
    raise WeightsRefused(f"{file} is no published denoiser of DiT-SR: {said}")
