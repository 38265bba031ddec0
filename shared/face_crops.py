"""Face crops: cut a face out of a photograph upright, put it back under a soft mask, or make it unrecognisable.

All coordinates are (x, y) in pixels, where pixel (i, j) covers [j, j + 1) x [i, i + 1): its centre is (j + 0.5,
i + 0.5). A matrix is (2, 3) and takes points of the photograph to points of the crop.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Points = NDArray[np.float64]
Matrix = NDArray[np.float64]

# Where ArcFace (Deng et al. 2019) puts eyes, nose and corners of the mouth in a crop of 112 px.
ARCFACE_TEMPLATE_112: Points = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
ARCFACE_TEMPLATE_112.setflags(write=False)

# Samples a pixel and direction: enough for a face of 4096 px in a crop of 64 px, a bound on what a matrix may cost.
MAX_OVERSAMPLING = 64
CHUNK_SAMPLES = 500_000  # resampling works in rows of so many samples at a time: some tens of MB
REDACTED_CELLS = 4
REDACTED_MARGIN = 0.2


def transform(matrix: Matrix, points: Points) -> Points:
    """Points (..., 2) taken through a matrix (2, 3)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def inverse(matrix: Matrix) -> Matrix:
    """The matrix that leads back. Raises numpy.linalg.LinAlgError where there is none."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def turning(h: int, w: int, degrees: float) -> tuple[Matrix, tuple[int, int]]:
    """The matrix into a picture (h, w) turned counterclockwise about its centre, and the size that holds all of it."""
    angle = math.radians(degrees)
    c, s = (round(v, 15) for v in (math.cos(angle), math.sin(angle)))  # exact for quarter turns
    linear = np.array([[c, s], [-s, c]])  # y points down
    width, height = (math.ceil(round(v, 6)) for v in np.abs(linear) @ (w, h))
    shift = np.array([width, height]) / 2 - linear @ (w / 2, h / 2)
    return np.column_stack([linear, shift]), (height, width)


def similarity(landmarks: Points, template: Points) -> Matrix:
    """The rotation, scale and shift (2, 3) that take landmarks (n, 2) nearest to the template (n, 2).

    Least squares without mirroring (Umeyama 1991, eq. 40-43); in the plane its optimum is a complex quotient.
    Raises ValueError where the landmarks or the template are all one point, or not finite.
    """
    source, target = (np.asarray(points, dtype=np.float64) for points in (landmarks, template))
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    z, t = ((points - mean) @ (1, 1j) for points, mean in ((source, source_mean), (target, target_mean)))
    spread = np.vdot(z, z).real
    factor = np.vdot(z, t) / spread if spread > 0 else 0
    if not np.isfinite(factor) or abs(factor) == 0:
        raise ValueError("these landmarks cannot be aligned: they are all one point")
    linear = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([linear, target_mean - linear @ source_mean])


def aligned_template(size: int, *, scale: float = 1.0, up: float = 0.04) -> Points:
    """ArcFace's five points (5, 2) for a crop of `size` px, enlarged by `scale` about the centre of the crop and moved
    up by `up` of its side: room for the chin, where the face mask ends."""
    centred = (ARCFACE_TEMPLATE_112 / 112 - 0.5) * scale + 0.5
    return (centred - (0, up)) * size


def warp_crop(pixels: Pixels, matrix: Matrix, size: int) -> Pixels:
    """The crop (size, size, C) that `matrix` cuts out of `pixels` (H, W, C), 0..255.

    Bilinear where it enlarges, means over the covered area where it shrinks; the picture is mirrored at its border.
    """
    crop = resample(pixels, inverse(matrix), size, size, border="reflect")
    return crop.round().astype(np.uint8)


def paste(pixels: Pixels, crop: Pixels, matrix: Matrix, mask: NDArray[np.floating]) -> Pixels:
    """A copy of `pixels` (H, W, C) with `crop` (size, size, C) put back through its `matrix`, under a soft mask.

    `mask` (size, size), 0..1, is warped as the crop is and rounded to 1/255; nothing changes where that is 0. Those
    pixels can be told from matrix and mask alone: `mask_support`.
    """
    out = pixels.copy()
    rows, columns = covered(pixels.shape[:2], matrix, len(mask))
    weight = _warped_mask(rows, columns, matrix, mask)
    if weight.size:
        drawn = resample(
            crop, _shifted(matrix, rows, columns), rows.stop - rows.start, columns.stop - columns.start, border="clamp"
        )
        there = out[rows, columns]
        blended = (weight[..., None] * drawn + (255 - weight[..., None]) * there) / 255
        there[weight > 0] = blended.round().clip(0, 255).astype(np.uint8)[weight > 0]
    return out


def mask_support(shape: tuple[int, int], matrix: Matrix, mask: NDArray[np.floating]) -> NDArray[np.bool_]:
    """The pixels (H, W) of a picture of `shape` that `paste` may change."""
    support = np.zeros(shape, dtype=np.bool_)
    rows, columns = covered(shape, matrix, len(mask))
    support[rows, columns] = _warped_mask(rows, columns, matrix, mask) > 0
    return support


def covered(shape: tuple[int, int], matrix: Matrix, size: int) -> tuple[slice, slice]:
    """Rows and columns of a picture of `shape` (H, W) that a crop of `size` px may reach; empty where it is outside."""
    corners = transform(inverse(matrix), np.array([[0.0, 0.0], [size, 0], [size, size], [0, size]]))
    (left, top), (right, bottom) = corners.min(axis=0) - 1, corners.max(axis=0) + 1  # half a sample more than needed
    h, w = shape
    first_row, first_column = min(max(math.floor(top), 0), h), min(max(math.floor(left), 0), w)
    return (
        slice(first_row, max(min(math.ceil(bottom), h), first_row)),
        slice(first_column, max(min(math.ceil(right), w), first_column)),
    )


def _shifted(matrix: Matrix, rows: slice, columns: slice) -> Matrix:
    """`matrix` for points told from the corner of a part of the picture."""
    return np.column_stack([matrix[:, :2], transform(matrix, np.array([columns.start, rows.start]))])


def _warped_mask(rows: slice, columns: slice, matrix: Matrix, mask: NDArray[np.floating]) -> NDArray[np.float32]:
    """The mask as it lies in a part of the picture, in whole numbers 0..255."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    return resample(255 * mask[..., None], _shifted(matrix, rows, columns), height, width, border="zero")[
        ..., 0
    ].round()


def resample(
    source: NDArray[Any],
    matrix: Matrix,
    height: int,
    width: int,
    *,
    border: Literal["reflect", "clamp", "zero"],
) -> NDArray[np.float32]:
    """A picture (height, width, C) read from `source` (h, w, C), where `matrix` takes points of it to points of source.

    Bilinear; where source is finer than the picture, every pixel is the mean of n x n such samples, at most a source
    pixel apart. Works in rows, so that memory stays bounded.
    """
    step = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))  # side of a pixel, in pixels of source
    n = min(max(1, math.ceil(step - 1e-6)), MAX_OVERSAMPLING)
    out = np.empty((height, width, source.shape[2]), dtype=np.float32)
    rows = max(1, CHUNK_SAMPLES // max(width * n * n, 1))
    across = (np.arange(width * n) + 0.5) / n
    for first in range(0, height, rows):
        last = min(first + rows, height)
        down = first + (np.arange((last - first) * n) + 0.5) / n
        x = matrix[0, 0] * across + matrix[0, 1] * down[:, None] + matrix[0, 2] - 0.5
        y = matrix[1, 0] * across + matrix[1, 1] * down[:, None] + matrix[1, 2] - 0.5
        samples = _bilinear(source, x, y, border)
        out[first:last] = samples.reshape(last - first, n, width, n, out.shape[2]).mean(axis=(1, 3))
    return out


def _bilinear(source: NDArray[Any], x: NDArray[np.float64], y: NDArray[np.float64], border: str) -> NDArray[np.float32]:
    h, w = source.shape[:2]
    left, top = np.floor(x), np.floor(y)
    total = np.zeros((*x.shape, source.shape[2]), dtype=np.float32)
    for row, row_weight in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, column_weight in ((left, 1 - (x - left)), (left + 1, x - left)):
            weight = row_weight * column_weight
            if border == "zero":
                weight = weight * ((row >= 0) & (row < h) & (column >= 0) & (column < w))
            total += weight[..., None].astype(np.float32) * source[_inside(row, h, border), _inside(column, w, border)]
    return total


def _inside(index: NDArray[np.float64], length: int, border: str) -> NDArray[np.int64]:
    if border == "reflect":  # … 1 0 | 0 1 … n-1 | n-1 n-2 …
        index = np.mod(index, 2 * length)
        index = np.minimum(index, 2 * length - 1 - index)
    return index.clip(0, length - 1).astype(np.int64)


def blur_region(pixels: Pixels, box: tuple[float, float, float, float], *, margin: float = REDACTED_MARGIN) -> Pixels:
    """A copy of `pixels` (H, W, C) whose `box` (x, y, width, height), larger by `margin` of its sides on each side, is
    made unrecognisable for good.

    All that is left of the region are the means of 4 x 4 cells, smoothed into one another: 16 colours, whatever its
    size. No key brings it back.
    """
    out = pixels.copy()
    rows, columns = redacted(pixels.shape[:2], box, margin=margin)
    region = out[rows, columns]
    if not region.size:
        return out
    h, w = region.shape[:2]
    down, across = (np.linspace(0, n, min(REDACTED_CELLS, n) + 1).astype(np.int64) for n in (h, w))
    sums = np.add.reduceat(np.add.reduceat(region.astype(np.float64), down[:-1], axis=0), across[:-1], axis=1)
    means = sums / (np.diff(down)[:, None, None] * np.diff(across)[:, None])
    rise, run = len(down) - 1, len(across) - 1
    matrix = np.array([[run / w, 0, 0], [0, rise / h, 0]], dtype=np.float64)
    region[:] = resample(means, matrix, h, w, border="clamp").round().astype(np.uint8)
    return out


def redacted(
    shape: tuple[int, int], box: tuple[float, float, float, float], *, margin: float = REDACTED_MARGIN
) -> tuple[slice, slice]:
    """Rows and columns of a picture of `shape` (H, W) that `blur_region` changes; empty where the box is outside."""
    x, y, width, height = box
    edges = x - margin * width, y - margin * height, x + (1 + margin) * width, y + (1 + margin) * height
    h, w = shape
    left, right = (min(max(v, 0), w) for v in (math.floor(edges[0]), math.ceil(edges[2])))
    top, bottom = (min(max(v, 0), h) for v in (math.floor(edges[1]), math.ceil(edges[3])))
    return slice(top, bottom), slice(left, right)
