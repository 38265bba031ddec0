"""From the published files of the family to the parts of a model (resshift-diffusion.md 7).

A file is known by the tensors it holds, not by its name: an autoencoder has a codebook, a denoiser a time embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
from accelerate import init_empty_weights
from torch import Tensor, nn

from shared.publishedweights import WeightsRefused, only_tensors, read_published
from shared.resshift.autoencoder import PAPER_F4, PAPER_F8, VqAutoencoder

log = structlog.get_logger()

Network = TypeVar("Network", bound=nn.Module)

PREFIXES = ("module.", "_orig_mod.")  # left by data-parallel training and by torch.compile
CODEBOOK = "quantize.embedding.weight"
TIME_EMBEDDING = "time_embed.0.weight"


@dataclass(frozen=True)
class PublishedFile:
    """A file and its tensors under the names of the network."""

    name: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class PublishedFiles:
    """The two networks of a model."""

    denoiser: PublishedFile
    autoencoder: PublishedFile


def find(sources: Sequence[Path]) -> PublishedFiles:
    """Read the files, or those in the folders, that hold networks of the family; other files are ignored.

    Raises WeightsRefused unless there is one denoiser and one autoencoder.
    """
    paths = [path for source in sources for path in (sorted(source.iterdir()) if source.is_dir() else [source])]
    files = [read(path) for path in paths if path.suffix in (".pth", ".pt", ".ckpt")]
    found = []
    for what, mark in (("denoiser", TIME_EMBEDDING), ("autoencoder", CODEBOOK)):
        matching = [file for file in files if mark in file.tensors]
        if len(matching) != 1:
            names = ", ".join(file.name for file in matching) or "none"
            raise WeightsRefused(f"one file that holds {mark}, of the {what}, is needed; found {names}")
        found.append(matching[0])
    return PublishedFiles(*found)


def read(path: Path) -> PublishedFile:
    """The state dict of a file, out of its wrapper and without the prefixes of training. Raises WeightsRefused."""
    content = read_published(path)
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        raise WeightsRefused(f"{path.name}: state_dict is {type(state).__name__}, not a state dict")
    return PublishedFile(path.name, only_tensors({_bare(str(name)): value for name, value in state.items()}, path.name))


def _bare(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def build(cls: type[Network], config: Mapping[str, Any], file: PublishedFile) -> Network:
    """A network with the weights of a file. Every name must be there in its shape; further names are passed over.

    The files hold masks and indices of attention as buffers, some for other sizes; ours are computed.
    Raises WeightsRefused with the tensor's name.
    """
    with init_empty_weights():
        network = cls(**config)
    expected = network.state_dict()
    for name, own in expected.items():
        if name not in file.tensors:
            raise WeightsRefused(f"{file.name}: {name} is missing")
        theirs = file.tensors[name]
        if theirs.shape != own.shape:
            raise WeightsRefused(f"{file.name}: {name} is {tuple(theirs.shape)}, not {tuple(own.shape)}")
        if theirs.is_floating_point() and not bool(theirs.isfinite().all()):
            raise WeightsRefused(f"{file.name}: {name} has numbers that are not finite")
    passed_over = sorted(file.tensors.keys() - expected.keys())
    if passed_over:
        log.info("weights.passed_over", file=file.name, tensors=len(passed_over), first=passed_over[0])
    placed = {name: file.tensors[name].to(own.dtype, copy=True).contiguous() for name, own in expected.items()}
    network.load_state_dict(placed, assign=True)
    return network


def build_autoencoder(file: PublishedFile) -> VqAutoencoder:
    """The published autoencoder whose codebook the file has. Raises WeightsRefused."""
    shape = list(file.tensors[CODEBOOK].shape)
    for config in (PAPER_F4, PAPER_F8):
        if shape == [config["n_embed"], config["embed_dim"]]:
            return build(VqAutoencoder, config, file)
    raise WeightsRefused(f"{file.name}: {CODEBOOK} is {tuple(shape)}, of no published autoencoder")
