"""Weights made from a formula, for golden cases whose weights are too many to store.

Four recipes, each a function of a tensor's name and shape. `crc` is zlib's CRC-32 of the UTF-8 name; the random streams
are numpy's legacy ones, which are frozen; numbers are computed in float64 and cast to float32. Of several rules of a
recipe the first that fits counts. Integer tensors keep the module's own values where a recipe says nothing of them.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

# Fixed filters of the detectors; recipe 2 leaves them as they are.
CRC_XOR_CONSTANTS = (
    "_DCT_all",
    "_DCT_all_T",
    ".base",
    "srm_conv0.kernel",
    "srm_sa.srm.kernel",
    "srm_conv1.kernel",
    "srm_conv2.kernel",
    "blur.weight",
)


def recipe_weights(source: Mapping[str, Any], like: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The tensors that `source` (an entry of a case's `weights`) makes.

    `like` is the module's state dict by the reference's names; its values matter only for constants that are kept.
    Raises ValueError for an unknown recipe or a name that the module lacks.
    """
    match source["recipe"]:
        case "unit-fan-in":
            return {name: _kept_or(_unit_fan_in(name, tensor, source["seed"]), tensor) for name, tensor in like.items()}
        case "crc-xor":
            seed, gain = source["seed"], source["gain"]
            return {name: _kept_or(_crc_xor(name, tensor, like, seed, gain), tensor) for name, tensor in like.items()}
        case "sine":
            positions = {name: k for k, name in enumerate(sorted(like))}
            phase = source["phase"]
            return {
                name: _kept_or(_sine(name, tensor, positions[name], phase), tensor) for name, tensor in like.items()
            }
        case "spec":
            entry = json.loads((folder / source["file"]).read_text())[source["entry"]]
            return {name: _spec(name, rule, entry["seed"], like) for name, rule in entry["spec"].items()}
        case other:
            raise ValueError(f"unknown weight recipe {other!r}")


def crc(name: str) -> int:
    """zlib's CRC-32 of the name."""
    return zlib.crc32(name.encode())


def normals(seed: int, shape: tuple[int, ...]) -> Array:
    """Standard normals of the legacy stream, in C order."""
    draws: Array = np.random.RandomState(seed).standard_normal(math.prod(shape))
    return draws.reshape(shape)


def _kept_or(made: Array | None, tensor: Tensor) -> Tensor:
    """The made tensor in float32, or the module's own value."""
    if made is None:
        if tensor.is_meta:
            raise ValueError("a recipe keeps the module's own value, but the module lies on the meta device")
        return tensor.detach().clone()
    return torch.from_numpy(np.asarray(made, dtype=np.float64).astype(np.float32)).to(
        tensor.dtype if not tensor.is_floating_point() else torch.float32
    )


def _unit_fan_in(name: str, tensor: Tensor, seed: int) -> Array | None:
    """Recipe 1."""
    if name.endswith("attn_mask") or not tensor.is_floating_point():
        return None
    shape = tuple(tensor.shape)
    a = normals((crc(name) + seed) % 2**32, shape)
    if name.endswith("relative_position_bias_table"):
        return 0.2 * a
    if name.endswith("embedding.weight"):
        return a
    if len(shape) >= 2:
        return a / math.sqrt(math.prod(shape[1:]))
    if name.endswith(".weight"):
        return 1 + 0.1 * a
    if ".adaLN_scale_" in name:
        return 1 + 0.25 * a
    return 0.05 * a


def _crc_xor(name: str, tensor: Tensor, like: Mapping[str, Tensor], seed: int, gain: float) -> Array | None:
    """Recipe 2."""
    shape = tuple(tensor.shape)
    if any(constant in name for constant in CRC_XOR_CONSTANTS):
        return None
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape)
    if not tensor.is_floating_point():
        return None
    z = normals(crc(name) ^ seed, shape)
    stem, _, leaf = name.rpartition(".")
    normalized = (f"{stem}.running_var" if stem else "running_var") in like
    if leaf == "running_mean":
        return 0.1 * z
    if leaf == "running_var":
        return 1 + 0.1 * np.abs(z)
    if leaf == "weight" and normalized:
        return 1 + 0.1 * z
    if leaf == "bias" and normalized:
        return 0.1 * z
    if name.endswith(".bias"):
        return 0.05 * z
    if "route_weights" in name:
        return z
    if len(shape) >= 2:
        return z * math.sqrt(gain / math.prod(shape[1:]))
    return 0.1 * z


def _sine(name: str, tensor: Tensor, position: int, phase: float) -> Array | None:
    """Recipe 3."""
    if name.endswith("num_batches_tracked") or not tensor.is_floating_point():
        return None
    shape = tuple(tensor.shape)
    i = np.arange(math.prod(shape), dtype=np.float64)
    s = np.sin(12.9898 * (i + 1) + position + phase).reshape(shape)
    if name.endswith("running_var"):
        return 1 + 0.2 * s
    if name.endswith(("running_mean", ".bias")):
        return 0.05 * s
    if len(shape) == 4:
        return 1.4 * s * math.sqrt(2 / math.prod(shape[1:]))
    return 1 + 0.1 * s


def _spec(name: str, rule: Mapping[str, Any], seed: int, like: Mapping[str, Tensor]) -> Tensor:
    """Recipe 4: one tensor."""
    if name not in like:
        raise ValueError(f"the module has no tensor {name!r}")
    own, shape = like[name], tuple(rule["shape"])
    if tuple(own.shape) != shape:
        raise ValueError(f"{name}: shape {shape} in the recipe, {tuple(own.shape)} in the module")
    match rule["kind"]:
        case "normal":
            made = rule["mean"] + rule["std"] * normals(crc(f"{seed}/{name}"), shape)
        case "absnormal":
            made = rule["mean"] + rule["std"] * np.abs(normals(crc(f"{seed}/{name}"), shape))
        case "zero":
            made = np.zeros(shape)
        case "keep":
            return _kept_or(None, own)
        case "perm":
            made = _permutation(seed, name, shape[0])
        case "perm_inv":
            made = _permutation(seed, name.removesuffix("_inv"), shape[0]).T
        case other:
            raise ValueError(f"{name}: unknown kind {other!r}")
    return _kept_or(made, own)


def _permutation(seed: int, name: str, n: int) -> Array:
    p = np.random.RandomState(crc(f"{seed}/{name}")).permutation(n)
    w = np.zeros((n, n))
    w[np.arange(n), p] = 1
    return w
