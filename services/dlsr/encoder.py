"""The frozen encoder: a picture's vector of multi-layer features (dlsr.md 2.1), and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from services.dlsr.layers import normalised, pooled
from services.dlsr.resnet import ResNet50, load_resnet50
from shared.nn import efficientnet
from shared.nn.efficientnet import EfficientNet, load_lite0, load_trunk
from shared.problems import WeightsDamaged

EncoderName = Literal["efficientnet-lite0", "efficientnet-b4", "resnet-50"]
WEIGHTS = "encoder.safetensors"
_IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


@dataclass(frozen=True)
class EncoderConfig:
    """Which network, and the way of a picture into it.

    input_px  side of the square that the network sees; pictures are stretched to it, aspect ratio not kept
    first_px  side of the square that pictures are brought to before that, so that sharpness cannot tell them apart;
              None: they go straight to `input_px`
    """

    name: EncoderName
    input_px: int
    first_px: int | None


@dataclass(frozen=True)
class Architecture:
    """What is fixed for a network.

    taps      blocks whose outputs are read; of a ResNet the stages
    channels  of each output
    strides   of each output
    mean, std of the pixels 0..255, by channel
    """

    taps: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


ARCHITECTURES: Mapping[EncoderName, Architecture] = {
    "efficientnet-lite0": Architecture(
        (0, 2, 4, 10, 15),
        (16, 24, 40, 112, 320),
        (2, 4, 8, 16, 32),
        (efficientnet.LITE0_MEAN,) * 3,
        (efficientnet.LITE0_STD,) * 3,
    ),
    "efficientnet-b4": Architecture(
        (1, 5, 9, 21, 31), (24, 32, 56, 160, 448), (2, 4, 8, 16, 32), _IMAGENET_MEAN, _IMAGENET_STD
    ),
    "resnet-50": Architecture((1, 2, 3), (256, 512, 1024), (4, 8, 16), _IMAGENET_MEAN, _IMAGENET_STD),
}


class Encoder:
    """Pictures to feature vectors, in eval mode, batch norms folded, in float32.

    fingerprint  SHA-256 (hex) over the configuration and the network's numbers: features of two encoders can be
                 compared when these are equal
    boundaries   ends of the layers within a vector
    """

    def __init__(self, config: EncoderConfig, network: EfficientNet | ResNet50, device: torch.device | str) -> None:
        self.config = config
        self.device = torch.device(device)
        self.fingerprint = _fingerprint(config, network)
        self.architecture = ARCHITECTURES[config.name]
        self.boundaries = tuple(accumulate(self.architecture.channels))
        self._plain = network
        folded = network.folded()
        for parameter in folded.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._maps = _reader(folded.to(self.device), self.architecture.taps)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(self.architecture.mean, device=self.device).reshape(shape)
        self._std = torch.tensor(self.architecture.std, device=self.device).reshape(shape)

    @property
    def batch(self) -> int:
        """How many pictures at a time are fastest: on a CPU few enough for the maps to stay in its caches."""
        return 16 if self.device.type == "cpu" else 256

    @property
    def memory_bytes(self) -> int:
        """What its numbers take, those that are kept to be saved included."""
        return 2 * sum(value.numel() * value.element_size() for value in self._plain.state_dict().values())

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.boundaries[-1]

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Prepared pixels (B, S, S, 3) uint8 to vectors (B, D) on the CPU, every layer with mean 0 and deviation 1."""
        x = pixels.to(self.device).permute(0, 3, 1, 2).float()
        x = ((x - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        return normalised(pooled(self._maps(x), self.architecture.strides), self.boundaries).cpu()

    def save(self, folder: Path) -> None:
        """Write the network's numbers, unless they come with a package."""
        if self.config.name != "efficientnet-lite0":
            save_file({name: value.contiguous() for name, value in self._plain.state_dict().items()}, folder / WEIGHTS)


def load_encoder(config: EncoderConfig, folder: Path | None, device: torch.device | str) -> Encoder:
    """The encoder of a configuration, with weights from its package, or else from `folder`.

    Raises WeightsDamaged where they are not there or do not fit.
    """
    if config.name == "efficientnet-lite0":
        return Encoder(config, load_lite0(), device)
    path = (folder or Path()) / WEIGHTS
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsDamaged(f"{path.name}: {error}") from error
    return Encoder(config, network_of(config.name, state, path.name), device)


def network_of(name: EncoderName, state: Mapping[str, Tensor], file: str) -> EfficientNet | ResNet50:
    """A network whose weights are published as a file, by the file's names. Raises WeightsDamaged."""
    if name == "resnet-50":
        return load_resnet50(state, file)
    return load_trunk(efficientnet.B4, state, file)


def _reader(network: EfficientNet | ResNet50, taps: tuple[int, ...]) -> Callable[[Tensor], list[Tensor]]:
    if isinstance(network, EfficientNet):
        return lambda x: network(x, taps)
    return network


def _fingerprint(config: EncoderConfig, network: nn.Module) -> str:
    total = hashlib.sha256(json.dumps(asdict(config) | {"resize": "bilinear, antialiased"}, sort_keys=True).encode())
    for name, value in sorted(network.state_dict().items()):
        if value.is_floating_point():
            total.update(name.encode() + b"\0" + value.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


SMALL = EncoderConfig("efficientnet-lite0", input_px=128, first_px=None)
PAPER = EncoderConfig("efficientnet-b4", input_px=224, first_px=None)
PAPER_RESNET = EncoderConfig("resnet-50", input_px=224, first_px=None)
