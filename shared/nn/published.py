"""Published state dicts into networks of ours that carry their names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shared.problems import WeightsDamaged

COUNTER = "num_batches_tracked"


def load_exactly(network: nn.Module, state: Mapping[str, Tensor], file: str, beyond: tuple[str, ...] = ()) -> None:
    """Give a network the tensors of a state dict, in its own dtypes.

    network  may lie on the meta device
    file     the name of where the state comes from, for errors
    beyond   prefixes of what the file may hold that the network has not

    Counters of batches, on which no number depends, may lack. Raises WeightsDamaged, with the name of the tensor,
    unless all others are there in their shapes and nothing else.
    """
    found = {name: value for name, value in state.items() if not name.startswith(beyond or ("\0",))}
    expected = network.state_dict()
    found |= {name: torch.tensor(0) for name in expected if name.endswith(COUNTER) and name not in found}
    if names := sorted(found.keys() ^ expected.keys()):
        raise WeightsDamaged(f"{file}: {names[0]} is {'missing' if names[0] in expected else 'unknown'}")
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise WeightsDamaged(f"{file}: {name} is {tuple(found[name].shape)}, not {tuple(value.shape)}")
    # Copied, since tensors of a mapped file lie at odd addresses, and some kernels round otherwise there.
    network.load_state_dict(
        {name: found[name].to(value.dtype, copy=True) for name, value in expected.items()}, assign=True
    )
