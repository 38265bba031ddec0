"""What a JPEG file does to a picture, in tensors: a batch in which every picture has its own quality."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The tables of the JPEG standard, annex K. The reference lays the axes of a block the other way round.
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
BLOCK = 8
UNIT = 16  # a block of the halved chroma covers this many pixels
FINEST = 1e-4  # of the tables: at quality 100 the formula's 0 would divide by 0, and this rounds nothing away


def cosines() -> Tensor:
    """(8, 8): the orthonormal DCT-II, a row a frequency."""
    places = torch.arange(BLOCK, dtype=torch.float64)
    rows = torch.cos((2 * places[None, :] + 1) * places[:, None] * math.pi / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    rows[0] /= math.sqrt(2)
    return rows


def compressed(plane: Tensor, table: Tensor, dct: Tensor) -> Tensor:
    """A plane (B, H, W), 0..255, after quantisation with its own table (B, 8, 8); H and W are multiples of 8."""
    b, h, w = plane.shape
    blocks = plane.reshape(b, h // BLOCK, BLOCK, w // BLOCK, BLOCK).transpose(2, 3) - 128  # (B, H/8, W/8, 8, 8)
    steps = table[:, None, None]
    coefficients = (dct @ blocks @ dct.T / steps).round() * steps
    blocks = dct.T @ coefficients @ dct + 128
    return blocks.transpose(2, 3).reshape(b, h, w)


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), RGB 0..1, after JPEG files of 4:2:0.

    quality  (B,)  1..100 a picture; need not be whole
    Sides that are no multiple of 16 are filled up with black, as the reference does.
    """
    b, _, h, w = x.shape
    quality = quality.to(x).reshape(b)
    factor = torch.where(quality < 50, 50 / quality, (200 - 2 * quality) / 100)[:, None, None]
    factor = factor.clamp_min(FINEST)
    dct = cosines().to(x)
    image = F.pad(x, (0, -w % UNIT, 0, -h % UNIT)) * 255
    centre = x.new_tensor((0.0, 128.0, 128.0))[None, :, None, None]
    planes = torch.einsum("oc,bchw->bohw", x.new_tensor(TO_YCBCR), image) + centre
    luma = compressed(planes[:, 0], x.new_tensor(LUMA_TABLE).T * factor, dct)
    chroma = F.avg_pool2d(planes[:, 1:], 2).flatten(0, 1)
    chroma_table = (x.new_tensor(CHROMA_TABLE).T * factor).repeat_interleave(2, dim=0)
    chroma = compressed(chroma, chroma_table, dct).reshape(b, 2, *chroma.shape[1:])
    chroma = chroma.repeat_interleave(2, 2).repeat_interleave(2, 3)
    image = torch.einsum("oc,bchw->bohw", x.new_tensor(TO_RGB), torch.cat([luma[:, None], chroma], 1) - centre)
    return image.clamp(0, 255)[:, :, :h, :w].contiguous() / 255
