"""Faces to learn from and to be judged on: read from packed sets, found, cut out upright, kept in one file."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from shared.faces import FaceFinder, aligned_template, similarity, warp_crop

SETS = ("faces_utk_128", "faces_lfw_gray_128", "rafdb_100")
FACE_PX = 64


@dataclass(frozen=True, eq=False)
class Faces:
    """Aligned faces of one or more sets, in the order of the sets' indexes."""

    pictures: Tensor  # (N, 3, FACE_PX, FACE_PX) uint8, RGB
    identity: NDArray[np.int64]  # -1 where the set has no identities
    split: NDArray[np.str_]  # train, val or test
    source: NDArray[np.str_]  # name of the set

    def __len__(self) -> int:
        return len(self.pictures)

    def where(self, chosen: NDArray[np.bool_]) -> Faces:
        """Those for which `chosen` (N,) is true."""
        pictures = self.pictures[torch.from_numpy(np.flatnonzero(chosen))]
        return Faces(pictures, self.identity[chosen], self.split[chosen], self.source[chosen])

    def of(self, split: str) -> Faces:
        """Those of one split."""
        return self.where(self.split == split)


def photographs(data: Path, name: str) -> Iterator[tuple[dict[str, str], NDArray[np.uint8]]]:
    """Rows of the index of `data/name.zip`, each with its picture (H, W, 3), RGB."""
    with zipfile.ZipFile(data / f"{name}.zip") as archive, archive.open("index.csv") as index:
        for row in csv.DictReader(io.TextIOWrapper(index, encoding="utf-8")):
            with Image.open(io.BytesIO(archive.read(row["file"]))) as picture:
                yield row, np.asarray(picture.convert("RGB"))


def align(finder: FaceFinder, photo: NDArray[np.uint8], size: int = FACE_PX) -> NDArray[np.uint8] | None:
    """The face (size, size, 3) of a photo that shows one face and little else; None where none is found."""
    face = finder.landmarks_of_crop(photo)
    if face is None:
        return None
    return warp_crop(photo, similarity(face.landmarks, aligned_template(size)), size)


def load_faces(data: Path, cache: Path, sets: Iterable[str] = SETS) -> Faces:
    """All faces of the packed sets in the folder `data`; what was aligned before is read from `cache`.

    Pictures without a findable face are left out. Raises FileNotFoundError where a set is missing.
    """
    parts = [_load_set(data, cache, name) for name in sets]
    return Faces(
        torch.cat([part.pictures for part in parts]),
        np.concatenate([part.identity for part in parts]),
        np.concatenate([part.split for part in parts]),
        np.concatenate([part.source for part in parts]),
    )


def _load_set(data: Path, cache: Path, name: str) -> Faces:
    path = cache / f"{name}.aligned{FACE_PX}.npz"
    if not path.exists():
        finder = FaceFinder.load()
        rows, crops = [], []
        for row, photo in photographs(data, name):
            crop = align(finder, photo)
            if crop is not None:
                rows.append(row)
                crops.append(crop)
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(
            part,
            pictures=np.stack(crops).transpose(0, 3, 1, 2),
            identity=np.array([int(row.get("identity", -1)) for row in rows], dtype=np.int64),
            split=np.array([row["split"] for row in rows]),
        )
        part.replace(path)
    with np.load(path) as kept:
        split = kept["split"]
        return Faces(torch.from_numpy(kept["pictures"]), kept["identity"], split, np.full(len(split), name))
