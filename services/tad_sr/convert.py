"""From the authors' published files to a model folder (tad-sr.md 6, resshift-diffusion.md 7).

Two files make a model: the denoiser (`TAD-SR.pth`, `TAD-faceir.pth`) and its autoencoder (`autoencoder_vq_f4.pth`,
`ffhq512_vq_f8_dim8_face.pth`). They are known by what they hold. A denoiser whose file is named as ResShift's are
(`resshift_realsrx4_s15_v1.pth`, `resshift_faceir_s4.pth`) is a teacher: the same network, walked step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from services.tad_sr.denoiser import PAPER, PAPER_FACE, UNetModelSwin
from services.tad_sr.pipeline import TadSrPipeline
from shared.publishedweights import WeightsRefused
from shared.resshift.checkpoint import build, build_autoencoder, find
from shared.resshift.scheduler import ResShiftScheduler

TEACHER = "resshift_"  # how the files of teachers begin
FACES = "feature_extractor.0.weight"  # what only a denoiser for faces has


def convert(sources: Sequence[Path], target: Path) -> None:
    """Write the model that the files are of.

    sources  the denoiser's and the autoencoder's file, or folders that hold them; other files are ignored
    target   the folder to write, made if it is not there

    Raises WeightsRefused, with the file and the tensor in the message; then nothing was written.
    """
    files = find(sources)
    faces = FACES in files.denoiser.tensors
    config = PAPER_FACE if faces else PAPER
    denoiser = build(UNetModelSwin, config, files.denoiser)
    autoencoder = build_autoencoder(files.autoencoder)
    if autoencoder.channels != config["in_channels"]:
        raise WeightsRefused(
            f"{files.autoencoder.name} has latents of {autoencoder.channels} channels, "
            f"{files.denoiser.name} of {config['in_channels']}: they do not belong together"
        )
    # The rule of TAD-SR's code; it matters for faces, whose teacher learned on the uncapped chain (tad-sr.md 3).
    scheduler = ResShiftScheduler(steps=4, min_noise=0.2, start_rule="capped") if faces else ResShiftScheduler()
    trained = len(scheduler.schedule)
    TadSrPipeline(
        denoiser,
        autoencoder,
        scheduler,
        scale=1 if faces else 4,
        multiple=64,
        # For photographs, what ResShift's author advises for large ones, where the published command has 512.
        tile=512 if faces else 256,
        overlap=64 if faces else 32,
        steps=trained if files.denoiser.name.startswith(TEACHER) else 1,
    ).save(target, torch.float32)
