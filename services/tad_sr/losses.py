"""The terms of TAD-SR's training, as functions of tensors (tad-sr.md 4). Each gives one number a sample, (B,).

Latents are (B, C, h, w); `t` (B,) indexes the schedule; teachers are frozen. Noise comes from the caller: the reference
draws it uniformly from [0, 1), `reference_noise`, where one expects normals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from shared.resshift.sampler import Denoiser
from shared.resshift.schedule import ResShiftSchedule

PAPER_WEIGHTS = {"regression": 1.0, "distillation": 1.0, "adversarial": 0.02}
PAPER_FACE_WEIGHTS = {"regression": 1.0, "distillation": 0.1, "adversarial": 0.2}


class Taps(Protocol):
    """The teacher as the discriminator uses it."""

    def features(self, x: Tensor, t: Tensor, lq: Tensor) -> list[Tensor]:
        """Feature maps of the encoder."""


class Distillation(NamedTuple):
    """The score distillation and what it is made of."""

    x_student: Tensor
    pred_student: Tensor
    """the teacher's clean latent from the student's result, noised"""
    pred_target: Tensor
    """the same from the target"""
    gradient: Tensor
    """what the student's result is pushed along, times the number of its elements"""
    loss: Tensor
    """(B,) mean of gradient times result"""


def regression(student_x0: Tensor, teacher_x0: Tensor) -> Tensor:
    """Mean squared distance to the teacher's deterministic result from the same noise."""
    return (student_x0 - teacher_x0).square().flatten(1).mean(1)


def score_distillation(
    teacher: Denoiser,
    schedule: ResShiftSchedule,
    student_x0: Tensor,
    target_x0: Tensor,
    z_y: Tensor,
    lq: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    double_scale: bool,
) -> Distillation:
    """High-frequency-enhanced score distillation: the noise that the teacher sees in the result, less in the target.

    double_scale  divide the teacher's input by its standard deviation twice, as the reference does by mistake

    Only `student_x0` gets a gradient; it is `gradient` / number of elements of a sample.
    """
    with torch.no_grad():
        x_student, x_target = (schedule.add_noise(x0, z_y, t, noise) for x0 in (student_x0, target_x0))

        def seen(x_t: Tensor) -> Tensor:
            x = schedule.scale_input(x_t, t)
            x = schedule.scale_input(x, t) if double_scale else x
            return schedule.pred_x0(teacher(x, schedule.trained_index(t), lq), z_y)

        pred_student, pred_target = seen(x_student), seen(x_target)
        gradient = schedule.pred_eps(x_student, pred_student, z_y, t) - schedule.pred_eps(x_target, pred_target, z_y, t)
    loss = (gradient * student_x0).flatten(1).mean(1)
    return Distillation(x_student, pred_student, pred_target, gradient, loss)


def noisy_features(
    teacher: Taps, schedule: ResShiftSchedule, x0: Tensor, z_y: Tensor, lq: Tensor, t: Tensor, noise: Tensor
) -> list[Tensor]:
    """What the discriminator sees of a latent: the teacher's features of it at time t. They carry gradients to x0."""
    x_t = schedule.add_noise(x0, z_y, t, noise)
    return teacher.features(schedule.scale_input(x_t, t), schedule.trained_index(t), lq)


def hinge(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """The discriminator's loss from its logits on encoded ground truths and on results of the student."""
    return F.relu(1 - torch.cat(list(real), 1)).mean(1) + F.relu(1 + torch.cat(list(fake), 1)).mean(1)


def adversarial(fake: Sequence[Tensor]) -> Tensor:
    """The student's loss from the discriminator's logits on its results. Large maps have most of the logits."""
    return -torch.cat(list(fake), 1).mean(1)


def distillation_times(batch: int, schedule: ResShiftSchedule, rng: Generator) -> Tensor:
    """Times of little noise: uniform over the first fifth of the chain."""
    return torch.randint(max(len(schedule) // 5, 1), (batch,), generator=rng)


def discriminator_times(batch: int, schedule: ResShiftSchedule, rng: Generator) -> Tensor:
    """Uniform over all times but the noisiest."""
    return torch.randint(len(schedule) - 1, (batch,), generator=rng)


def reference_noise(shape: Sequence[int], rng: Generator) -> Tensor:
    """What the reference adds in distillation and discriminator: uniform over [0, 1), neither centred nor normal."""
    return torch.rand(tuple(shape), generator=rng)
