"""Pictures of two kinds, made by code: waves in warm colours, and checkers in cold ones."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import numpy as np
import PIL.Image
from numpy.typing import NDArray


def _png(pixels: NDArray[np.float64]) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def wave(seed: int, side: int = 32) -> bytes:
    """Usual."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(1, 4), rng.uniform(0, 2 * np.pi)
    light = np.sin(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    color = np.array([200.0, 120.0, 60.0]) + rng.normal(0, 12, 3)
    return _png(color * (0.7 + 0.3 * light[..., None]) + rng.normal(0, 4, (side, side, 3)))


def checker(seed: int, side: int = 32) -> bytes:
    """Strange."""
    rng = np.random.default_rng(seed)
    step = int(rng.integers(2, 7))
    y, x = np.mgrid[:side, :side]
    light = (x // step + y // step) % 2
    color = np.array([40.0, 90.0, 220.0]) + rng.normal(0, 12, 3)
    return _png(color * (0.2 + 0.8 * light[..., None]) + rng.normal(0, 4, (side, side, 3)))


def zipped(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def waves(count: int, first: int = 0) -> bytes:
    """An archive of usual pictures, of mixed sizes."""
    return zipped({f"waves/{seed}.png": wave(seed, 28 + seed % 9) for seed in range(first, first + count)})
