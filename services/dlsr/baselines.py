"""Plain distances on the same features, offered beside DLSR's scores: some of them win.

All come as parts by layer, (B, M), whose sum is the score; larger is more out of distribution. Distances are squared,
which orders items as their roots do and lets the parts add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.dlsr.layers import layer_sums

VARIANCE_KEPT = 0.95
NEIGHBOURS = 10


class Baselines:
    """Statistics of the vectors that a detector was fitted on.

    mean        (D,)
    covariance  (D, D), of the sample, divided by N; in the half precision that it is stored in
    shrinkage   Ledoit and Wolf's weight of the scaled identity, 0..1
    bank        (K, D) int8, vectors to look for neighbours in; none: no `knn`
    scales      (K,) what the numbers of each are to be multiplied by
    """

    def __init__(self, mean: Tensor, covariance: Tensor, shrinkage: float, bank: Tensor, scales: Tensor) -> None:
        self.mean, self.covariance, self.shrinkage = mean.float(), covariance.float(), shrinkage
        self.bank, self.scales = bank, scales
        variances, axes = np.linalg.eigh(self.covariance.cpu().double().numpy())
        variances = variances.clip(0)
        rank = 1 + int(np.searchsorted(variances[::-1].cumsum(), VARIANCE_KEPT * variances.sum()))
        shrunk = (1 - shrinkage) * variances + shrinkage * variances.mean()
        device = self.mean.device
        self._left_out = torch.from_numpy(axes[:, : len(variances) - rank]).float().to(device)
        self._precision = torch.from_numpy((axes / shrunk) @ axes.T).float().to(device)
        self._neighbours = bank.float() * scales[:, None]
        self._lengths = self._neighbours.square().sum(1)

    @classmethod
    def fit(cls, vectors: Tensor, seed: int, device: torch.device | str, bank: int) -> Baselines:
        """From vectors (N, D) on the CPU that a detector is fitted on; at most `bank` are kept as neighbours."""
        x = vectors.double().numpy()
        mean = x.mean(0)
        covariance, shrinkage = ledoit_wolf(x - mean)
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:bank].sort().values
        tensors = (torch.from_numpy(mean).to(device), torch.from_numpy(covariance).half().to(device))
        neighbours = vectors[chosen]
        scales = neighbours.abs().amax(1) / 127
        rounded = (neighbours / scales[:, None]).round().to(torch.int8)
        return cls(*tensors, shrinkage, rounded.to(device), scales.to(device))

    def without_bank(self) -> Baselines:
        """The same without neighbours."""
        return Baselines(self.mean, self.covariance, self.shrinkage, self.bank[:0], self.scales[:0])

    def distance_to_mean(self, z: Tensor, boundaries: Sequence[int]) -> Tensor:
        """Squared distance to the mean."""
        return layer_sums((z - self.mean).square(), boundaries)

    def mahalanobis(self, z: Tensor, boundaries: Sequence[int]) -> Tensor:
        """Squared Mahalanobis distance under the shrunk covariance. A layer's part may be negative."""
        x = z - self.mean
        return layer_sums(x * (x @ self._precision), boundaries)

    def pca(self, z: Tensor, boundaries: Sequence[int]) -> Tensor:
        """Squared error of the reconstruction from the axes that hold 95 % of the variance."""
        left_out = (z - self.mean) @ self._left_out
        return layer_sums((left_out @ self._left_out.T).square(), boundaries)

    def knn(self, z: Tensor, boundaries: Sequence[int]) -> Tensor:
        """Mean squared distance to the ten nearest vectors of the bank."""
        distances = self._lengths - 2 * z @ self._neighbours.T  # less z's own length, which orders nothing
        nearest = distances.topk(min(NEIGHBOURS, len(self.bank)), dim=1, largest=False).indices
        apart = (z[:, None] - self._neighbours[nearest]).square()
        return layer_sums(apart.mean(1), boundaries)


def ledoit_wolf(centred: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The covariance of centred rows (N, D), divided by N, and how much of it to replace by a scaled identity.

    Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance matrices, 2004: the share that makes
    the expected squared error least.
    """
    count, width = centred.shape
    covariance = centred.T @ centred / count
    scale = np.trace(covariance) / width
    away = (covariance**2).sum() - width * scale**2  # |S - scale I|^2
    # sum over the rows of |x x' - S|^2, over N^2
    noise = ((centred**2).sum(1) ** 2).sum() / count**2 - (covariance**2).sum() / count
    return covariance, float(min(noise, away) / away) if away > 0 else 1.0
