"""A picture in, a picture out: exactly `scale` times as large, in tiles, with the colours of the input.

What both methods of the family need around their networks (resshift-diffusion.md 4). No colour is corrected; a gray
picture comes back gray; alpha is enlarged bicubically beside the colours, which are restored as if nothing were
transparent. Memory for intermediate results does not grow with the height of the picture, and with its width only by
one row of tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from shared.images import Picture, Pixels
from shared.resshift.noise import NoiseField, Place, draws
from shared.resshift.padding import pad_reflect
from shared.resshift.sampler import OnStep
from shared.resshift.tiling import Axis, Band

LUMA = (0.299, 0.587, 0.114)  # of R, G, B: ITU-R BT.601

Generate = Callable[[Tensor, Iterator[Tensor], OnStep], Tensor]
"""(lq, noise, on_step) -> restored tiles

lq       (B, 3, h, w)                in [-1, 1]; the sides are multiples of `multiple`
noise    yields (B, channels, scale h / factor, scale w / factor) normals
returns  (B, 3, scale h, scale w)    about [-1, 1]
"""


@dataclass(frozen=True)
class Tiles:
    """How a model takes a picture apart. Sides are in pixels of the input."""

    scale: int
    """how many times larger the result is"""
    factor: int
    """of the autoencoder, which sees the enlarged picture"""
    channels: int
    """of the latent"""
    multiple: int
    """what the sides of a tile must be multiples of"""
    tile: int
    overlap: int
    a_pass: int
    """tiles that are computed together"""

    def axis(self, length: int) -> Axis:
        """The tiles along a side. They begin where a position of the latent does."""
        grain = math.lcm(self.scale, self.factor) // self.scale
        return Axis.plan(length, self.tile, self.tile - self.overlap, multiple=self.multiple, grain=grain)

    def count(self, height: int, width: int) -> int:
        """How many tiles a picture has."""
        return len(self.axis(height).starts) * len(self.axis(width).starts)

    def latent(self, length: int) -> int:
        """A length in pixels of the input in positions of the latent."""
        return length * self.scale // self.factor


def enlarge(
    pictures: Sequence[Picture],
    seeds: Sequence[int],
    generate: Generate,
    tiles: Tiles,
    device: torch.device,
    on_step: OnStep,
) -> list[Picture]:
    """Restore pictures of one size.

    seeds    one a picture: the same picture with the same seed gives the same result, whatever is beside it
    on_step  told the steps of all tiles together, before each is taken; raises to cancel
    returns  pictures of `scale` times the sides
    """
    height, width = pictures[0].pixels.shape[:2]
    if any(picture.pixels.shape[:2] != (height, width) for picture in pictures):
        raise ValueError("the pictures of a batch have one size")
    rows, columns = tiles.axis(height), tiles.axis(width)
    padded = [
        pad_reflect(torch.tensor(picture.pixels).permute(2, 0, 1), rows.padded, columns.padded) for picture in pictures
    ]
    fields = [NoiseField(seed, tiles.channels) for seed in seeds]
    bands = [Band(rows, columns, 3, tiles.scale, "gaussian") for _ in pictures]
    results = [np.empty((height * tiles.scale, width * tiles.scale, 3), np.uint8) for _ in pictures]
    jobs = [(index, column) for index in range(len(pictures)) for column in range(len(columns.starts))]
    passes = [jobs[start : start + tiles.a_pass] for start in range(0, len(jobs), tiles.a_pass)]
    shape = tiles.latent(rows.tile), tiles.latent(columns.tile)
    done, filled = 0, 0
    for top in rows.starts:
        for chosen in passes:
            lefts = [columns.starts[column] for _, column in chosen]
            lq = torch.stack(
                [
                    padded[index][:, top : top + rows.tile, left : left + columns.tile]
                    for (index, _), left in zip(chosen, lefts, strict=True)
                ]
            )
            places = [
                Place(fields[index], tiles.latent(top), tiles.latent(left), *shape)
                for (index, _), left in zip(chosen, lefts, strict=True)
            ]
            restored = generate(
                lq.to(device).float() / 127.5 - 1,
                draws(places, device),
                _within(on_step, done, len(passes) * len(rows.starts)),
            )
            for (index, column), tile in zip(chosen, restored.clamp(-1, 1), strict=True):
                bands[index].add(column, tile)
            done += 1
        finished = [band.next_row() for band in bands]
        for picture, result, part in zip(pictures, results, finished, strict=True):
            _fill(result, filled, part, gray=picture.gray)
        filled += finished[0].shape[1]
    return [
        Picture(result, _enlarged(picture.alpha, tiles.scale), picture.gray)
        for picture, result in zip(pictures, results, strict=True)
    ]


def restore(
    pictures: Sequence[Picture],
    seeds: Sequence[int],
    generate: Generate,
    tiles: Tiles,
    device: torch.device,
    on_step: OnStep,
) -> list[Picture]:
    """Restore pictures of one size at that size. A model that enlarges gets them reduced as many times before.

    Reducing averages squares of `scale` x `scale` pixels: for pictures whose detail is lost already.
    """
    if tiles.scale == 1:
        return enlarge(pictures, seeds, generate, tiles, device, on_step)
    height, width = pictures[0].pixels.shape[:2]
    reduced = [
        replace(picture, pixels=np.asarray(PIL.Image.fromarray(picture.pixels).reduce(tiles.scale)), alpha=None)
        for picture in pictures
    ]
    enlarged = enlarge(reduced, seeds, generate, tiles, device, on_step)
    return [
        Picture(np.ascontiguousarray(result.pixels[:height, :width]), picture.alpha, picture.gray)
        for picture, result in zip(pictures, enlarged, strict=True)
    ]


def _within(on_step: OnStep, done: int, passes: int) -> OnStep:
    return lambda step, of: on_step(done * of + step, passes * of)


def _fill(result: Pixels, top: int, part: Tensor, *, gray: bool) -> None:
    """Write finished rows (3, rows, W) in [-1, 1] into a picture; what was padded falls off."""
    height, width = result.shape[:2]
    part = part[:, : max(height - top, 0), :width]
    if gray:
        part = torch.einsum("c,chw->hw", torch.tensor(LUMA), part).expand(3, -1, -1)
    rows = (part * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    result[top : top + rows.shape[1]] = rows.permute(1, 2, 0).numpy()


def _enlarged(alpha: Pixels | None, scale: int) -> Pixels | None:
    if alpha is None or scale == 1:
        return alpha
    height, width = alpha.shape
    image = PIL.Image.fromarray(alpha).resize((width * scale, height * scale), PIL.Image.Resampling.BICUBIC)
    return np.array(image)
