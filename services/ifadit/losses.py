"""Identity losses of iFADIT, on embeddings (ifadit.md 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

INTER_THRESHOLD = 0.1


def clamped_cosine(a: Tensor, b: Tensor, margin: float) -> Tensor:
    """Cosine of row i of a and row i of b, not below `margin`: (B, d), (B, d) -> (B,)

    Below the margin two people are different enough, and no gradient flows.
    """
    return F.cosine_similarity(a, b).clamp(min=margin)


def identity_loss(a: Tensor, b: Tensor, margin: float) -> Tensor:
    """Mean of 1 - clamped cosine: pulls a to b."""
    return (1 - clamped_cosine(a, b, margin)).mean()


def reversed_identity_loss(a: Tensor, b: Tensor, margin: float) -> Tensor:
    """Mean of the clamped cosine: pushes a away from b until the margin."""
    return clamped_cosine(a, b, margin).mean()


def inter_loss(a: Tensor, threshold: float = INTER_THRESHOLD, *, per_pair: bool = False) -> Tensor:
    """Sum of the inner products >= threshold of every pair of different rows: spreads a batch of identities.

    a         (B, d)  embeddings of unit length
    per_pair  divide by the number of pairs; the published sum grows with the batch
    """
    gram = a @ a.T
    pairs = torch.ones_like(gram).tril(-1).bool()
    total = torch.where(pairs & (gram >= threshold), gram, 0.0).sum()
    return total / max(1, len(a) * (len(a) - 1) // 2) if per_pair else total
