"""How a sharp picture becomes a poor one: Real-ESRGAN's second-order degradation with ResShift's constants.

blur, resize, noise, JPEG; perhaps once more; then a last resize to a quarter with a sinc filter, before or after a
last JPEG. Every draw comes from one CPU generator, in one order: the same seed spoils alike on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from shared.resshift import degradationkernels as kernels
from shared.resshift.degradationjpeg import jpeg

SCALE = 4
MODES = ("area", "bilinear", "bicubic")
LUMA = (0.2989, 0.587, 0.114)
SMALL_SINC_SIDE = 13  # smaller sinc kernels get a higher least cutoff
KERNEL_TYPES = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")

Range = tuple[float, float]


@dataclass(frozen=True)
class Blur:
    """How the blur kernels of a stage are drawn."""

    side: int  # kernels are padded to it; drawn are odd sides from 3 to side - 2
    sinc_chance: float
    types: tuple[float, ...]  # chances of KERNEL_TYPES
    sigma: Range
    chance: float  # that the stage blurs at all
    beta_generalized: Range = (0.5, 4.0)
    beta_plateau: Range = (1.0, 2.0)


@dataclass(frozen=True)
class Stage:
    """Blur, resize, noise, JPEG."""

    blur: Blur
    resize: tuple[float, float, float]  # chances of up, down, keep
    resize_range: Range  # smallest factor down, largest factor up
    gaussian_chance: float  # else Poisson
    gaussian_sigma: Range  # of 255
    poisson_scale: Range
    grey_chance: float
    jpeg_quality: Range  # of the file that ends the stage


@dataclass(frozen=True)
class Degradation:
    """All constants of a chain. Chances are of a batch, but those of kernels, strengths and grey, which are of a
    picture.
    """

    first: Stage
    second: Stage
    second_chance: float
    final_sinc_chance: float


def interval(bounds: Range, rng: Generator, *shape: int) -> Tensor:
    """Uniform draws (shape) from [low, high)."""
    low, high = bounds
    return torch.rand(*shape, generator=rng) * (high - low) + low


def draw(bounds: Range, rng: Generator) -> float:
    """One uniform draw."""
    return float(interval(bounds, rng, 1))


def happens(chance: float, rng: Generator) -> bool:
    """True with the given chance; always draws."""
    return float(torch.rand(1, generator=rng)) < chance


def odd_side(largest: int, rng: Generator) -> int:
    """One of 3, 5, ... below `largest`."""
    return 3 + 2 * int(torch.randint((largest - 3) // 2, (1,), generator=rng))


def sinc_cutoff(side: int, rng: Generator) -> float:
    """Where a sinc kernel of `side` cuts."""
    return draw((math.pi / (3 if side < SMALL_SINC_SIDE else 5), math.pi), rng)


def beta(bounds: Range, rng: Generator) -> float:
    """A shape: half of the time below 1, half above."""
    low, high = bounds
    return draw((low, 1.0) if happens(0.5, rng) else (1.0, high), rng)


def blur_kernel(blur: Blur, rng: Generator) -> Tensor:
    """A kernel (side, side) of a stage."""
    side = odd_side(blur.side, rng)
    if happens(blur.sinc_chance, rng):
        return kernels.padded(kernels.sinc(side, sinc_cutoff(side, rng)), blur.side)
    kind = KERNEL_TYPES[int(torch.multinomial(torch.tensor(blur.types), 1, generator=rng))]
    sigma_x = draw(blur.sigma, rng)
    iso = kind.endswith("_iso") or kind == "iso"
    sigma_y = sigma_x if iso else draw(blur.sigma, rng)
    theta = 0.0 if iso else draw((-math.pi, math.pi), rng)
    if kind.startswith("generalized"):
        made = kernels.generalized_gaussian(side, sigma_x, sigma_y, theta, beta(blur.beta_generalized, rng))
    elif kind.startswith("plateau"):
        made = kernels.plateau(side, sigma_x, sigma_y, theta, beta(blur.beta_plateau, rng))
    else:
        made = kernels.gaussian(side, sigma_x, sigma_y, theta)
    return kernels.padded(made, blur.side)


def final_kernel(degradation: Degradation, rng: Generator) -> Tensor:
    """The last filter's kernel: a sinc, or the one that changes nothing."""
    largest = degradation.second.blur.side
    side = odd_side(largest, rng)
    cutoff = draw((math.pi / 3, math.pi), rng)
    if happens(degradation.final_sinc_chance, rng):
        return kernels.padded(kernels.sinc(side, cutoff), largest)
    return kernels.impulse(largest)


def resize_factor(stage: Stage, rng: Generator) -> float:
    """By what a stage enlarges (more than 1) or shrinks."""
    up, down, _ = stage.resize
    place = float(torch.rand(1, generator=rng))
    if place < up:
        return draw((1.0, stage.resize_range[1]), rng)
    return draw((stage.resize_range[0], 1.0), rng) if place < up + down else 1.0


def resize_mode(rng: Generator) -> str:
    """One of MODES."""
    return MODES[int(torch.randint(len(MODES), (1,), generator=rng))]


def gaussian_noise(x: Tensor, stage: Stage, rng: Generator) -> Tensor:
    """Gaussian noise for pictures (B, 3, H, W); the grey ones share one pattern, as in the reference."""
    b, _, h, w = x.shape
    sigma = interval(stage.gaussian_sigma, rng, b, 1, 1, 1) / 255
    grey = (torch.rand(b, 1, 1, 1, generator=rng) < stage.grey_chance).float()
    pattern = torch.randn(h, w, generator=rng)
    return (sigma * torch.lerp(torch.randn(x.shape, generator=rng), pattern, grey)).to(x)


def shot_noise(x: Tensor, rng: Generator) -> Tensor:
    """Poisson noise of pictures (B, C, H, W), 0..1, as if each counted as many photons as it has levels."""
    x = (x.float().cpu() * 255).round().clamp(0, 255) / 255
    levels = [2.0 ** math.ceil(math.log2(len(picture.unique()))) for picture in x]
    photons = torch.tensor(levels)[:, None, None, None]
    return torch.poisson(x * photons, generator=rng) / photons - x


def poisson_noise(x: Tensor, stage: Stage, rng: Generator) -> Tensor:
    """Poisson noise for pictures (B, 3, H, W); the grey ones get that of their luma."""
    b = len(x)
    scale = interval(stage.poisson_scale, rng, b, 1, 1, 1)
    grey = (torch.rand(b, 1, 1, 1, generator=rng) < stage.grey_chance).float()
    luma = (x * x.new_tensor(LUMA)[None, :, None, None]).sum(1, keepdim=True)
    return (scale * torch.lerp(shot_noise(x, rng), shot_noise(luma, rng).expand(x.shape), grey)).to(x)


def noisy(x: Tensor, stage: Stage, rng: Generator) -> Tensor:
    """Pictures (B, 3, H, W) with the noise of a stage, 0..1."""
    noise = gaussian_noise if happens(stage.gaussian_chance, rng) else poisson_noise
    return (x + noise(x, stage, rng)).clamp(0, 1)


def resized(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Pictures (B, 3, H, W) resampled to `size`, without antialiasing, as the reference does."""
    return F.interpolate(x, size=size, mode=mode, align_corners=None if mode == "area" else False)


def rescaled(x: Tensor, factor: float, mode: str) -> Tensor:
    """Pictures (B, 3, H, W) resampled by `factor`: its exact value places the samples, not the rounded size."""
    return F.interpolate(x, scale_factor=factor, mode=mode, align_corners=None if mode == "area" else False)


def degrade(hr: Tensor, degradation: Degradation, rng: Generator) -> Tensor:
    """Spoil sharp pictures.

    hr       (B, 3, H, W)          RGB 0..1; H and W multiples of 4, at least 64
    returns  (B, 3, H / 4, W / 4)  RGB, whole multiples of 1/255
    """
    b, _, h, w = hr.shape
    first, second = degradation.first, degradation.second
    first_kernels = torch.stack([blur_kernel(first.blur, rng) for _ in range(b)])
    second_kernels = torch.stack([blur_kernel(second.blur, rng) for _ in range(b)])
    last_kernels = torch.stack([final_kernel(degradation, rng) for _ in range(b)])
    x = kernels.filtered(hr, first_kernels) if happens(first.blur.chance, rng) else hr
    factor, mode = resize_factor(first, rng), resize_mode(rng)
    x = rescaled(x, factor, mode)
    x = jpeg(noisy(x, first, rng), interval(first.jpeg_quality, rng, b))
    if happens(degradation.second_chance, rng):
        if happens(second.blur.chance, rng):
            x = kernels.filtered(x, second_kernels)
        factor, mode = resize_factor(second, rng), resize_mode(rng)
        x = resized(x, (int(h / SCALE * factor), int(w / SCALE * factor)), mode)
        x = noisy(x, second, rng)
    quality, mode = interval(second.jpeg_quality, rng, b), resize_mode(rng)
    filter_first = happens(0.5, rng)
    if not filter_first:
        x = jpeg(x.clamp(0, 1), quality)
    x = kernels.filtered(resized(x, (h // SCALE, w // SCALE), mode), last_kernels)
    if filter_first:
        x = jpeg(x.clamp(0, 1), quality)
    return (x.clamp(0, 1) * 255).round() / 255


def shrunk(hr: Tensor) -> Tensor:
    """The plain case: pictures (B, 3, H, W), 0..1, shrunk four times bicubically with antialiasing, and rounded."""
    size = hr.shape[2] // SCALE, hr.shape[3] // SCALE
    small = F.interpolate(hr, size=size, mode="bicubic", align_corners=False, antialias=True)
    return (small.clamp(0, 1) * 255).round() / 255


_ALL_TYPES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
_GAUSSIAN_TYPES = (0.6, 0.4, 0.0, 0.0, 0.0, 0.0)

# What ResShift, DiT-SR and TAD-SR are trained on.
TRAINING = Degradation(
    first=Stage(
        blur=Blur(side=21, sinc_chance=0.1, types=_ALL_TYPES, sigma=(0.2, 3.0), chance=1.0),
        resize=(0.2, 0.7, 0.1),
        resize_range=(0.15, 1.5),
        gaussian_chance=0.5,
        gaussian_sigma=(1, 30),
        poisson_scale=(0.05, 3.0),
        grey_chance=0.4,
        jpeg_quality=(30, 95),
    ),
    second=Stage(
        blur=Blur(side=15, sinc_chance=0.1, types=_ALL_TYPES, sigma=(0.2, 1.5), chance=0.8),
        resize=(0.3, 0.4, 0.3),
        resize_range=(0.3, 1.2),
        gaussian_chance=0.5,
        gaussian_sigma=(1, 25),
        poisson_scale=(0.05, 2.5),
        grey_chance=0.4,
        jpeg_quality=(30, 95),
    ),
    second_chance=0.5,
    final_sinc_chance=0.8,
)

# ResShift's ImageNet-Test: milder, one stage.
TEST = Degradation(
    first=Stage(
        blur=Blur(side=13, sinc_chance=0.1, types=_GAUSSIAN_TYPES, sigma=(0.2, 0.8), chance=1.0),
        resize=(0.2, 0.7, 0.1),
        resize_range=(0.5, 1.5),
        gaussian_chance=0.5,
        gaussian_sigma=(1, 15),
        poisson_scale=(0.05, 0.3),
        grey_chance=0.4,
        jpeg_quality=(70, 95),
    ),
    second=Stage(
        blur=Blur(side=7, sinc_chance=0.0, types=_GAUSSIAN_TYPES, sigma=(0.2, 0.5), chance=0.0),
        resize=(0.0, 0.0, 1.0),
        resize_range=(1.0, 1.0),
        gaussian_chance=0.5,
        gaussian_sigma=(1, 15),
        poisson_scale=(0.05, 0.3),
        grey_chance=0.4,
        jpeg_quality=(80, 100),
    ),
    second_chance=0.0,
    final_sinc_chance=0.2,
)
