"""AdaFM, adaptive frequency modulation: how time enters a block of DiT-SR (dit-sr.md 2.4).

The paper multiplies the spectrum of every p x p patch by one real map and goes back: irfft2(rfft2(patch) * scale).
This is linear in the patch and in the map, and the same for all patches and channels: one pp x pp matrix, built from
the map, does it without a Fourier transform. The map is not Hermitian; irfft2 keeps the real part only, and so does the
matrix.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=8)
def filter_basis(p: int, device: torch.device) -> Tensor:
    """(p (p // 2 + 1), (p p)^2) float32: for each number of a spectral map, the matrix that it alone would give."""
    with torch.inference_mode(False):  # the first caller may be a sampler, the next one a training
        numbers = p * (p // 2 + 1)
        alone = torch.eye(numbers, dtype=torch.float64).view(numbers, p, p // 2 + 1)
        kernels = torch.fft.irfft2(alone, s=(p, p))  # (numbers, p, p): the circular kernel of each
        y, x = torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij")
        y, x = y.flatten(), x.flatten()
        matrices = kernels[:, (y[:, None] - y) % p, (x[:, None] - x) % p]  # (numbers, p p, p p), row-major patches
        return matrices.flatten(1).float().to(device)


def filter_matrix(scale: Tensor) -> Tensor:
    """The matrix M of a spectral map: filtered patch = M patch, patches row-major.

    scale    (B, p, p // 2 + 1)  real
    returns  (B, p p, p p)       float32
    """
    p = scale.shape[1]
    matrix = scale.flatten(1).float() @ filter_basis(p, scale.device)
    return matrix.view(len(scale), p * p, p * p)


def adafm(x: Tensor, matrix: Tensor) -> Tensor:
    """Filter patches.

    x        (B, n, p p, D)       the patches of a feature map, each row-major
    matrix   (B or 1, p p, p p)   from `filter_matrix`
    returns  (B, n, p p, D)       float32
    """
    b, n, tokens, d = x.shape
    # Autocast would round the filter to half precision.
    with torch.autocast(x.device.type, enabled=False):
        if len(matrix) == 1:  # one step for all: the product reads one matrix again and again instead of copies of it
            return torch.bmm(matrix.expand(b * n, -1, -1), x.float().reshape(b * n, tokens, d)).view(x.shape)
        return torch.matmul(matrix[:, None].float(), x.float())
