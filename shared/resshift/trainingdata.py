"""Pairs of sharp and spoilt pictures from natural_sr.zip: spoilt once, whole, into a cache; cut out at each step."""

from __future__ import annotations

import csv
import io
import logging
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from shared.resshift.degradation import SCALE, TEST, TRAINING, degrade, shrunk

log = logging.getLogger(__name__)

SET = "natural_sr.zip"
LONG_PX, SHORT_PX = 480, 320  # of BSDS500's 481 x 321; portraits are turned
SIZES = ((LONG_PX, SHORT_PX), (336, 224))  # the second shrunk: sharper than the JPEG files are at full size
MILD, HARD, PLAIN = "mild", "hard", "plain"
VARIANTS = (MILD, MILD, MILD, MILD, HARD, PLAIN)  # how each picture is spoilt
CACHE = "pairs.{seed}.pt"


@dataclass(frozen=True)
class Photograph:
    """A picture of the set."""

    name: str
    split: str  # train, val or test
    group: str  # BSDS500, Set5, ...
    has_truth: bool  # whether the picture is sharp, or a real poor one
    pixels: Tensor  # (3, H, W), 0..1


def photographs(data: Path, split: str) -> Iterator[Photograph]:
    """The pictures of a split of `data/natural_sr.zip`, in its order. Raises FileNotFoundError."""
    with zipfile.ZipFile(data / SET) as archive, archive.open("index.csv") as index:
        for row in csv.DictReader(io.TextIOWrapper(index, encoding="utf-8")):
            if row["split"] != split:
                continue
            with Image.open(io.BytesIO(archive.read(row["file"]))) as picture:
                pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1).float() / 255
            yield Photograph(row["file"], split, row["set"], row["role"] == "hr", pixels)


def spoilt(hr: Tensor, variant: str, rng: Generator) -> Tensor:
    """A picture (B, 3, H, W), 0..1, spoilt in one of the VARIANTS."""
    if variant == PLAIN:
        return shrunk(hr)
    return degrade(hr, TRAINING if variant == HARD else TEST, rng)


@dataclass(frozen=True, eq=False)
class Shelf:
    """Sharp pictures of one size, and each one's spoilt variants."""

    hr: Tensor  # (N, 3, H, W) uint8
    lq: Tensor  # (N, V, 3, H / 4, W / 4) uint8


@dataclass(frozen=True, eq=False)
class Pairs:
    """All pairs of a training."""

    shelves: tuple[Shelf, ...]

    def draw(self, count: int, side_px: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """Random crops, turned and mirrored at random.

        returns  hr (count, 3, side_px, side_px) and lq (count, 3, side_px / 4, side_px / 4), both in [-1, 1]
        """
        shares = torch.tensor([float(shelf.hr.numel()) for shelf in self.shelves])
        chosen = torch.multinomial(shares, count, replacement=True, generator=rng).tolist()
        cut = [self._crop(self.shelves[index], side_px, rng) for index in chosen]
        hr, lq = (torch.stack(group).float() / 127.5 - 1 for group in zip(*cut, strict=True))
        return hr, lq

    def _crop(self, shelf: Shelf, side_px: int, rng: Generator) -> tuple[Tensor, Tensor]:
        def below(limit: int) -> int:
            return int(torch.randint(limit, (1,), generator=rng))

        small_px = side_px // SCALE
        picture, variant = below(len(shelf.hr)), below(shelf.lq.shape[1])
        y, x = below(shelf.lq.shape[3] - small_px + 1), below(shelf.lq.shape[4] - small_px + 1)
        turns, mirror = below(4), below(2)
        hr = shelf.hr[picture, :, y * SCALE : y * SCALE + side_px, x * SCALE : x * SCALE + side_px]
        lq = shelf.lq[picture, variant, :, y : y + small_px, x : x + small_px]
        out = [torch.rot90(crop, turns, (1, 2)) for crop in (hr, lq)]
        first, second = (crop.flip(2) if mirror else crop for crop in out)
        return first, second


def to_uint8(x: Tensor) -> Tensor:
    """0..1 -> 0..255"""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def landscape(pixels: Tensor) -> Tensor:
    """A picture of BSDS500 lying, cut to LONG_PX by SHORT_PX."""
    lying = pixels if pixels.shape[2] > pixels.shape[1] else pixels.transpose(1, 2)
    return lying[:, :SHORT_PX, :LONG_PX]


def load_pairs(data: Path, cache: Path, seed: int) -> Pairs:
    """The pairs of the train split; made on the first call and kept in `cache`. Raises FileNotFoundError."""
    path = cache / CACHE.format(seed=seed)
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        rng = torch.Generator().manual_seed(seed)
        sharp = torch.stack([landscape(photograph.pixels) for photograph in photographs(data, "train")])
        made = []
        for width, height in SIZES:
            hr = to_uint8(F.interpolate(sharp, size=(height, width), mode="bicubic", antialias=True))
            lq = [
                torch.stack([to_uint8(spoilt(one[None].float() / 255, variant, rng)[0]) for variant in VARIANTS])
                for one in hr
            ]
            made.append({"hr": hr, "lq": torch.stack(lq)})
            log.info("pairs of %d x %d px are made", width, height)
        part = path.with_suffix(".part")
        torch.save({"seed": seed, "shelves": made}, part)
        part.replace(path)
    kept = torch.load(path, weights_only=True, mmap=True)
    return Pairs(tuple(Shelf(shelf["hr"], shelf["lq"]) for shelf in kept["shelves"]))
