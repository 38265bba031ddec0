"""Noise of a whole picture that is drawn where it is needed, so that its size costs no memory.

A field of normals is made of square blocks, each from a seed of its own: a tile cut from it holds the same numbers
whatever else is drawn, before, after, or on which device it is used. Overlapping tiles agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64  # side in latent samples


@dataclass(frozen=True)
class NoiseField:
    """The normals of one picture: a field for the start of the chain (draw 0), and one for every step (1, 2, ...)."""

    seed: int
    channels: int

    def cut(self, draw: int, top: int, left: int, height: int, width: int) -> Tensor:
        """A part of a field, (C, height, width) float32 on the CPU."""
        first_row, first_column = top // BLOCK, left // BLOCK
        rows = range(first_row, -(-(top + height) // BLOCK))
        columns = range(first_column, -(-(left + width) // BLOCK))
        field = torch.cat([torch.cat([self._block(draw, r, c) for c in columns], 2) for r in rows], 1)
        y, x = top - first_row * BLOCK, left - first_column * BLOCK
        return field[:, y : y + height, x : x + width]

    def _block(self, draw: int, row: int, column: int) -> Tensor:
        digest = hashlib.sha256(f"{self.seed}/{draw}/{row}/{column}".encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.randn(self.channels, BLOCK, BLOCK, generator=rng)


@dataclass(frozen=True)
class Place:
    """A tile: which picture's noise, and where."""

    field: NoiseField
    top: int
    left: int
    height: int
    width: int


def draws(places: Sequence[Place], device: torch.device) -> Iterator[Tensor]:
    """The noise of a batch of tiles, (B, C, h, w): for the start, then step by step without end."""
    draw = 0
    while True:
        yield torch.stack([p.field.cut(draw, p.top, p.left, p.height, p.width) for p in places]).to(device)
        draw += 1
