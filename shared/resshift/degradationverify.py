"""Golden runners of the degradation: kernels, filter, unsharp mask, JPEG, and a whole chain with given noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from shared.golden import Case, Observed, Runner
from shared.resshift import degradationkernels as kernels
from shared.resshift.degradation import rescaled, resized
from shared.resshift.degradationjpeg import jpeg


def kernel(kind: str, side: int, config: Mapping[str, Any]) -> Tensor:
    """One of the seven kernels, of the numbers in a case's configuration; isotropic ones use sigma_x."""
    iso = kind.removeprefix("generalized_").removeprefix("plateau_") == "iso"
    sigma_y, theta = (config["sigma_x"], 0.0) if iso else (config["sigma_y"], config["theta"])
    make: dict[str, Callable[[], Tensor]] = {
        "gaussian": lambda: kernels.gaussian(side, config["sigma_x"], sigma_y, theta),
        "generalized": lambda: kernels.generalized_gaussian(
            side, config["sigma_x"], sigma_y, theta, config["beta_generalized"]
        ),
        "plateau": lambda: kernels.plateau(side, config["sigma_x"], sigma_y, theta, config["beta_plateau"]),
        "sinc": lambda: kernels.padded(kernels.sinc(side, config["cutoff"]), config["sinc_padded_to"]),
    }
    family = kind.partition("_")[0]
    return make[family if family in make else "gaussian"]()


def run_blur_kernels(case: Case) -> Observed:
    """All kernels that the case gives a side for."""
    return Observed(
        {kind: kernel(kind, side, case.config).to(case.dtype) for kind, side in case.config["sizes"].items()}
    )


def kernels_of(case: Case, roles: list[str]) -> Tensor:
    """One kernel a picture (B, k, k), padded to the largest."""
    chosen = [case.input(role) for role in roles]
    side = max(len(one) for one in chosen)
    return torch.stack([kernels.padded(one, side) for one in chosen])


def run_kernel_filter(case: Case) -> Observed:
    """Every picture with its own kernel."""
    return Observed({"y": kernels.filtered(case.input("image"), kernels_of(case, case.config["kernel_of_image"]))})


def run_usm(case: Case) -> Observed:
    """Unsharp masking."""
    config = case.config
    taps = kernels.unsharp_kernel(config["kernel_size"])
    y = kernels.unsharp_masked(case.input("image"), config["kernel_size"], config["weight"], config["threshold"])
    return Observed({"kernel_row": taps[len(taps) // 2].to(case.dtype), "y": y})


def run_jpeg(case: Case) -> Observed:
    """The JPEG step, on the picture's top left corner where the case cuts it."""
    image = case.input("image")
    if case.config["crop"] is not None:
        height, width = case.config["crop"]
        image = image[:, :, :height, :width]
    return Observed({"y": jpeg(image, torch.tensor(case.config["quality"]))})


def run_degradation_chain(case: Case) -> Observed:
    """Two blurs, three resizes, noise and two JPEG files, in the order that the case's notes say."""
    config, image = case.config, case.input("image")
    b, _, h, w = image.shape
    quality = torch.tensor(config["jpeg_quality"])
    x = kernels.filtered(image, kernels_of(case, [f"kernel.{i}" for i in range(b)]))
    x = rescaled(x, config["resize_1"]["scale_factor"], config["resize_1"]["mode"])
    x = jpeg((x + case.input("noise") * config["noise_gain"]).clamp(0, 1), quality)
    x = kernels.filtered(x, case.input("kernel.second").expand(b, -1, -1))
    small, second = (h // config["factor"], w // config["factor"]), config["resize_2"]
    x = resized(x, (int(small[0] * second["scale"]), int(small[1] * second["scale"])), second["mode"])
    x = resized(x, small, config["resize_3"]["mode"])
    last = kernels.padded(kernels.sinc(config["sinc_size"], config["cutoff"]), config["sinc_padded_to"])
    x = jpeg(kernels.filtered(x, last.expand(b, -1, -1)).clamp(0, 1), quality.flip(0))
    return Observed({"lq": (x * 255).round() / 255})


RUNNERS: Mapping[str, Runner] = {
    "blur_kernels": run_blur_kernels,
    "kernel_filter": run_kernel_filter,
    "usm": run_usm,
    "jpeg": run_jpeg,
    "degradation_chain": run_degradation_chain,
}
