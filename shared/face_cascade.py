"""The MTCNN cascade (Zhang et al. 2016): three small networks that propose, refine and settle boxes of faces.

The weights come with the Python package `mtcnn` (MIT), whose code is never imported: it wants TensorFlow. Boxes are
rows (left, top, right, bottom) in pixels, where pixel (i, j) covers [j, j + 1) x [i, i + 1). They may reach past the
border of the picture: what lies outside is read as zeros, since boxes clipped at the border put landmarks wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Boxes = NDArray[np.float64]

PROPOSAL_THRESHOLD, REFINE_THRESHOLD, OUTPUT_THRESHOLD = 0.6, 0.7, 0.8
PYRAMID_FACTOR = 0.709  # about half the area from level to level
CELL_PX, STRIDE_PX = 12, 2  # what one output of the proposal network sees, and how far the next one is
LEAST_FACE_PX = 12  # smaller faces would need an enlarged picture
STRIP_PIXELS = 400_000  # the proposal network reads a level in strips: 10 channels of these are 16 MB
PATCHES = 128  # patches in one batch of the later networks
# Bounds on what noise may cost: a photograph of a crowd proposes some dozens of boxes a face.
MAX_LEVEL_PROPOSALS, MAX_PROPOSALS = 8_000, 12_000


class ProposalNet(nn.Module):
    """P-Net, fully convolutional: (B, 3, H, W) in [-1, 1] to boxes (B, 4, h, w) and p of a face (B, h, w).

    Output (i, j) sees the 12 px square whose corner is (2i, 2j); its box is told in parts of that square.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 10, 3),
            nn.PReLU(10),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(10, 16, 3),
            nn.PReLU(16),
            nn.Conv2d(16, 32, 3),
            nn.PReLU(32),
        )
        self.box = nn.Conv2d(32, 4, 1)
        self.face = nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.box(features), self.face(features).softmax(dim=1)[:, 1]


class RefineNet(nn.Module):
    """R-Net: patches (B, 3, 24, 24) in [-1, 1] to corrections of their boxes (B, 4) and p of a face (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 28, 3),
            nn.PReLU(28),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(28, 48, 3),
            nn.PReLU(48),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(48, 64, 2),
            nn.PReLU(64),
        )
        self.dense = nn.Sequential(nn.Linear(576, 128), nn.PReLU(128))
        self.box = nn.Linear(128, 4)
        self.face = nn.Linear(128, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.dense(self.trunk(x).permute(0, 3, 2, 1).flatten(1))  # the dense layer reads (W, H, C)
        return self.box(features), self.face(features).softmax(dim=1)[:, 1]


class OutputNet(nn.Module):
    """O-Net: patches (B, 3, 48, 48) in [-1, 1] to box corrections (B, 4), landmarks (B, 5, 2) and p of a face (B,).

    Landmarks are told in parts of the patch, from its corner: two eyes, nose, two corners of the mouth, the eye and the
    corner that lie left in the picture first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 32, 3),
            nn.PReLU(32),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(32, 64, 3),
            nn.PReLU(64),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 64, 3),
            nn.PReLU(64),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(64, 128, 2),
            nn.PReLU(128),
        )
        self.dense = nn.Sequential(nn.Linear(1152, 256), nn.PReLU(256))
        self.box = nn.Linear(256, 4)
        self.landmarks = nn.Linear(256, 10)
        self.face = nn.Linear(256, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.dense(self.trunk(x).permute(0, 3, 2, 1).flatten(1))
        landmarks = self.landmarks(features).unflatten(1, (2, 5)).transpose(1, 2)  # five x, then five y
        return self.box(features), landmarks, self.face(features).softmax(dim=1)[:, 1]


def read_weights(network: nn.Module, file: Path) -> None:
    """Fill `network` from a Keras list of arrays: its parameters in order, kernels as (H, W, in, out).

    The file is a pickle and as trusted as the code of the package that it came with. Raises ValueError where the
    arrays are not those of the network.
    """
    arrays = joblib.load(file)
    parameters = list(network.named_parameters())
    if len(arrays) != len(parameters):
        raise ValueError(f"{file.name} holds {len(arrays)} arrays, {type(network).__name__} has {len(parameters)}")
    with torch.no_grad():
        for (name, parameter), array in zip(parameters, arrays, strict=True):
            value = torch.from_numpy(np.array(array, dtype=np.float32))
            if parameter.ndim == 4:
                value = value.permute(3, 2, 0, 1)  # (out, in, H, W)
            elif parameter.ndim == 2:
                value = value.T
            else:
                value = value.flatten()
            if value.shape != parameter.shape:
                raise ValueError(f"{file.name}: {name} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
            parameter.copy_(value)


def weights_folder() -> Path:
    """Where the package `mtcnn` keeps its weights. Raises ModuleNotFoundError where it is not installed."""
    spec = find_spec("mtcnn")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "the weights of the face finder come with the package `mtcnn`, which is not installed"
        )
    return Path(spec.submodule_search_locations[0]) / "assets" / "weights"


class Halvings:
    """A picture and its repeated halvings (means of 2 x 2 pixels), uint8 (H, W, 3), made when first asked for."""

    def __init__(self, pixels: Tensor) -> None:
        self._pictures = [pixels]

    def at(self, ratio: float) -> tuple[Tensor, float]:
        """The smallest halving that still has `1 / ratio` of the picture's size, and its own true ratio: 1, 2, 4 …"""
        times = 0
        while 2 ** (times + 1) <= ratio and min(self._picture(times).shape[:2]) >= 2:
            times += 1
        return self._picture(times), float(2**times)

    def _picture(self, times: int) -> Tensor:
        while len(self._pictures) <= times:
            self._pictures.append(halve(self._pictures[-1]))
        return self._pictures[times]


def halve(pixels: Tensor) -> Tensor:
    """Means of 2 x 2 pixels, uint8 (H, W, 3); a last odd row or column is left out."""
    h, w = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    corners = [pixels[y:h:2, x:w:2].short() for y in (0, 1) for x in (0, 1)]
    return ((corners[0] + corners[1] + corners[2] + corners[3] + 2) // 4).to(torch.uint8)


def normalized(pixels: Tensor) -> Tensor:
    """Pixels 0..255 as the networks read them, about [-1, 1]."""
    return (pixels.float() - 127.5) / 128


def patches(halvings: Halvings, boxes: Boxes, size: int, degrees: NDArray[np.float64] | None = None) -> Tensor:
    """The square `boxes` (N, 4) resized to (N, 3, size, size) in [-1, 1]; zeros outside the picture.

    `degrees` (N,) turns each box about its centre, clockwise as seen. Every patch is read, bilinear, from the halving
    whose pixels are nearest to the patch's in size, 0.7 to 1.4 times: so large faces are not undersampled.
    """
    angles = np.radians(np.zeros(len(boxes)) if degrees is None else degrees)
    sides = np.maximum(boxes[:, 2] - boxes[:, 0], 1e-6)
    device = halvings.at(1)[0].device
    out = torch.zeros((len(boxes), 3, size, size), device=device)
    grid = (torch.arange(size, device=device) + 0.5) / size - 0.5
    for ratio, rows in _by_ratio(sides / size):
        picture, true_ratio = halvings.at(ratio)
        centre = (boxes[rows, :2] + boxes[rows, 2:4]) / (2 * true_ratio) - 0.5
        along = np.stack([np.cos(angles[rows]), np.sin(angles[rows])], axis=1) * sides[rows, None] / true_ratio
        cx, cy, ax, ay = torch.from_numpy(np.hstack([centre, along])).float().to(device).T[:, :, None, None]
        across, down = grid[None, None, :], grid[None, :, None]
        samples = _bilinear(picture, cx + ax * across - ay * down, cy + ay * across + ax * down)
        out[torch.from_numpy(rows).to(device)] = samples
    return out


def _by_ratio(ratios: NDArray[np.float64]) -> Iterator[tuple[float, NDArray[np.int64]]]:
    powers = np.round(np.log2(np.maximum(ratios, 1.0))).astype(np.int64)
    for power in np.unique(powers):
        yield float(2**power), np.flatnonzero(powers == power)


def _bilinear(picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(H, W, 3) uint8 read at columns x and rows y (N, n, n): (N, 3, n, n), normalized, zeros outside."""
    h, w = picture.shape[:2]
    flat = picture.view(-1, 3)
    left, top = x.floor(), y.floor()
    total, weights = torch.zeros((x.numel(), 3), device=x.device), torch.zeros((x.numel(), 1), device=x.device)
    for row, row_weight in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, column_weight in ((left, 1 - (x - left)), (left + 1, x - left)):
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            weight = (row_weight * column_weight * inside).view(-1, 1)
            index = row.clamp(0, h - 1).long() * w + column.clamp(0, w - 1).long()
            total.addcmul_(weight, flat.index_select(0, index.view(-1)))
            weights += weight
    samples = (total - 127.5 * weights) / 128
    return samples.view(*x.shape, 3).permute(0, 3, 1, 2)


def square(boxes: Boxes) -> Boxes:
    """The squares with the centres of `boxes` (N, 4) and their longer sides."""
    centres = (boxes[:, :2] + boxes[:, 2:4]) / 2
    half = np.maximum(boxes[:, 2:3] - boxes[:, :1], boxes[:, 3:4] - boxes[:, 1:2]) / 2
    return np.hstack([centres - half, centres + half])


def corrected(boxes: Boxes, correction: NDArray[np.float32]) -> Boxes:
    """`boxes` (N, 4) with each edge moved by `correction` (N, 4) in parts of the box's width or height."""
    sides = boxes[:, 2:4] - boxes[:, :2]
    return boxes + correction * np.hstack([sides, sides])


def suppress(
    boxes: Boxes, scores: NDArray[np.float64], limit: float, *, over_smaller: bool = False
) -> NDArray[np.int64]:
    """Non-maximum suppression: indices of the boxes to keep, best first.

    A box goes where it overlaps a better one by more than `limit` of their union, or of the smaller of the two.
    """
    order = np.argsort(-scores, kind="stable")
    area = np.prod(boxes[:, 2:4] - boxes[:, :2], axis=1)
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        edges = np.minimum(boxes[best, 2:4], boxes[rest, 2:4]) - np.maximum(boxes[best, :2], boxes[rest, :2])
        common = np.prod(np.maximum(edges, 0), axis=1)
        whole = np.minimum(area[best], area[rest]) if over_smaller else area[best] + area[rest] - common
        order = rest[common <= limit * whole]
    return np.array(kept, dtype=np.int64)


@dataclass(frozen=True)
class Cascade:
    """The three networks with their weights. Holds no state of a call: threads may share it."""

    proposal: ProposalNet
    refine: RefineNet
    output: OutputNet
    device: torch.device

    @classmethod
    def load(cls, device: torch.device | str = "cpu") -> Cascade:
        """Read the weights of the installed package `mtcnn` (2 MB). Raises ModuleNotFoundError where it is missing."""
        networks = ProposalNet(), RefineNet(), OutputNet()
        for network, name in zip(networks, ("pnet", "rnet", "onet"), strict=True):
            read_weights(network, weights_folder() / f"{name}.lz4")
            # Channels last halve the time on CPUs; torch's stubs do not know the argument.
            network.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(*networks, device=torch.device(device))

    def halvings(self, pixels: NDArray[np.uint8]) -> Halvings:
        """`pixels` (H, W, 3) on the device, ready to be read at any size."""
        return Halvings(torch.from_numpy(np.array(pixels, order="C")).to(self.device))

    @torch.inference_mode()
    def find(
        self, halvings: Halvings, least_face_px: float, on_step: Callable[[], None]
    ) -> tuple[Boxes, NDArray[np.float64]]:
        """All faces that stand about upright in a picture, best first: boxes (N, 4) and scores (N,)."""
        boxes, scores = self._propose(halvings, max(least_face_px, LEAST_FACE_PX), on_step)
        boxes, scores = self._refined(halvings, square(boxes), on_step)
        boxes, _, scores = self.settled(halvings, square(boxes), np.zeros(len(boxes)), on_step)
        boxes, scores = boxes[scores > OUTPUT_THRESHOLD], scores[scores > OUTPUT_THRESHOLD]
        kept = suppress(boxes, scores, 0.7, over_smaller=True)
        return boxes[kept], scores[kept]

    def _propose(
        self, halvings: Halvings, least_face_px: float, on_step: Callable[[], None]
    ) -> tuple[Boxes, NDArray[np.float64]]:
        h, w = halvings.at(1)[0].shape[:2]
        found: list[tuple[Boxes, NDArray[np.float64]]] = [(np.empty((0, 4)), np.empty(0))]
        ratio = least_face_px / CELL_PX
        while min(h, w) / ratio >= CELL_PX:
            picture, true_ratio = halvings.at(ratio)
            size = round(h / ratio), round(w / ratio)
            level = picture
            if size != picture.shape[:2]:
                planes = picture.permute(2, 0, 1)[None]
                if self.device.type != "cpu":
                    planes = planes.float()  # only the CPU resizes bytes
                level = F.interpolate(planes, size, mode="bilinear", antialias=ratio > true_ratio)[0].permute(1, 2, 0)
            boxes, scores = self._propose_in(level, on_step)
            kept = suppress(boxes, scores, 0.5)
            found.append((boxes[kept] * np.tile([w / size[1], h / size[0]], 2), scores[kept]))
            ratio /= PYRAMID_FACTOR
        boxes, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept = suppress(boxes, scores, 0.7)[:MAX_PROPOSALS]
        return boxes[kept], scores[kept]

    def _propose_in(self, level: Tensor, on_step: Callable[[], None]) -> tuple[Boxes, NDArray[np.float64]]:
        """Boxes in one level (h, w, 3) of the pyramid, read in strips whose rows of outputs join without a gap."""
        outputs = -(-(level.shape[0] - 2) // 2) - 4
        step = max(1, STRIP_PIXELS // (STRIDE_PX * level.shape[1]))
        found: list[tuple[Tensor, Tensor]] = []
        for first in range(0, outputs, step):
            on_step()
            strip = level[STRIDE_PX * first : STRIDE_PX * (first + step - 1) + CELL_PX]
            correction, score = self.proposal(normalized(strip).permute(2, 0, 1)[None])
            row, column = torch.nonzero(score[0] > PROPOSAL_THRESHOLD, as_tuple=True)
            corner = STRIDE_PX * torch.stack([column, row + first], dim=1)
            cells = torch.hstack([corner, corner + CELL_PX])
            found.append((cells + CELL_PX * correction[0, :, row, column].T, score[0, row, column]))
        boxes = torch.vstack([b for b, _ in found]).double().cpu().numpy()
        scores = torch.hstack([s for _, s in found]).double().cpu().numpy()
        best = np.argsort(-scores, kind="stable")[:MAX_LEVEL_PROPOSALS]
        return boxes[best], scores[best]

    def _refined(
        self, halvings: Halvings, boxes: Boxes, on_step: Callable[[], None]
    ) -> tuple[Boxes, NDArray[np.float64]]:
        corrections, scores = [np.empty((0, 4), np.float32)], [np.empty(0)]
        for first in range(0, len(boxes), PATCHES):
            on_step()
            correction, score = self.refine(patches(halvings, boxes[first : first + PATCHES], 24))
            corrections.append(correction.cpu().numpy())
            scores.append(score.double().cpu().numpy())
        correction, score = np.concatenate(corrections), np.concatenate(scores)
        good = score > REFINE_THRESHOLD
        boxes, score = corrected(boxes[good], correction[good]), score[good]
        kept = suppress(boxes, score, 0.7)
        return boxes[kept], score[kept]

    @torch.inference_mode()
    def settled(
        self, halvings: Halvings, boxes: Boxes, degrees: NDArray[np.float64], on_step: Callable[[], None]
    ) -> tuple[Boxes, NDArray[np.float64], NDArray[np.float64]]:
        """What O-Net sees in square `boxes` (N, 4), each turned by `degrees` (N,) about its centre.

        Boxes as O-Net corrects them (N, 4), to be turned about their own centres likewise; landmarks (N, 5, 2) of the
        picture; scores (N,). Nothing is left out.
        """
        corrections, points, scores = [np.empty((0, 4), np.float32)], [np.empty((0, 5, 2))], [np.empty(0)]
        for first in range(0, len(boxes), PATCHES):
            on_step()
            some = slice(first, first + PATCHES)
            correction, landmarks, score = self.output(patches(halvings, boxes[some], 48, degrees[some]))
            corrections.append(correction.cpu().numpy())
            points.append(landmarks.double().cpu().numpy())
            scores.append(score.double().cpu().numpy())
        angles, centres, sides = np.radians(degrees), (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        # Rows that turn offsets from a centre clockwise (y points down).
        turn = np.stack([np.cos(angles), np.sin(angles), -np.sin(angles), np.cos(angles)], axis=1).reshape(-1, 2, 2)
        landmarks = centres[:, None] + ((np.concatenate(points) - 0.5) * sides[:, None]) @ turn
        upright = corrected(boxes, np.concatenate(corrections))
        offsets = (((upright[:, :2] + upright[:, 2:]) / 2 - centres)[:, None] @ turn)[:, 0]
        half = (upright[:, 2:] - upright[:, :2]) / 2
        return np.hstack([centres + offsets - half, centres + offsets + half]), landmarks, np.concatenate(scores)
