"""What is asked of a shipped model of the family, whichever it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from skimage import data

from shared.images import Pixels
from shared.modelfolder import digest_of
from shared.picturemetrics import psnr_y
from shared.resshift.degradation import TEST, degrade
from shared.resshift.evaluation import BASELINES, Enlarge, pixels_of, table, tensor_of

MOST_BYTES = 4_000_000


def spoilt(seed: int) -> tuple[Pixels, Pixels]:
    """A face's surroundings, 256 px, and what the test degradation leaves of them."""
    hr = tensor_of(np.asarray(data.astronaut())[:256, 100:356])
    return pixels_of(degrade(hr, TEST, torch.Generator().manual_seed(seed))[0]), pixels_of(hr[0])


def psnr(pred: Pixels, target: Pixels) -> float:
    return float(psnr_y(tensor_of(pred), tensor_of(target)))


def gain_over_bicubic(enlarge: Enlarge) -> float:
    """Mean gain of PSNR-Y in dB over four ways to spoil a photograph of no training."""
    _, make, arguments = BASELINES[0]
    bicubic = make(*arguments)
    pairs = [spoilt(seed) for seed in range(4)]
    return float(np.mean([psnr(enlarge(lq), hr) - psnr(bicubic(lq), hr) for lq, hr in pairs]))


def weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def card_holds_figures(folder: Path) -> bool:
    """Whether the card prints exactly what `evaluate` wrote, of exactly these weights."""
    card, figures = (folder / "MODEL_CARD.md").read_text(), json.loads((folder / "evaluate.json").read_text())
    return figures["model_digest"] == digest_of(folder) and digest_of(folder) in card and table(figures).strip() in card
