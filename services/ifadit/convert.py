"""From the authors' published files to a model folder (ifadit.md 6).

The files are read with `weights_only=True`: numbers, texts and plain containers, never code. Names and shapes must be
exactly those of our networks, which carry the published names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from services.ifadit.anonymizer import Ifadit
from services.ifadit.checkpoint import CONFIG, weights_file
from services.ifadit.configuration import PAPER
from shared.publishedweights import WeightsRefused, only_tensors, read_published

log = structlog.get_logger()


@dataclass(frozen=True)
class Published:
    """One published file and the network that it holds."""

    pattern: str
    """Its name; a star stands for the run."""
    part: str
    """The network in our model."""
    choose: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    """The state dict within what the file holds."""


def _whole(content: Mapping[str, Any]) -> Mapping[str, Any]:
    return content


def _g_ema(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The averaged generator of a training checkpoint; a bare state dict is taken as it is."""
    chosen = content.get("g_ema", content)
    if not isinstance(chosen, Mapping):
        raise WeightsRefused("g_ema is not a state dict")
    return chosen


def _encoder(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The encoder of a pSp module, without its unused copy of the generator (`decoder.*`)."""
    return {name.removeprefix("encoder."): value for name, value in content.items() if not name.startswith("decoder.")}


PUBLISHED = (
    Published("model_ir_se50.pth", "E_id", _whole),
    Published("attr_best.pth", "E_attr", _encoder),
    Published("mlp_best.pth", "M", _whole),
    Published("550000.pt", "G", _g_ema),
    Published("G_net_*.pth", "T", _whole),
    Published("fuse_mlp_*.pth", "ICL", _whole),
)


def convert(sources: Sequence[Path], target: Path) -> None:
    """Write the paper's model.

    sources  the six published files, or folders that hold them; other files are ignored
    target   the folder to write, made if it is not there

    Raises WeightsRefused, with the file and the tensor in the message; then nothing was written.
    """
    files = find(sources)
    with torch.device("meta"):
        model = Ifadit(PAPER)
    kept = {}
    for published in PUBLISHED:
        network: nn.Module = getattr(model, published.part)
        kept[published.part] = match(read(files[published.part], published), network, files[published.part].name)
    target.mkdir(parents=True, exist_ok=True)
    for part, tensors in kept.items():
        save_file(tensors, target / weights_file(part))
    (target / CONFIG).write_text(PAPER.to_json())


def find(sources: Sequence[Path]) -> dict[str, Path]:
    """Which file holds which network. Raises WeightsRefused when one is missing or there are two for one network."""
    candidates = [path for source in sources for path in (sorted(source.iterdir()) if source.is_dir() else [source])]
    found = {}
    for published in PUBLISHED:
        matching = {path.resolve(): path for path in candidates if fnmatchcase(path.name, published.pattern)}
        if len(matching) != 1:
            names = ", ".join(sorted(path.name for path in matching.values())) or "none"
            raise WeightsRefused(f"one file named {published.pattern} is needed, found {names}")
        found[published.part] = next(iter(matching.values()))
    return found


def read(path: Path, published: Published) -> dict[str, Tensor]:
    """The state dict of a published file, without the prefix `module.` that data-parallel training leaves."""
    content = read_published(path)
    try:
        state = published.choose(_without_module(content))
    except WeightsRefused as error:
        raise WeightsRefused(f"{path.name}: {error}") from error
    state = _without_module(state)
    return only_tensors(state, path.name)


def _without_module(state: Mapping[str, Any]) -> dict[str, Any]:
    if state and all(str(name).startswith("module.") for name in state):
        return {str(name).removeprefix("module."): value for name, value in state.items()}
    return {str(name): value for name, value in state.items()}


def match(state: Mapping[str, Tensor], network: nn.Module, file: str) -> dict[str, Tensor]:
    """The tensors under our names, checked.

    Names and shapes must agree exactly. The one exception: when not a single name agrees, as many tensors are there as
    are needed, and all shapes agree in order, they are taken in order, as the authors' own loader does; that is logged.
    """
    expected = network.state_dict()
    if not state.keys() & expected.keys():
        state = _by_order(state, expected, file)
    for name, own in expected.items():
        if name not in state:
            raise WeightsRefused(f"{file}: {name} is missing")
        if state[name].shape != own.shape:
            raise WeightsRefused(f"{file}: {name} is {tuple(state[name].shape)}, not {tuple(own.shape)}")
    if unknown := sorted(state.keys() - expected.keys()):
        raise WeightsRefused(f"{file}: {unknown[0]} is unknown")
    tensors = {name: state[name].to(own.dtype).contiguous() for name, own in expected.items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise WeightsRefused(f"{file}: {name} has numbers that are not finite")
        if name.endswith(".w_perm"):
            _check_permutation(tensor, tensors[f"{name}_inv"], f"{file}: {name}")
    return tensors


def _by_order(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    if len(state) != len(expected):
        first = next(iter(expected))
        raise WeightsRefused(f"{file}: {first} is missing, as is every other name; {len(state)} of {len(expected)}")
    for (name, own), (foreign, tensor) in zip(expected.items(), state.items(), strict=True):
        if tensor.shape != own.shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(own.shape)}"
            raise WeightsRefused(f"{file}: {name} is missing; {foreign} in its place is {shapes}")
    log.warning("weights.taken_by_order", file=file, tensors=len(expected))
    return dict(zip(expected, state.values(), strict=True))


def _check_permutation(forward: Tensor, backward: Tensor, name: str) -> None:
    # Zeros and ones: nothing but equality is right.
    if not torch.equal(forward @ backward, torch.eye(len(forward), dtype=forward.dtype)):
        raise WeightsRefused(f"{name} times its inverse is not the identity")
