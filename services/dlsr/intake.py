"""The pictures of an archive as features, part by part: what a killed job has encoded, the next attempt finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load, save

from services.dlsr.encoder import Encoder
from services.dlsr.encoding import Features, encode_prepared, prepared
from services.dlsr.service import UNREADABLE_SHARE, PicturesUnreadable, TooFewPictures, Unreadable
from shared.archivework import chunks
from shared.jobcontext import JobContext
from shared.manifests import entries_of
from shared.types import Archive, File

PART = 64  # pictures: half a second of encoding on one core
MOST_NAMED = 100


class _Vectors(File):
    """Feature vectors, as safetensors."""

    media_types: ClassVar[tuple[str, ...]] = ("application/octet-stream",)

    @classmethod
    def of(cls, vectors: torch.Tensor) -> Self:
        return cls._unstored(cls.media_types[0], save({"vectors": vectors.contiguous()}))


@dataclass(frozen=True)
class Encoded:
    """Features of the readable pictures of an archive, what they are called, and what was left out."""

    features: Features
    ids: tuple[str, ...]
    unreadable: tuple[Unreadable, ...]

    def named(self) -> list[Unreadable]:
        """As many of those that were left out as an answer has."""
        return list(self.unreadable[:MOST_NAMED])


def encoded(archive: Archive, encoder: Encoder, job: JobContext, least: int) -> Encoded:
    """Encode an archive, all of which is needed: units of the job, with their vectors as files that go with it.

    Raises `TooFewPictures` for fewer than `least`, `PicturesUnreadable` where too many cannot be read.
    """
    count = len(entries_of(archive.opened))
    if count < least:
        raise TooFewPictures(f"There are {count} pictures; {least} are needed.", least=least, found=count)
    for chunk in chunks(archive, job, partial(prepared, config=encoder.config), PART):
        features = encode_prepared(encoder, [item.content for item in chunk.items])
        bad = [(entry.id, problem.code) for entry, problem in chunk.problems]
        output = {"vectors": _Vectors.of(features.vectors), "keys": features.keys, "bad": bad}
        job.unit(chunk.index, chunk.of, {**output, "ids": [item.entry.id for item in chunk.items]})
        job.progress(min((chunk.index + 1) * PART, count), count)
    parts = [output for _, output in sorted(job.outputs().items())]
    left_out = unreadable((part["bad"] for part in parts), count)
    vectors = [load(job.read(part["vectors"]["file"]))["vectors"] for part in parts]
    keys = tuple(key for part in parts for key in part["keys"])
    return Encoded(Features(torch.cat(vectors), keys), tuple(name for part in parts for name in part["ids"]), left_out)


def unreadable(parts: Iterator[Sequence[Any]], count: int) -> tuple[Unreadable, ...]:
    """What was left out of `count` pictures. Raises `PicturesUnreadable` where that is more than a twentieth."""
    left_out = tuple(Unreadable(id=name, code=code) for part in parts for name, code in part)
    if len(left_out) > UNREADABLE_SHARE * count:
        raise PicturesUnreadable(
            f"{len(left_out)} of {count} pictures cannot be read.",
            unreadable=[one.model_dump() for one in left_out[:MOST_NAMED]],
        )
    return left_out
