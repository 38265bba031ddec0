"""The training terms: closed forms, gradients, and who gets them."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from services.tad_sr import losses
from services.tad_sr.denoiser import UNetModelSwin
from services.tad_sr.discriminator import TimeAwareDiscriminator
from shared.resshift.schedule import SR
from tests.services.tad_sr.tiny import tiny_denoiser

SHAPE = (2, 3, 16, 16)


def normals(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def teacher() -> UNetModelSwin:
    return tiny_denoiser(1).requires_grad_(False)


@pytest.fixture
def discriminator(teacher: UNetModelSwin) -> TimeAwareDiscriminator:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = TimeAwareDiscriminator(teacher.feature_channels(), embed_dim=32, c_dim=8)
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return network.eval()


@pytest.mark.parametrize("double_scale", [False, True])
def test_distillation_has_its_closed_form_and_the_low_quality_latent_cancels(
    teacher: UNetModelSwin, double_scale: bool
) -> None:
    s, target, z_y, lq, t = normals(0), normals(1), normals(2), normals(3), torch.tensor([0, 2])
    hsd = losses.score_distillation(teacher, SR, s, target, z_y, lq, t, normals(4), double_scale=double_scale)
    eta = torch.from_numpy(SR.eta)[t].float().reshape(-1, 1, 1, 1)
    closed = (1 - eta) / (SR.kappa * eta.sqrt()) * ((s - target) - (hsd.pred_student - hsd.pred_target))
    torch.testing.assert_close(hsd.gradient, closed, atol=2e-4, rtol=1e-4)
    x = SR.scale_input(SR.add_noise(s, z_y, t, normals(4)), t)
    seen = teacher(SR.scale_input(x, t) if double_scale else x, t, lq)
    torch.testing.assert_close(hsd.pred_student, seen)


def test_distillation_pushes_along_its_gradient_and_moves_nobody_else() -> None:
    teacher = tiny_denoiser(1)
    s, target = normals(0).requires_grad_(), normals(1).requires_grad_()
    t = torch.tensor([1, 2])
    hsd = losses.score_distillation(teacher, SR, s, target, normals(2), normals(3), t, normals(4), double_scale=True)
    (gradient,) = torch.autograd.grad(hsd.loss.sum(), s, retain_graph=True)
    torch.testing.assert_close(gradient, hsd.gradient / s[0].numel())
    others = (target, *teacher.parameters())
    assert all(g is None for g in torch.autograd.grad(hsd.loss.sum(), others, allow_unused=True))


def test_nothing_is_distilled_where_student_and_target_agree(teacher: UNetModelSwin) -> None:
    s, t = normals(0), torch.tensor([0, 1])
    hsd = losses.score_distillation(teacher, SR, s, s, normals(2), normals(3), t, normals(4), double_scale=True)
    assert not hsd.gradient.any()


def test_a_teacher_that_predicts_the_residual_is_read_as_one(teacher: UNetModelSwin) -> None:
    from dataclasses import replace

    s, z_y, lq, t, noise = normals(0), normals(2), normals(3), torch.tensor([0, 2]), normals(4)
    schedule = replace(SR, prediction="residual")
    hsd = losses.score_distillation(teacher, schedule, s, s, z_y, lq, t, noise, double_scale=False)
    x = SR.scale_input(SR.add_noise(s, z_y, t, noise), t)
    torch.testing.assert_close(hsd.pred_student, z_y - teacher(x, t, lq))


def test_features_carry_the_discriminators_gradient_to_the_student_alone(
    teacher: UNetModelSwin, discriminator: TimeAwareDiscriminator
) -> None:
    s, t = normals(0).requires_grad_(), torch.tensor([3, 13])
    features = losses.noisy_features(teacher, SR, s, normals(2), normals(3), t, normals(4))
    loss = losses.adversarial(discriminator(features, t)).sum()
    (gradient,) = torch.autograd.grad(loss, s)
    assert gradient.flatten(1).norm(dim=1).min() > 0
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_tapped_features_have_the_channels_that_heads_are_made_for(teacher: UNetModelSwin) -> None:
    features = teacher.features(normals(0), torch.tensor([3, 13]), normals(1))
    assert [feature.shape[1] for feature in features] == teacher.feature_channels()
    assert [tuple(feature.shape[2:]) for feature in features] == [(8, 8)] * 3


def test_time_changes_the_verdict(teacher: UNetModelSwin, discriminator: TimeAwareDiscriminator) -> None:
    features = teacher.features(normals(0), torch.tensor([3, 13]), normals(1))
    early, late = (discriminator(features, torch.tensor([t, t]))[0] for t in (0, 14))
    assert not torch.allclose(early, late)


def test_hinge_and_adversarial_loss_by_hand() -> None:
    real = [torch.tensor([[2.0, 0.5]]), torch.tensor([[-1.0]])]
    fake = [torch.tensor([[-3.0, 0.5]]), torch.tensor([[1.0]])]
    assert losses.hinge(real, fake).tolist() == pytest.approx([(0 + 0.5 + 2) / 3 + (0 + 1.5 + 2) / 3])
    assert losses.adversarial(fake).tolist() == pytest.approx([1.5 / 3])


def test_regression_is_the_mean_square_a_sample() -> None:
    torch.testing.assert_close(
        losses.regression(normals(0), normals(1))[1], (normals(0)[1] - normals(1)[1]).square().mean()
    )


def test_a_spectral_norm_of_one_is_reached_in_training(
    discriminator: TimeAwareDiscriminator, teacher: UNetModelSwin
) -> None:
    features = teacher.features(normals(0), torch.tensor([3, 13]), normals(1))
    discriminator.train()
    for _ in range(60):
        discriminator(features, torch.tensor([3, 13]))
    weight = discriminator.get_submodule("heads.0.main.0.0").weight
    assert isinstance(weight, Tensor)
    assert float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.02)


def test_times_are_drawn_where_the_paper_draws_them() -> None:
    rng = Generator().manual_seed(0)
    assert set(losses.distillation_times(200, SR, rng).tolist()) == {0, 1, 2}
    assert set(losses.discriminator_times(400, SR, rng).tolist()) == set(range(14))
    noise = losses.reference_noise((4, 3, 32, 32), rng)
    assert 0 <= float(noise.min()) < 0.01
    assert 0.99 < float(noise.max()) < 1
