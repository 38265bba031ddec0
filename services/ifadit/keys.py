"""From the octets that custody derives for a face to the key vector k that conditions the networks (ifadit.md 3.4)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

KeyScheme = Literal["v1-uniform", "v2-gauss"]


def key_vector(octets: bytes | bytearray | memoryview, scheme: KeyScheme) -> Tensor:
    """The key of one face.

    octets   4 octets a coordinate: big-endian uint32 n
    scheme   v1-uniform: k = 0.5 + 0.5 n / 2^32, what the authors' weights were trained with (two keys look nearly alike
             to them: cosine 0.964); v2-gauss: the normal quantile of (n + 0.5) / 2^32, for our own weights
    returns  (dim,) float32, computed in float64

    The tensor is as secret as the octets: the caller zeroes both after use.
    """
    if len(octets) == 0 or len(octets) % 4:
        raise ValueError(f"a key has 4 octets a coordinate, not {len(octets)} in all")
    n = torch.from_numpy(np.frombuffer(octets, dtype=">u4").astype(np.float64))
    match scheme:
        case "v1-uniform":
            return (0.5 + 0.5 * (n / 2.0**32)).float()
        case "v2-gauss":
            v = (n + 0.5) / 2.0**32
            return (math.sqrt(2) * torch.special.erfinv(2 * v - 1)).float()
        case other:
            raise ValueError(f"unknown key scheme {other!r}")
