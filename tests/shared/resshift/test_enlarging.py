"""A picture in, a picture out: sizes, colours, tiles, memory, cancel."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.images import Picture
from shared.resshift.enlarging import Tiles, enlarge, restore
from shared.resshift.sampler import OnStep

CPU = torch.device("cpu")
SR = Tiles(scale=4, factor=4, channels=3, multiple=8, tile=16, overlap=4, a_pass=2)
FACES = Tiles(scale=1, factor=8, channels=8, multiple=16, tile=32, overlap=8, a_pass=1)


def nearest(lq: Tensor, noise: Iterator[Tensor], on_step: OnStep) -> Tensor:
    """The picture with every pixel repeated: whatever the tiles, the result is known."""
    on_step(0, 1)
    return F.interpolate(lq, scale_factor=4, mode="nearest")


def unchanged(lq: Tensor, noise: Iterator[Tensor], on_step: OnStep) -> Tensor:
    on_step(0, 1)
    return lq


def noisy(lq: Tensor, noise: Iterator[Tensor], on_step: OnStep) -> Tensor:
    """Noise of the latent and nothing else."""
    on_step(0, 1)
    return F.interpolate(next(noise), scale_factor=4, mode="nearest") / 4


def ignore(step: int, of: int) -> None:
    return None


def drawn(height: int, width: int, seed: int = 0, *, alpha: bool = False, gray: bool = False) -> Picture:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if gray:
        pixels = np.ascontiguousarray(np.broadcast_to(pixels[:, :, :1], pixels.shape))
    return Picture(pixels, rng.integers(0, 256, (height, width), dtype=np.uint8) if alpha else None, gray)


@settings(max_examples=25)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 3))
def test_a_picture_of_any_size_comes_back_four_times_as_large_and_in_place(height: int, width: int, count: int) -> None:
    pictures = [drawn(height, width, seed) for seed in range(count)]
    for picture, result in zip(pictures, enlarge(pictures, range(count), nearest, SR, CPU, ignore), strict=True):
        assert result.pixels.shape == (4 * height, 4 * width, 3)
        assert np.array_equal(result.pixels, picture.pixels.repeat(4, 0).repeat(4, 1))


@settings(max_examples=25)
@given(st.integers(1, 90), st.integers(1, 90))
def test_a_face_comes_back_at_its_size(height: int, width: int) -> None:
    picture = drawn(height, width)
    (result,) = enlarge([picture], [0], unchanged, FACES, CPU, ignore)
    assert np.array_equal(result.pixels, picture.pixels)


@settings(max_examples=25)
@given(st.integers(1, 70), st.integers(1, 70))
def test_a_model_that_enlarges_restores_a_reduced_picture(height: int, width: int) -> None:
    flat = Picture(np.full((height, width, 3), (10, 200, 77), np.uint8), np.full((height, width), 5, np.uint8))
    (result,) = restore([flat], [0], nearest, SR, CPU, ignore)
    assert np.array_equal(result.pixels, flat.pixels)
    assert result.alpha is flat.alpha


def test_reducing_averages() -> None:
    picture = drawn(16, 24)
    (result,) = restore([picture], [0], nearest, SR, CPU, ignore)
    means = picture.pixels.reshape(4, 4, 6, 4, 3).mean((1, 3))
    assert np.abs(result.pixels.astype(int) - means.repeat(4, 0).repeat(4, 1)).max() <= 0.51


def test_a_model_that_keeps_the_size_restores_the_picture_itself() -> None:
    picture = drawn(40, 20, alpha=True)
    (result,) = restore([picture], [0], unchanged, FACES, CPU, ignore)
    assert np.array_equal(result.pixels, picture.pixels)
    assert result.alpha is picture.alpha


def test_alpha_is_enlarged_bicubically_beside_the_colours() -> None:
    picture = drawn(20, 30, alpha=True)
    (result,) = enlarge([picture], [0], nearest, SR, CPU, ignore)
    assert picture.alpha is not None
    assert result.alpha is not None
    expected = PIL.Image.fromarray(picture.alpha).resize((120, 80), PIL.Image.Resampling.BICUBIC)
    assert np.array_equal(result.alpha, np.asarray(expected))
    assert np.array_equal(result.pixels, picture.pixels.repeat(4, 0).repeat(4, 1))


def test_gray_stays_gray_whatever_the_network_paints() -> None:
    def tinted(lq: Tensor, noise: Iterator[Tensor], on_step: OnStep) -> Tensor:
        return nearest(lq, noise, on_step) + torch.tensor([0.1, -0.05, 0.02])[:, None, None]

    (result,) = enlarge([drawn(20, 30, gray=True)], [0], tinted, SR, CPU, ignore)
    assert result.gray
    assert (result.pixels == result.pixels[:, :, :1]).all()


def test_black_and_white_are_reached_and_not_passed() -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = 255

    def stronger(lq: Tensor, noise: Iterator[Tensor], on_step: OnStep) -> Tensor:
        return 3 * nearest(lq, noise, on_step)

    (result,) = enlarge([Picture(pixels)], [0], stronger, SR, CPU, ignore)
    assert np.array_equal(result.pixels, pixels.repeat(4, 0).repeat(4, 1))


def test_neighbouring_tiles_share_their_noise() -> None:
    (tiled,) = enlarge([drawn(30, 40)], [3], noisy, SR, CPU, ignore)
    whole = Tiles(scale=4, factor=4, channels=3, multiple=8, tile=64, overlap=0, a_pass=1)
    (at_once,) = enlarge([drawn(30, 40)], [3], noisy, whole, CPU, ignore)
    assert np.abs(tiled.pixels.astype(int) - at_once.pixels).max() <= 1


def test_a_seed_gives_the_same_picture_alone_and_in_a_batch() -> None:
    pictures = [drawn(20, 20, seed) for seed in range(3)]
    together = enlarge(pictures, [5, 6, 7], noisy, SR, CPU, ignore)
    for picture, seed, result in zip(pictures, (5, 6, 7), together, strict=True):
        (alone,) = enlarge([picture], [seed], noisy, SR, CPU, ignore)
        assert np.array_equal(alone.pixels, result.pixels)
    assert not np.array_equal(together[0].pixels, together[1].pixels)


def test_progress_counts_the_steps_of_all_tiles() -> None:
    told: list[tuple[int, int]] = []

    def three_steps(lq: Tensor, noise: Iterator[Tensor], on_step: OnStep) -> Tensor:
        for step in range(3):
            on_step(step, 3)
        return F.interpolate(lq, scale_factor=4, mode="nearest")

    enlarge([drawn(40, 28)], [0], three_steps, SR, CPU, lambda step, of: told.append((step, of)))
    assert SR.count(40, 28) == 6
    assert told == [(step, 9) for step in range(9)], "3 rows of one pass of 2 tiles, 3 steps each"


def test_what_on_step_raises_comes_out() -> None:
    def stop(step: int, of: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enlarge([drawn(60, 60)], [0], nearest, SR, CPU, stop)


def test_pictures_of_two_sizes_are_no_batch() -> None:
    with pytest.raises(ValueError, match="one size"):
        enlarge([drawn(8, 8), drawn(8, 9)], [0, 0], nearest, SR, CPU, ignore)


def test_a_tall_picture_needs_no_more_memory_than_its_pixels() -> None:
    code = """
import resource, numpy as np, torch, torch.nn.functional as F
from shared.images import Picture
from shared.resshift.enlarging import Tiles, enlarge

def peak_mib(height):
    tiles = Tiles(scale=4, factor=4, channels=3, multiple=8, tile=64, overlap=8, a_pass=1)
    def nearest(lq, noise, on_step):
        next(noise)
        return F.interpolate(lq, scale_factor=4, mode="nearest")
    enlarge([Picture(np.zeros((height, 64, 3), np.uint8))], [0], nearest, tiles, torch.device("cpu"), lambda *_: None)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

print(-peak_mib(256) + peak_mib(8192))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result_mib = 4 * 8192 * 4 * 64 * 3 / 2**20  # 24: as float32 it would be 96
    assert float(done.stdout) < 2.5 * result_mib
