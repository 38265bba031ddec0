"""Training of the identity encoder: from scratch, on the identity teacher's answers (distillation)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from services.ifadit.augmentation import jittered, mirrored, morphed
from services.ifadit.teachers import IdentityTeacher
from shared.torchdevice import autocast

BATCH = 48
MORPHS = 18  # of a batch: blends of two training faces, new faces that the teacher is asked about on the spot
LEARNING_RATE = 2e-3
WARMUP = 0.05  # share of the budget
TEMPERATURE = 0.07
CONTRAST_WEIGHT = 0.05


def distillation_loss(embedding: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """How far unit embeddings (B, D) are from the teacher's unit embeddings (B, D) of the same faces.

    `match` is 1 - cosine. `contrast` asks that each embedding is nearest to its own face's among the batch (InfoNCE):
    the cosine alone is content with the mean face.
    """
    match = 1 - (embedding * teacher).sum(1).mean()
    scores = embedding @ teacher.T / TEMPERATURE
    contrast = F.cross_entropy(scores, torch.arange(len(embedding), device=embedding.device))
    return {"match": match, "contrast": contrast, "loss": match + CONTRAST_WEIGHT * contrast}


def one_cycle(done: float, warmup: float) -> float:
    """Learning rate as a share of its peak: linear rise, then half a cosine to 0."""
    if done < warmup:
        return max(done / warmup, 0.02)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


class EncoderLearner:
    """Learner of the identity encoder.

    pictures    (N, 3, S, S) uint8, aligned faces
    embeddings  (N, D) the teacher's, of unit length
    """

    def __init__(self, encoder: nn.Module, teacher: IdentityTeacher, pictures: Tensor, embeddings: Tensor) -> None:
        self.networks = encoder
        self.teacher = teacher
        self.pictures, self.embeddings = pictures, embeddings
        self.optimizers = {"encoder": torch.optim.AdamW(encoder.parameters(), LEARNING_RATE, weight_decay=0.02)}

    def step(self, step: int, done: float, rng: Generator) -> Mapping[str, Tensor]:
        """One batch of faces and of blends of faces."""
        count = BATCH - MORPHS
        index = torch.randint(len(self.pictures), (count,), generator=rng)
        parents = torch.randint(len(self.pictures), (2, MORPHS), generator=rng)
        morphs = morphed(self.pictures[parents[0]].float() / 255, self.pictures[parents[1]].float() / 255, rng)
        with torch.no_grad():
            target = torch.cat([self.embeddings[index], self.teacher(morphs, mirror=True)])
        x = jittered(mirrored(torch.cat([self.pictures[index].float() / 255, morphs]), rng), rng)
        self.networks.train()
        with autocast(x.device):
            embedding = self.networks(x)
        losses = distillation_loss(embedding.float(), target)
        optimizer = self.optimizers["encoder"]
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * one_cycle(done, WARMUP)
        optimizer.zero_grad()
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(self.networks.parameters(), 5.0)
        optimizer.step()
        return {name: value.detach() for name, value in losses.items()}
