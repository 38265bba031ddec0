"""The weights of one network in one safetensors file, under exactly the network's own names and shapes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from shared.nn.published import load_exactly
from shared.problems import WeightsDamaged


def read_network(network: nn.Module, path: Path, device: torch.device | str) -> None:
    """Replace the parameters and buffers of a network by those of a file, in the network's own dtypes.

    The network may lie on the meta device. Raises WeightsDamaged, with the name of the tensor, unless the file holds
    its names and shapes and nothing else.
    """
    try:
        found = load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise WeightsDamaged(f"{path.name}: {error}") from error
    load_exactly(network, found, path.name)
