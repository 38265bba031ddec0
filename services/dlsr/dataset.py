"""Pictures that the shipped detectors learn from and are judged on, read from packed sets."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from services.dlsr.encoder import Encoder
from services.dlsr.encoding import Features, encode
from shared.face_crops import aligned_template, similarity, warp_crop
from shared.faces import FaceFinder
from shared.images import Picture, Pixels

IND = "cifar10_32"
NEAR = "cifar100_32"
FAR = ("dtd10_128", "food101_64", "mnist_28", "omniglot_48", "imagenet_sample_128")
FACES = ("faces_utk_128", "faces_lfw_gray_128", "rafdb_100")
FACE_PX = 64
SEED = 20250601
ALL = ("train", "val", "test")


@dataclass(frozen=True)
class Part:
    """Some pictures of a set: those of its splits, at most so many, drawn with SEED.

    faces     cut the face out of every picture, upright, as the face service does; where none is found, leave it out
    mirrored  the mirror image of every picture, left to right
    """

    name: str
    splits: tuple[str, ...]
    at_most: int | None = None
    faces: bool = False
    mirrored: bool = False

    @property
    def file(self) -> str:
        """What its features are called in a cache."""
        marks = [mark for mark, there in (("faces", self.faces), ("mirrored", self.mirrored)) if there]
        return "-".join([self.name, *self.splits, str(self.at_most or "all"), *marks])


def pictures(data: Path, part: Part) -> Iterator[Picture]:
    """The pictures of a part in the order of the set. Raises FileNotFoundError where the set is missing."""
    finder = FaceFinder.load() if part.faces else None
    for pixels in _pixels(data, part):
        found = pixels if finder is None else aligned(finder, pixels)
        if found is not None:
            yield Picture(np.ascontiguousarray(found[:, ::-1]) if part.mirrored else found)


def aligned(finder: FaceFinder, photo: Pixels) -> Pixels | None:
    """The face (FACE_PX, FACE_PX, 3) of a photo that shows one face and little else; None where none is found."""
    face = finder.landmarks_of_crop(photo)
    if face is None:
        return None
    return warp_crop(photo, similarity(face.landmarks, aligned_template(FACE_PX)), FACE_PX)


def features(data: Path, part: Part, encoder: Encoder, cache: Path) -> Features:
    """Features of a part; what this encoder made before is read from `cache`."""
    path = cache / encoder.fingerprint[:16] / f"{part.file}.npz"
    if not path.exists():
        made = encode(encoder, pictures(data, part))
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.npz")
        np.savez(unfinished, vectors=made.vectors.numpy(), keys=np.array(made.keys))
        unfinished.replace(path)
    return read(path)


def read(path: Path) -> Features:
    """Features that `features` wrote."""
    with np.load(path) as kept:
        return Features(torch.from_numpy(kept["vectors"]), tuple(map(str, kept["keys"])))


def joined(parts: Sequence[Features]) -> Features:
    """Several parts as one."""
    return Features(torch.cat([part.vectors for part in parts]), tuple(key for part in parts for key in part.keys))


def _pixels(data: Path, part: Part) -> Iterator[Pixels]:
    packed = data / f"{part.name}.npz"
    if packed.exists():
        with np.load(packed) as kept:
            images, splits = kept["images"], kept["split"]
        for place in _chosen(splits, part):
            pixels = images[place]
            yield np.stack([pixels] * 3, axis=2) if pixels.ndim == 2 else pixels
        return
    with zipfile.ZipFile(data / f"{part.name}.zip") as archive:
        with archive.open("index.csv") as index:
            rows = list(csv.DictReader(io.TextIOWrapper(index, encoding="utf-8")))
        for place in _chosen(np.array([row["split"] for row in rows]), part):
            with Image.open(io.BytesIO(archive.read(rows[place]["file"]))) as picture:
                yield np.asarray(picture.convert("RGB"))


def _chosen(splits: np.ndarray, part: Part) -> list[int]:
    places = np.flatnonzero(np.isin(splits, part.splits))
    if part.at_most is not None and part.at_most < len(places):
        places = np.sort(np.random.default_rng(SEED).choice(places, part.at_most, replace=False))
    return [int(place) for place in places]
