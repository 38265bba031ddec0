"""A model as a folder: `config.json` and one safetensors file a network, `E_id.safetensors` and so on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

CONFIG = "config.json"
PARTS = ("E_id", "E_attr", "M", "G", "T", "ICL")
PERMUTATIONS = ("w_perm", "w_perm_inv")


def weights_file(part: str) -> str:
    """The name of a network's file."""
    return f"{part}.safetensors"


def digest(folder: Path) -> str:
    """SHA-256 in hex over the configuration and every weight file, noise maps included.

    Two models with one digest draw the same faces: a record of an anonymization names it.
    """
    total = hashlib.sha256()
    for name in (CONFIG, *map(weights_file, PARTS)):
        with (folder / name).open("rb") as file:
            total.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def write_network(network: nn.Module, path: Path, storage: torch.dtype) -> None:
    """Write a state dict. Permutations become uint8, counters stay as they are, other numbers become `storage`.

    Raises ValueError, with the name of the tensor, for numbers that `storage` cannot hold.
    """
    save_file({name: _stored(name, tensor, storage) for name, tensor in network.state_dict().items()}, path)


def _stored(name: str, tensor: Tensor, storage: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.contiguous()
    stored = tensor.to(torch.uint8 if name.rpartition(".")[2] in PERMUTATIONS else storage).contiguous()
    if stored.is_floating_point() and not bool(stored.isfinite().all()):
        raise ValueError(f"{name} has numbers that {storage} cannot hold")
    return stored
