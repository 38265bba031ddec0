"""What the training of iFADIT asks for, each term as a function of tensors (ifadit.md 4).

Pictures are (B, 3, S, S), RGB 0..1; embeddings (B, D) of unit length unless said.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LOW_PASS_PX = 8
KERNEL_SCALES = (0.5, 1.0, 2.0)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each pair of rows, (B,). Rows need not be of unit length."""
    return F.cosine_similarity(a, b, dim=1)


def above(cosines: Tensor, margin: float) -> Tensor:
    """Mean of what cosines exceed a margin by: two faces are to differ, not to be opposites."""
    return (cosines - margin).clamp(min=0).mean()


def between(embeddings: Tensor, margin: float) -> Tensor:
    """The "inter" loss, as a mean over the pairs: what the cosines of different rows exceed a margin by.

    The reference sums the pairs, which makes the weight a matter of the batch (ifadit.md 7.13).
    """
    gram = F.normalize(embeddings, dim=1) @ F.normalize(embeddings, dim=1).T
    rows, columns = torch.tril_indices(len(gram), len(gram), -1, device=gram.device)
    return above(gram[rows, columns], margin)


def masked_l1(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference, weighted by a mask (S, S), 0..1. Shapes of pred and target (B, 3, S, S)."""
    return ((pred - target).abs() * mask).sum() / (mask.sum() * 3 * len(pred))


def low_pass_l1(pred: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of 8 x 8 px means: light and colour may not change where the face does."""
    return F.l1_loss(F.avg_pool2d(pred, LOW_PASS_PX), F.avg_pool2d(target, LOW_PASS_PX))


def perceptual(pred: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of feature maps, each brought to unit length a pixel as LPIPS does, summed over maps."""
    total = pred[0].new_zeros(())
    for p, t in zip(pred, target, strict=True):
        total = total + (F.normalize(p, dim=1, eps=1e-4) - F.normalize(t, dim=1, eps=1e-4)).square().sum(1).mean()
    return total


def unit_norm(x: Tensor) -> Tensor:
    """How far rows are from unit length: T and its inverse are to stay on M's domain (ifadit.md 7.5)."""
    return (x.norm(dim=1) - 1).square().mean()


def mean_discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two sets of rows under Gaussian kernels (Gretton et al. 2012, eq. 3).

    x (n, D), y (m, D). Unbiased in expectation; 0 means that the kernels see no difference of the distributions.
    """
    xx, yy, xy = (torch.cdist(a, b).square() for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    total = x.new_zeros(())
    for scale in KERNEL_SCALES:
        kxx, kyy, kxy = ((-d / (2 * scale)).exp() for d in (xx, yy, xy))
        total = total + (kxx.sum() - kxx.diagonal().sum()) / (n * (n - 1))
        total = total + (kyy.sum() - kyy.diagonal().sum()) / (m * (m - 1)) - 2 * kxy.mean()
    return total
