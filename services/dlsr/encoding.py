"""Pictures to features: the one way by which every picture goes, when a detector is fitted and when it scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from services.dlsr.encoder import Encoder, EncoderConfig
from shared.images import Picture, Pixels, over_white


@dataclass(frozen=True, eq=False)
class Features:
    """Vectors of pictures, (N, D) float32 on the CPU, and a key each: equal where the encoder saw equal pixels."""

    vectors: Tensor
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.keys) or self.vectors.dtype != torch.float32:
            raise ValueError(f"{self.vectors.dtype} {tuple(self.vectors.shape)} with {len(self.keys)} keys")

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, places: Sequence[int] | NDArray[np.int64]) -> Features:
        """Those at some places, in that order."""
        chosen = [int(place) for place in places]
        return Features(self.vectors[chosen], tuple(self.keys[place] for place in chosen))


def prepared(picture: Picture, config: EncoderConfig) -> Pixels:
    """The pixels that the encoder sees, (S, S, 3): over white, stretched to a square with PIL's bilinear filter."""
    image = Image.fromarray(np.ascontiguousarray(over_white(picture).pixels))
    for side in (config.first_px, config.input_px):
        if side is not None and image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image)


def key_of(array: NDArray[np.uint8] | NDArray[np.float32]) -> str:
    """SHA-256 (hex) of an item: of its prepared pixels, or of a vector that came without a picture."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def encode(
    encoder: Encoder, pictures: Iterable[Picture], on_batch: Callable[[int], None] = lambda done: None
) -> Features:
    """Features of pictures, batch by batch; `on_batch` is told how many are done, and what it raises goes through."""
    return encode_prepared(encoder, (prepared(picture, encoder.config) for picture in pictures), on_batch)


def encode_prepared(
    encoder: Encoder, pixels: Iterable[Pixels], on_batch: Callable[[int], None] = lambda done: None
) -> Features:
    """The same of pixels that `prepared` gave, perhaps in another thread."""
    vectors = [torch.empty(0, encoder.dimension)]
    keys: list[str] = []
    for chunk in _chunks(pixels, encoder.batch):
        vectors.append(encoder(torch.from_numpy(np.stack(chunk))))
        keys.extend(map(key_of, chunk))
        on_batch(len(keys))
    return Features(torch.cat(vectors), tuple(keys))


def _chunks(pixels: Iterable[Pixels], size: int) -> Iterator[list[Pixels]]:
    rest = iter(pixels)
    while chunk := list(islice(rest, size)):
        yield chunk


def given(vectors: NDArray[np.float32]) -> Features:
    """Features that came without pictures, (N, D) float32."""
    return Features(torch.from_numpy(vectors), tuple(map(key_of, vectors)))
