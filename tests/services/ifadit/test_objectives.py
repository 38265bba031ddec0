"""The terms of the training, against closed forms and properties."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.ifadit.augmentation import jittered, jpeg, morphed, through_codec
from services.ifadit.discriminator import SMALL, Discriminator, augmented, gradient_penalty
from services.ifadit.encoding import distillation_loss
from services.ifadit.objectives import above, between, low_pass_l1, masked_l1, mean_discrepancy, unit_norm
from services.ifadit.teachers import luma
from shared.nn.frozen import FrozenConv


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def units(count: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, 16, generator=rng(seed)), dim=1)


def test_between_is_the_mean_over_the_pairs_whatever_the_batch() -> None:
    same = units(1, 0).expand(5, -1)
    torch.testing.assert_close(between(same, 0.1), torch.tensor(0.9))
    torch.testing.assert_close(between(torch.eye(7), 0.1), torch.tensor(0.0))


def test_a_cosine_below_the_margin_pulls_nothing() -> None:
    cosines = torch.tensor([-0.9, 0.04, 0.25], requires_grad=True)
    (gradient,) = torch.autograd.grad(above(cosines, 0.05), cosines)
    torch.testing.assert_close(gradient, torch.tensor([0, 0, 1 / 3]))


def test_masked_l1_sees_the_mask_only() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :] = 1
    a = torch.rand(2, 3, 8, 8, generator=rng())
    b = a.clone()
    b[..., 4:, :] += 5
    assert masked_l1(a, b, mask) == 0
    torch.testing.assert_close(masked_l1(a + 0.25, b, mask), torch.tensor(0.25))


def test_low_pass_does_not_see_what_has_no_mean() -> None:
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    a = torch.rand(1, 3, 16, 16, generator=rng())
    torch.testing.assert_close(low_pass_l1(a, a + checks), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(low_pass_l1(a, a + 0.5), torch.tensor(0.5))


def test_the_discrepancy_tells_distributions_apart() -> None:
    same = mean_discrepancy(units(300, 1), units(300, 2))
    cone = mean_discrepancy(units(300, 1), F.normalize(units(300, 2) + 0.3, dim=1))
    assert abs(float(same)) < 0.02 < float(cone)


def test_norm_of_units_is_free() -> None:
    assert float(unit_norm(units(9, 3))) < 1e-10
    torch.testing.assert_close(unit_norm(3 * units(9, 3)), torch.tensor(4.0))


def test_distillation_is_least_for_the_teachers_own_embeddings() -> None:
    teacher = units(12, 4)
    own = distillation_loss(teacher, teacher)
    assert float(own["match"]) < 1e-6
    assert own["loss"] < distillation_loss(teacher.roll(1, 0), teacher)["loss"]


class TestFrozenConvolution:
    def gradients(self, stride: int, padding: int, groups: int, kernel_px: int) -> tuple[Tensor, Tensor]:
        kernel = torch.randn(6, 6 // groups, kernel_px, kernel_px, generator=rng(5))
        frozen = FrozenConv(kernel, torch.zeros(6), stride, padding, groups)
        x = torch.randn(2, 6, 9, 9, generator=rng(6), requires_grad=True)
        weights = torch.randn(frozen(x).shape, generator=rng(7))
        (ours,) = torch.autograd.grad((frozen(x) * weights).sum(), x)
        plain = F.conv2d(x, kernel, None, stride, padding, 1, groups)
        torch.testing.assert_close(frozen(x), plain, atol=1e-5, rtol=1e-4)
        (theirs,) = torch.autograd.grad((plain * weights).sum(), x)
        return ours, theirs

    def test_its_gradient_is_the_librarys(self) -> None:
        for stride, padding, groups, kernel_px in (
            (1, 1, 1, 3),
            (1, 1, 6, 3),
            (2, 1, 6, 3),
            (2, 0, 1, 3),
            (1, 0, 1, 1),
        ):
            ours, theirs = self.gradients(stride, padding, groups, kernel_px)
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


class TestCodec:
    def test_it_gives_8_bit_values_and_passes_the_gradient(self) -> None:
        x = torch.rand(2, 3, 16, 16, generator=rng(), requires_grad=True)
        for seed in range(6):
            stored = through_codec(x, rng(seed))
            torch.testing.assert_close((stored * 255).round(), stored * 255, atol=1e-3, rtol=0)
            (gradient,) = torch.autograd.grad(stored.sum(), x)
            assert torch.equal(gradient, torch.ones_like(x))

    def test_a_better_quality_changes_less(self) -> None:
        x = F.interpolate(torch.rand(4, 3, 6, 6, generator=rng()), size=64, mode="bilinear")
        assert (jpeg(x, 95) - x).abs().mean() < (jpeg(x, 60) - x).abs().mean() < 0.05


def test_jitter_keeps_range_shape_and_draws_from_its_generator_alone() -> None:
    x = torch.rand(8, 3, 64, 64, generator=rng())
    changed = jittered(x, rng(1))
    assert changed.shape == x.shape
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert torch.equal(changed, jittered(x, rng(1)))
    assert not torch.equal(changed, jittered(x, rng(2)))


def test_a_morph_lies_between_its_parents() -> None:
    dark, bright = torch.zeros(6, 3, 64, 64), torch.ones(6, 3, 64, 64)
    share = morphed(dark, bright, rng())
    assert 0 <= float(share.min()) < float(share.max()) <= 1


def test_luma_of_grey_is_itself() -> None:
    grey = torch.rand(2, 1, 4, 4, generator=rng()).expand(-1, 3, -1, -1)
    torch.testing.assert_close(luma(grey), grey)


def test_the_penalty_of_a_linear_judge_is_the_square_of_its_weights() -> None:
    class Linear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * x.sum((1, 2, 3))

    torch.testing.assert_close(gradient_penalty(Linear(), torch.rand(2, 3, 4, 4)), torch.tensor(9.0 * 48))


def test_the_discriminator_gives_a_logit_a_picture() -> None:
    assert Discriminator(SMALL)(torch.rand(3, 3, 64, 64, generator=rng())).shape == (3,)


class TestAugmented:
    def pictures(self, count: int = 4) -> Tensor:
        return torch.rand(count, 3, 24, 24, generator=rng(8))

    def test_equal_generators_change_equal_batches_equally(self) -> None:
        x = self.pictures()
        assert torch.equal(augmented(x, rng(1)), augmented(x, rng(1)))
        assert not torch.equal(augmented(x, rng(1)), augmented(x, rng(2)))

    def test_a_picture_is_shifted_and_lit_and_loses_one_square(self) -> None:
        x = self.pictures(16)
        seen = augmented(x, rng(3))
        assert seen.shape == x.shape
        reach = 24 // 8
        padded = F.pad(x, (reach,) * 4, mode="replicate")
        for i in range(16):
            hole = (seen[i] == 0.5).all(0)
            rows, columns = hole.any(1), hole.any(0)
            assert torch.equal(hole, rows[:, None] & columns)  # a rectangle, cut off at the border at most
            assert 1 <= int(rows.sum()) <= 7
            assert 1 <= int(columns.sum()) <= 7
            shifts = [
                (seen[i] - padded[i, :, top : top + 24, left : left + 24])[:, ~hole]
                for top in range(2 * reach + 1)
                for left in range(2 * reach + 1)
            ]
            spread, light = min((float(d.max() - d.min()), float(d.mean())) for d in shifts)
            assert spread < 1e-5, "no shift of the picture explains what is seen"
            assert abs(light) <= 0.15

    def test_the_gradient_reaches_every_pixel_that_is_still_seen(self) -> None:
        x = self.pictures().requires_grad_(True)
        seen = augmented(x, rng(4))
        (gradient,) = torch.autograd.grad(seen.sum(), x)
        assert float(gradient.sum()) == float((seen.detach() != 0.5).sum())
