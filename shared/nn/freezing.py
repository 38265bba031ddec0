"""Networks that no longer learn: what follows from their parameters alone is computed once.

A module that can prepare itself so has a method `freeze`. Frozen, it gives the same numbers within rounding; its
parameters must not change any more, and it stays on its device.
"""

from __future__ import annotations

import torch
from torch import nn


def freeze(network: nn.Module) -> None:
    """For serving: eval mode, no gradients, channels last in memory, and on a CPU what each part can prepare.

    That takes about as much memory as the weights once more.
    """
    network.eval().requires_grad_(False)
    nn.Module.to(network, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch documents it
    if next(network.parameters()).device.type == "cpu":
        for module in network.modules():
            if callable(prepare := getattr(module, "freeze", None)):
                prepare()
