"""Large pictures in overlapping tiles of one size: where they lie, and how they are put together again.

A plan for a picture is the product of a plan for its rows and one for its columns, and so are the weights of blending:
each axis has a window a tile, scaled so that all windows add up to one everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.resshift.padding import up_to_multiple

Window = Literal["flat", "gaussian"]
"""How a tile's weight falls off towards its edges: not at all, as the references do it, or as a bell."""

GAUSSIAN_VARIANCE = 0.01  # of the bell over a tile of width 1: at the edges 3.7e-6 of the middle


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin along an axis: every `stride`, the last ones moved back to end with the picture."""
    if length <= tile:
        return [0]
    starts: dict[int, None] = {}  # in order, without repetition
    for start in range(0, length, stride):
        starts[min(start, length - tile)] = None
    return list(starts)


@dataclass(frozen=True)
class Axis:
    """Equal tiles along one side of a picture."""

    padded: int
    """length of the side once it is padded"""
    tile: int
    """length of a tile, at most `padded`"""
    starts: tuple[int, ...]

    @classmethod
    def plan(cls, length: int, tile: int, stride: int, *, multiple: int, grain: int = 1) -> Axis:
        """Tiles for a side of `length`.

        multiple  what the network can divide: a side of at most one tile is padded to it
        grain     where tiles may begin: a longer side is padded to it
        """
        if tile % multiple or stride % grain or not 0 < stride <= tile:
            raise ValueError(f"tile {tile}, stride {stride}, multiple {multiple} and grain {grain} do not fit together")
        if length <= tile:
            padded = up_to_multiple(length, multiple)
            return cls(padded, padded, (0,))
        padded = up_to_multiple(length, grain)
        return cls(padded, tile, tuple(tile_starts(padded, tile, stride)))

    def weights(self, factor: int, window: Window) -> list[Tensor]:
        """One window a tile, in samples of the result, `factor` times as many: together they are one everywhere."""
        shape = _window(self.tile * factor, window)
        total = np.zeros(self.padded * factor)
        for start in self.starts:
            total[start * factor : start * factor + len(shape)] += shape
        return [
            torch.from_numpy((shape / total[start * factor : start * factor + len(shape)]).astype(np.float32))
            for start in self.starts
        ]


def _window(length: int, window: Window) -> NDArray[np.float64]:
    if window == "flat":
        return np.ones(length)
    place = (np.arange(length) + 0.5) / length - 0.5
    bell: NDArray[np.float64] = np.exp(-(place**2) / (2 * GAUSSIAN_VARIANCE))
    return bell


class Band:
    """Blends rows of tiles into a picture from the top down, and holds no more than one row of them.

    Tiles are (C, th, tw) float32 in samples of the result.
    """

    def __init__(self, rows: Axis, columns: Axis, channels: int, factor: int, window: Window) -> None:
        self._rows, self._factor = rows, factor
        self._row_weights = rows.weights(factor, window)
        self._column_weights = columns.weights(factor, window)
        self._columns = columns
        self._sum = torch.zeros(channels, rows.tile * factor, columns.padded * factor)
        self._row = 0

    def add(self, column: int, tile: Tensor) -> None:
        """Blend in a tile of the current row."""
        left = self._columns.starts[column] * self._factor
        wide = self._column_weights[column]
        weights = self._row_weights[self._row][:, None] * wide
        self._sum[:, :, left : left + len(wide)] += tile.to("cpu", torch.float32) * weights

    def next_row(self) -> Tensor:
        """End the current row. Returns what no later tile reaches, (C, rows, W), directly below what came before."""
        starts = self._rows.starts
        last = self._row == len(starts) - 1
        done = self._rows.tile if last else starts[self._row + 1] - starts[self._row]
        done *= self._factor
        finished = self._sum[:, :done].clone()
        rest = self._sum.shape[1] - done
        self._sum[:, :rest] = self._sum[:, done:].clone()
        self._sum[:, rest:] = 0
        self._row += 1
        return finished
