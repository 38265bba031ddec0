"""Small things to train on: pairs, a loss and an autoencoder that take milliseconds."""

from __future__ import annotations

import csv
import dataclasses
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from shared.nn.efficientnet import LITE0, EfficientNet
from shared.resshift.imageloss import ImageLoss
from shared.resshift.smallautoencoder import SmallAutoencoder
from shared.resshift.trainingdata import SET, Pairs, Shelf

COLUMNS = ("file", "split", "set", "role", "licence")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs() -> Pairs:
    """Blocks of colour, which a poor picture shows blurred."""
    rng = seeded(0)
    lq = torch.randint(0, 255, (2, 1, 3, 24, 24), generator=rng, dtype=torch.uint8)
    hr = torch.nn.functional.interpolate(lq[:, 0].float(), scale_factor=4, mode="nearest").to(torch.uint8)
    return Pairs((Shelf(hr, lq),))


def loss() -> ImageLoss:
    """With features of a thin network of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = EfficientNet(dataclasses.replace(LITE0, width=0.25))
    return ImageLoss(network.eval(), perceptual_weight=0.1)


def autoencoder() -> SmallAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        made: SmallAutoencoder = SmallAutoencoder(
            factor=4,
            latent_channels=3,
            encoder_width=8,
            encoder_blocks=1,
            decoder_width=8,
            decoder_blocks=1,
            fine_width=8,
        )
        return made


def packed(folder: Path, sizes: Mapping[str, tuple[int, int]]) -> Path:
    """A set of noise pictures in the form of natural_sr.zip; those below 100 px wide are to test on."""
    rng = np.random.default_rng(0)
    text = io.StringIO()
    index = csv.DictWriter(text, COLUMNS)
    index.writeheader()
    with zipfile.ZipFile(folder / SET, "w") as archive:
        for name, (width, height) in sizes.items():
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(stream, "PNG")
            archive.writestr(name, stream.getvalue())
            split = "test" if width < 100 else "train"
            index.writerow({"file": name, "split": split, "set": "Set5", "role": "hr", "licence": "-"})
        archive.writestr("index.csv", text.getvalue())
    return folder
