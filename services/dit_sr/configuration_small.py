"""The sizes of the denoiser that this project trains and ships."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 64,
    "channel_mult": [1, 1],
    "attention_resolutions": [16, 8],
    "swin_depth": 2,
    "swin_embed_dim": 64,
    "num_head_channels": 32,
    "window_size": 8,
    "mlp_ratio": 2,
    "dropout": 0.0,
    "lq_size": 16,
    "norm_groups": 4,
}
# Sides are padded to multiples of 16, and tiles are as large as this, in pixels of the input.
PIPELINE: dict[str, Any] = {"scale": 4, "multiple": 16, "tile": 128, "overlap": 16, "steps": 1}
