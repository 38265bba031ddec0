"""DLSR: scoring vectors at paper size against the plain sampler, and pictures a second through `dlsr/small`."""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from skimage import data
from torch import Tensor

from services.dlsr import scores
from services.dlsr.lfdn import LFDN, LFDNConfig
from services.dlsr.pipeline import DlsrPipeline
from services.dlsr.reconstruction import Reconstructor, keyed_noise, start, walk
from services.dlsr.schedule import ETA, PAPER, STEPS, Step, reverse_steps
from services.dlsr.service import ScoreRequest
from shared.images import Picture, decode, encode
from shared.jobcontext import JobContext

WEIGHTS = Path("services/dlsr/weights/small")
LFDN_PAPER = LFDNConfig(720, 1440, 1440, 720, 16)
BOUNDARIES = (24, 56, 112, 272, 720)
BATCH = 64
ROUNDS = 3
SPEED_UP = 1.4
PICTURES = 128
PICTURE_PX = 128
PICTURES_A_SECOND = 100


def measure() -> dict[str, Any]:
    """Both parts."""
    vectors, pictures = measure_vectors(), measure_pictures()
    return {
        **vectors,
        **pictures,
        "bars": {
            f"vectors: >= {SPEED_UP} times the plain sampler": vectors["speed_up"] >= SPEED_UP,
            f"pictures: >= {PICTURES_A_SECOND} a second on two cores": pictures["pictures_a_second"]
            >= PICTURES_A_SECOND,
        },
    }


def measure_vectors() -> dict[str, Any]:
    """Vectors scored by mse on one thread: seconds a batch by median of interleaved rounds, noise and score included.

    The plain sampler evaluates the network at three timesteps that it embeds each time, and draws for the batch.
    """
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        network = LFDN(LFDN_PAPER).eval().requires_grad_(False)
        for layer in [network.out[-1], *(block.get_submodule("out_layers.3") for block in network.res_blocks)]:
            torch.nn.init.normal_(layer.get_parameter("weight"), std=0.02)  # at 0 nothing could differ
    steps = reverse_steps(PAPER, range(1, STEPS + 1), ETA)
    ours_of = Reconstructor(network, PAPER, steps, STEPS)
    z = torch.randn(BATCH, LFDN_PAPER.in_channels, generator=torch.Generator().manual_seed(1))
    keys = [str(place) for place in range(BATCH)]

    def every_time(x: Tensor, step: Step) -> Tensor:
        predicted: Tensor = network(x, torch.full((len(x),), step.t))
        return predicted

    def plain(noises: Tensor | None = None) -> Tensor:
        drawn = torch.randn(len(steps) + 1, *z.shape) if noises is None else noises
        x = start(PAPER, STEPS, z, drawn[0])
        for state in walk(every_time, steps, x, drawn[1:]):
            x = state.x_prev
        return scores.mse(z, x, BOUNDARIES).sum(1)

    def ours() -> Tensor:
        noises = keyed_noise(0, keys, 1, ours_of.noise_count, z.shape[1])[:, 0]
        return scores.mse(z, ours_of(z, noises), BOUNDARIES).sum(1)

    with torch.inference_mode():
        noises = keyed_noise(0, keys, 1, ours_of.noise_count, z.shape[1])[:, 0].transpose(0, 1)
        same = torch.cat([noises, torch.zeros_like(noises[:1])])
        difference = float((ours() - plain(same)).abs().max())
        times = [(_cpu_s(ours), _cpu_s(plain)) for _ in range(ROUNDS + 1)][1:]
    ours_s, plain_s = (statistics.median(of) for of in zip(*times, strict=True))
    return {
        "batch": BATCH,
        "ours_cpu_s": round(ours_s, 4),
        "plain_cpu_s": round(plain_s, 4),
        "speed_up": round(statistics.median(b / a for a, b in times), 2),
        "largest_difference": difference,
    }


def measure_pictures() -> dict[str, Any]:
    """JPEG files through decoding and `DlsrPipeline.score`: pictures a second on all cores; CPU time of one on one.

    The second number says what a core can do also where others use the machine.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    pipeline = DlsrPipeline.load(WEIGHTS, torch.device("cpu"))
    files = _photographs()
    job = cast(JobContext, SimpleNamespace(stage=lambda text: None, members=[SimpleNamespace(model="dlsr/small@1")]))

    def through() -> None:
        for place in range(0, len(files), BATCH):
            pictures = [decode(io.BytesIO(file)) for file in files[place : place + BATCH]]
            images: Any = [SimpleNamespace(picture=picture) for picture in pictures]
            pipeline.score([ScoreRequest.model_construct(images=images, archive=None)], job)

    with torch.inference_mode():
        through()
        wall_s = min(_wall_s(through) for _ in range(ROUNDS))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        cpu_s = min(_cpu_s(through) for _ in range(ROUNDS))
    return {
        "pictures": len(files),
        "picture_px": PICTURE_PX,
        "threads": threads,
        "pictures_a_second": round(len(files) / wall_s, 1),
        "cpu_ms_a_picture": round(1000 * cpu_s / len(files), 2),
    }


def _photographs() -> list[bytes]:
    """Windows of photographs, as JPEG files."""
    rng = np.random.default_rng(0)
    photos = [data.astronaut(), data.coffee(), data.chelsea()]
    files = []
    for number in range(PICTURES):
        photo = photos[number % len(photos)]
        top, left = (int(rng.integers(0, side - PICTURE_PX)) for side in photo.shape[:2])
        files.append(encode(Picture(photo[top : top + PICTURE_PX, left : left + PICTURE_PX]), "image/jpeg"))
    return files


def _cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _wall_s(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
