"""A model of the family as a diffusers pipeline: denoiser, autoencoder and schedule in one folder.

    model_index.json
    denoiser/     config.json, diffusion_pytorch_model.safetensors
    autoencoder/  config.json, diffusion_pytorch_model.safetensors
    scheduler/    scheduler_config.json

`save_pretrained` writes it and `from_pretrained` reads it; `load` reads it more strictly, for a worker. DiT-SR and
TAD-SR differ in the denoiser and in how the chain is walked: a method derives its own pipeline from this one.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, cast

import torch
from accelerate import init_empty_weights
from diffusers.configuration_utils import ConfigMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.archivework import Item, worked
from shared.images import Picture
from shared.jobcontext import JobContext
from shared.networkfile import read_network
from shared.nn.freezing import freeze
from shared.problems import Problem, WeightsDamaged
from shared.resshift.enlarging import Generate, Tiles, enlarge, restore
from shared.resshift.padding import upsample
from shared.resshift.requests import (
    MEDIA_TYPES,
    SCALE,
    ModelUnsuitable,
    RestorationRequest,
    Restored,
    RestoreRequest,
    Upscaled,
    UpscaleRequest,
    check_upscale,
)
from shared.resshift.sampler import Denoiser, OnStep, Sampler
from shared.resshift.schedule import ResShiftSchedule
from shared.resshift.scheduler import ResShiftScheduler
from shared.types import Archive, Image

INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
# An accelerator takes as many tiles at once as have this many pixels of input together, a CPU one by one.
PASS_PIXELS = 2**19

# Where the classes are that a model folder may name; nothing else is imported from a name in a file.
AUTOENCODERS: Mapping[str, str] = {
    "VqAutoencoder": "shared.resshift.autoencoder",
    "SmallAutoencoder": "shared.resshift.smallautoencoder",
}
SCHEDULERS: Mapping[str, str] = {"ResShiftScheduler": "shared.resshift.scheduler"}


class Autoencoder(Protocol):
    """What the family needs of an autoencoder: a `ModelMixin` with this interface."""

    @property
    def factor(self) -> int:
        """How many pixels a latent position is wide."""

    @property
    def channels(self) -> int:
        """Of the latent."""

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, factor h, factor w) in [-1, 1] -> (B, channels, h, w)"""

    def decode(self, z: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, 3, factor h, factor w), about [-1, 1] and not clamped"""


class ResShiftPipeline(DiffusionPipeline):
    """Denoiser, autoencoder and schedule of one model, on one device."""

    DENOISERS: ClassVar[Mapping[str, str]]
    """Classes of denoisers that a folder may name, and their modules."""

    denoiser: nn.Module
    autoencoder: nn.Module
    scheduler: ResShiftScheduler

    def __init__(
        self,
        denoiser: nn.Module,
        autoencoder: nn.Module,
        scheduler: ResShiftScheduler,
        scale: int = 4,
        multiple: int = 64,
        tile: int = 256,
        overlap: int = 32,
    ) -> None:
        """
        scale     how many times larger the result is: 4, or 1 for faces
        multiple  what the sides of the network's input must be multiples of
        tile      side of a tile in pixels of the input; overlap: of two neighbours, at least
        """
        super().__init__()
        self.register_modules(denoiser=denoiser, autoencoder=autoencoder, scheduler=scheduler)
        self.register_to_config(scale=scale, multiple=multiple, tile=tile, overlap=overlap)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Self:
        """The model of a folder, with exactly the weights that its configuration asks for. Raises `WeightsDamaged`."""
        index = _read_json(folder / INDEX)
        if index.pop("_class_name", None) != cls.__name__:
            raise WeightsDamaged(f"{INDEX} is not that of a {cls.__name__}.")
        parts = {
            name: _component(folder / name, index.pop(name, None), known)
            for name, known in (
                ("denoiser", cls.DENOISERS),
                ("autoencoder", AUTOENCODERS),
                ("scheduler", SCHEDULERS),
            )
        }
        options = {name: value for name, value in index.items() if not name.startswith("_")}
        try:
            pipeline = cls(**parts, **options)
        except (TypeError, ValueError) as error:
            raise WeightsDamaged(f"{INDEX}: {error}.") from error
        for network in pipeline.networks:
            freeze(network.to(device))
        return pipeline

    def save(self, folder: Path, storage: torch.dtype) -> None:
        """Write the folder, with weights in `storage`. Raises ValueError for numbers beyond its range."""
        self.save_pretrained(folder, safe_serialization=True)
        for path in folder.glob(f"*/{WEIGHTS}"):
            tensors = load_file(path)
            for name, tensor in tensors.items():
                if tensor.is_floating_point():
                    tensors[name] = tensor.to(storage)
                    if not bool(tensors[name].isfinite().all()):
                        raise ValueError(f"{path.parent.name}: {name} has numbers that {storage} cannot hold")
            save_file(tensors, path)

    @property
    def networks(self) -> tuple[nn.Module, nn.Module]:
        return self.denoiser, self.autoencoder

    @property
    def memory_bytes(self) -> int:
        """What the weights take; on a CPU once more as much, in the order that is fast there."""
        tensors = (tensor for network in self.networks for tensor in network.state_dict().values())
        copies = 2 if self.device.type == "cpu" else 1
        return copies * sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def schedule(self) -> ResShiftSchedule:
        """The chain that the denoiser was trained on."""
        return self.scheduler.schedule

    @property
    def tiles(self) -> Tiles:
        """How this model takes pictures apart."""
        autoencoder, config = cast(Autoencoder, self.autoencoder), self.config
        on_cpu = self.device.type == "cpu"
        return Tiles(
            scale=config["scale"],
            factor=autoencoder.factor,
            channels=autoencoder.channels,
            multiple=config["multiple"],
            tile=config["tile"],
            overlap=config["overlap"],
            a_pass=1 if on_cpu else max(1, PASS_PIXELS // config["tile"] ** 2),
        )

    def for_tiles(self) -> Denoiser:
        """The denoiser for one batch of tiles: it is called with one picture only, at one time after the other."""
        return cast(Denoiser, self.denoiser)

    def generator(self, schedule: ResShiftSchedule, walk: Sampler) -> Generate:
        """Restoring one batch of tiles: encode, walk the chain, decode. In bfloat16 on CUDA, in float32 on a CPU."""
        autoencoder = cast(Autoencoder, self.autoencoder)
        scale = self.config["scale"]

        @torch.no_grad()
        def generate(lq: Tensor, noise: Iterator[Tensor], on_step: OnStep) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16, enabled=lq.device.type == "cuda"):
                z_y = autoencoder.encode(upsample(lq, scale)).float()
                x0 = walk(self.for_tiles(), schedule, z_y, lq, noise, on_step)
                return autoencoder.decode(x0).float()

        return generate

    def upscaled(
        self, requests: Sequence[UpscaleRequest], job: JobContext, schedule: ResShiftSchedule, walk: Sampler
    ) -> list[Upscaled | Problem]:
        """Answer requests with pictures `scale` times as large: pictures of one size together, or one archive."""
        if self.config["scale"] != SCALE:
            return [ModelUnsuitable("This model keeps the size of a picture.", operation="restore") for _ in requests]
        generate = self.generator(schedule, walk)
        if (archive := requests[0].archive) is not None:
            return [self._upscaled_archive(archive, requests[0], job, schedule, generate)]
        made = self._made(enlarge, [_picture(request) for request in requests], requests, job, generate)
        return [
            Upscaled(
                image=Image.of(picture, MEDIA_TYPES[request.output_format]),
                archive=None,
                model=member.model,
                seed=request.seed or 0,
                steps=len(schedule),
                tiles=self._tiles_of(picture, SCALE),
            )
            for request, member, picture in zip(requests, job.members, made, strict=True)
        ]

    def restored(
        self, requests: Sequence[RestoreRequest], job: JobContext, schedule: ResShiftSchedule, walk: Sampler
    ) -> list[Restored | Problem]:
        """Answer a batch of requests of one size with pictures of that size."""
        pictures = [request.image.picture for request in requests]
        made = self._made(restore, pictures, requests, job, self.generator(schedule, walk))
        return [
            Restored(
                image=Image.of(picture, MEDIA_TYPES[request.output_format]),
                model=member.model,
                seed=request.seed or 0,
                steps=len(schedule),
                tiles=self._tiles_of(picture, self.config["scale"]),
            )
            for request, member, picture in zip(requests, job.members, made, strict=True)
        ]

    def _made(
        self,
        work: Callable[..., list[Picture]],
        pictures: list[Picture],
        requests: Sequence[RestorationRequest],
        job: JobContext,
        generate: Generate,
    ) -> list[Picture]:
        def on_step(step: int, of: int) -> None:
            job.progress(step + 1, of)
            job.turn_over()

        seeds = [request.seed or 0 for request in requests]  # drawn when the request was accepted
        job.stage("sampling")
        return work(pictures, seeds, generate, self.tiles, self.device, on_step)

    def _upscaled_archive(
        self, archive: Archive, request: UpscaleRequest, job: JobContext, schedule: ResShiftSchedule, generate: Generate
    ) -> Upscaled:
        (member,) = job.members
        seed = request.seed or 0

        def checked(picture: Picture) -> Picture:
            height, width = picture.pixels.shape[:2]
            check_upscale((width, height), request.output_format)
            return picture

        def on_step(step: int, of: int) -> None:
            job.raise_if_cancelled()
            job.turn_over()

        def work(items: Sequence[Item[Picture]]) -> list[Restored | Problem]:
            answers: list[Restored | Problem] = []
            for item in items:
                own = seed_of_unit(seed, item.entry.index)
                (picture,) = enlarge([item.content], [own], generate, self.tiles, self.device, on_step)
                answers.append(
                    Restored(
                        image=Image.of(picture, MEDIA_TYPES[request.output_format]),
                        model=member.model,
                        seed=own,
                        steps=len(schedule),
                        tiles=self._tiles_of(picture, SCALE),
                    )
                )
            return answers

        made = worked(archive, job, checked, work, at_once=1)  # each picture has a size of its own
        return Upscaled(image=None, archive=made, model=member.model, seed=seed, steps=len(schedule), tiles=None)

    def _tiles_of(self, result: Picture, enlarged: int) -> int:
        height, width = (-(-side // enlarged) for side in result.pixels.shape[:2])
        return self.tiles.count(height, width)


def seed_of_unit(seed: int, index: int) -> int:
    """The seed of one picture of an archive, 0 .. 2^63 - 1: it depends on the archive's seed and the place alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big") >> 1


def _picture(request: UpscaleRequest) -> Picture:
    if request.image is None:
        raise RuntimeError("an archive shares its batch with pictures")
    return request.image.picture


def _component(folder: Path, named: Any, known: Mapping[str, str]) -> Any:
    """An object of the class that the index names, from its configuration and, if it is a network, its weights."""
    if not isinstance(named, list) or len(named) != 2 or known.get(named[1]) != named[0]:
        raise WeightsDamaged(f"{INDEX}: {folder.name} is {named}, not one of {sorted(known)}.")
    cls = getattr(importlib.import_module(named[0]), named[1])
    config = _read_json(folder / cls.config_name)
    if config.get("_class_name") != cls.__name__:
        raise WeightsDamaged(f"{folder.name}: the configuration is that of a {config.get('_class_name')}.")
    options = {name: value for name, value in config.items() if not name.startswith("_")}
    try:
        with init_empty_weights():
            component: ConfigMixin = cls(**options)
    except (TypeError, ValueError, KeyError) as error:
        raise WeightsDamaged(f"{folder.name}: the configuration cannot be used: {error}.") from error
    if isinstance(component, nn.Module):
        try:
            read_network(component, folder / WEIGHTS, "cpu")
        except WeightsDamaged as error:
            raise WeightsDamaged(f"{folder.name}/{error.detail}") from error
        for name, tensor in component.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise WeightsDamaged(f"{folder.name}: {name} has numbers that are not finite.")
    return component


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsDamaged(f"{path.parent.name}/{path.name} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise WeightsDamaged(f"{path.parent.name}/{path.name} is not a JSON object.")
    return content
