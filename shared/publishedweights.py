"""Files of weights as their authors published them: read as numbers, texts and plain containers, never as code."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class WeightsRefused(ValueError):
    """The published files are missing, are not what they should be, or do not fit; the message names the tensor."""


def read_published(path: Path) -> dict[str, Any]:
    """What a file of `torch.save` holds, by name. Raises WeightsRefused."""
    try:
        # Training checkpoints carry their command line as an argparse.Namespace: a bag of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsRefused(
            f"{path.name} holds more than numbers, perhaps a whole pickled module: it is not opened"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsRefused(f"{path.name} cannot be read: {error}") from error
    if not isinstance(content, Mapping):
        raise WeightsRefused(f"{path.name} holds {type(content).__name__}, not a state dict")
    return {str(name): value for name, value in content.items()}


def only_tensors(state: Mapping[str, Any], file: str) -> dict[str, Tensor]:
    """The state dict, if it is one. Raises WeightsRefused."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise WeightsRefused(f"{file}: {name} is {type(value).__name__}, not a tensor")
    return dict(state)
