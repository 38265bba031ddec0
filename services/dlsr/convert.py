"""From the authors' published files to a model folder (dlsr.md 6).

The files are read with `weights_only=True`: numbers, texts and plain containers, never code. What is taken are the
averaged numbers of LFDN, whose names the authors' average wrote without dots. The authors' own loader passes over what
is missing; here a missing tensor is an error.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.dlsr import schedule as schedules
from services.dlsr.detector import Detector, DetectorConfig
from services.dlsr.encoder import ARCHITECTURES, PAPER, PAPER_RESNET, Encoder, network_of
from services.dlsr.learning import PAPER as PAPER_PRESET
from services.dlsr.lfdn import LFDN, LFDNConfig
from shared.nn.published import load_exactly
from shared.problems import WeightsDamaged

LAST, FIRST = "checkpoint-last.pth", "checkpoint-0.pth"
ENCODERS = {"efficientnet-b4": "efficientnet-b4-*.pth", "resnet-50": "resnet50-*.pth"}
BACKBONE, PLAIN, AVERAGED = "pretrained_encoder.backbone.", "model.diffusion_model.", "model_ema."
AVERAGED_LFDN = "model_ema.diffusion_model"
COUNTERS = {"model_ema.decay", "model_ema.num_updates"}


class WeightsRefused(ValueError):
    """The published files are missing, are not what they should be, or do not fit; the message names the tensor."""


def convert(sources: Sequence[Path], target: Path) -> None:
    """Write the paper's detector. It has no calibration, which the authors do not publish: calibrate it first.

    sources  `checkpoint-last.pth`; `checkpoint-0.pth`, without which there is no score `lr`; the encoder's own file
             (`efficientnet-b4-….pth` or `resnet50-….pth`), needed where the checkpoint does not hold it; or folders
             that hold these. Other files are ignored.
    target   the folder to write, made if it is not there

    Raises WeightsRefused, with the file and the tensor in the message; then nothing was written.
    """
    files = _candidates(sources)
    last = _one(files, LAST)
    if last is None:
        raise WeightsRefused(f"one file named {LAST} is needed, found none")
    content = read(last)
    end = lfdn(content, last.name)
    early = None
    if (first := _one(files, FIRST)) is not None:
        early = lfdn(read(first), first.name)
        if early.config != end.config:
            raise WeightsRefused(f"{first.name} holds a network of other sizes than {last.name}")
        if all(torch.equal(a, b) for a, b in zip(early.state_dict().values(), end.state_dict().values(), strict=True)):
            raise WeightsRefused(f"{first.name} and {last.name} hold the same numbers: one of them is misnamed")
    encoder = _encoder(content, end.config.in_channels, files, last.name)
    config = DetectorConfig(
        encoder=encoder.config,
        fingerprint=encoder.fingerprint,
        lfdn=end.config,
        steps=schedules.STEPS,
        draws=PAPER_PRESET.draws,
        seed=0,
        kind=PAPER_PRESET.kind,
        alpha=PAPER_PRESET.alpha,
        preset="paper",
    )
    Detector(config, encoder, end, early, None, {}).save(target, torch.float32)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a published file by name. Raises WeightsRefused."""
    try:
        # A checkpoint carries its command line as an argparse.Namespace: a bag of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsRefused(f"{path.name} holds more than numbers: it is not opened") from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsRefused(f"{path.name} cannot be read: {error}") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise WeightsRefused(f"{path.name} holds no state dict")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise WeightsRefused(f"{path.name}: {name} is {type(value).__name__}, not a tensor")
    return {str(name): value for name, value in content.items()}


def lfdn(content: Mapping[str, Tensor], file: str) -> LFDN:
    """The averaged network of a checkpoint. Its sizes are those of its tensors. Raises WeightsRefused."""
    schedule = content.get("betas")
    expected = torch.from_numpy(schedules.PAPER.betas).float()
    if schedule is not None and not (schedule.shape == expected.shape and torch.allclose(schedule, expected, 1e-4)):
        raise WeightsRefused(f"{file}: betas are not those of the paper's schedule")
    with torch.device("meta"):
        network = LFDN(_sizes(content, file))
    dotless = {AVERAGED_LFDN + name.replace(".", ""): name for name in network.state_dict()}
    averaged = {name for name in content if name.startswith(AVERAGED)} - COUNTERS
    if unknown := sorted(averaged - dotless.keys()):
        raise WeightsRefused(f"{file}: {unknown[0]} is unknown")
    if missing := sorted(dotless.keys() - averaged):
        raise WeightsRefused(f"{file}: {missing[0]} is missing")
    try:
        load_exactly(network, {name: content[key] for key, name in dotless.items()}, file)
    except WeightsDamaged as error:
        raise WeightsRefused(error.detail) from error
    for name, value in network.state_dict().items():
        if not bool(value.isfinite().all()):
            raise WeightsRefused(f"{file}: {name} has numbers that are not finite")
    return network.eval().requires_grad_(False)


def _sizes(content: Mapping[str, Tensor], file: str) -> LFDNConfig:
    """From the tensors that are not averaged, which carry their dots: the number of blocks is the highest named."""
    blocks = {int(found[1]) for name in content if (found := re.match(rf"{PLAIN}res_blocks\.(\d+)\.", name))}
    shapes = {}
    for name in ("input_proj.1.weight", "time_embed.0.weight", "res_blocks.0.in_layers.2.weight"):
        if (tensor := content.get(PLAIN + name)) is None or tensor.ndim != 2:
            raise WeightsRefused(f"{file}: {PLAIN}{name} is missing")
        shapes[name] = tuple(tensor.shape)
    wide, width = shapes["input_proj.1.weight"]
    return LFDNConfig(
        width,
        wide,
        shapes["res_blocks.0.in_layers.2.weight"][0],
        shapes["time_embed.0.weight"][0],
        max(blocks) + 1,
    )


def _encoder(content: Mapping[str, Tensor], width: int, files: Sequence[Path], checkpoint: str) -> Encoder:
    """The encoder whose vectors are as wide as the network's: from its own file, or out of the checkpoint."""
    for config in (PAPER, PAPER_RESNET):
        if sum(ARCHITECTURES[config.name].channels) == width:
            break
    else:
        raise WeightsRefused(f"{checkpoint}: no encoder gives vectors of {width} values")
    path = _one(files, ENCODERS[config.name])
    state = {name.removeprefix(BACKBONE): value for name, value in content.items() if name.startswith(BACKBONE)}
    if path is not None:
        state = read(path)
    elif not state:
        raise WeightsRefused(f"{checkpoint} holds no encoder: a file named {ENCODERS[config.name]} is needed")
    try:
        network = network_of(config.name, state, path.name if path else checkpoint)
    except WeightsDamaged as error:
        raise WeightsRefused(error.detail) from error
    return Encoder(config, network, "cpu")


def _candidates(sources: Sequence[Path]) -> list[Path]:
    return [path for source in sources for path in (sorted(source.iterdir()) if source.is_dir() else [source])]


def _one(files: Sequence[Path], pattern: str) -> Path | None:
    found = {path.resolve(): path for path in files if fnmatchcase(path.name, pattern)}
    if len(found) > 1:
        raise WeightsRefused(f"two files match {pattern}: {', '.join(sorted(path.name for path in found.values()))}")
    return next(iter(found.values()), None)
