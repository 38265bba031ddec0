"""The loss of pictures: nothing for the truth, one number a seed, and no place that is never looked at."""

from __future__ import annotations

import torch

from shared.resshift.imageloss import WEAVE_WEIGHT, weave
from tests.shared.resshift.tinytraining import loss, seeded


def test_the_truth_costs_nothing() -> None:
    hr = torch.rand(2, 3, 64, 64, generator=seeded(0)) * 2 - 1
    terms = loss()(hr, hr, seeded(1))
    assert all(abs(float(term)) < 1e-6 for term in terms.values())


def test_the_image_term_is_the_weighted_sum() -> None:
    hr = torch.rand(2, 3, 64, 64, generator=seeded(0)) * 2 - 1
    criterion = loss()
    terms = criterion(hr.roll(1, 2), hr, seeded(1))
    expected = terms["l1"] + criterion.weight * terms["perceptual"] + WEAVE_WEIGHT * terms["weave"]
    torch.testing.assert_close(terms["image"], expected)
    assert torch.equal(terms["image"], criterion(hr.roll(1, 2), hr, seeded(1))["image"])


def test_every_row_and_column_can_be_looked_at() -> None:
    """The gradient of the features reaches each under some seed."""
    hr = torch.rand(1, 3, 64, 64, generator=seeded(0)) * 2 - 1
    criterion, seen = loss(), torch.zeros(64, 64)
    for seed in range(40):
        sr = (0.9 * hr).requires_grad_()
        criterion(sr, hr, seeded(seed))["perceptual"].backward()
        assert sr.grad is not None
        seen += sr.grad.abs().sum((0, 1))
    assert (seen.sum(0) > 0).all()
    assert (seen.sum(1) > 0).all()


def test_a_pattern_that_repeats_with_the_blocks_is_woven_and_a_wrong_colour_is_not() -> None:
    pattern = torch.randn(1, 3, 4, 4, generator=seeded(2)).repeat(1, 1, 16, 16)
    spread = (pattern - pattern.mean((2, 3), keepdim=True)).square().mean()
    torch.testing.assert_close(weave(pattern), spread)
    assert float(weave(torch.full((1, 3, 64, 64), 0.3))) < 1e-10
    noise = torch.randn(1, 3, 64, 64, generator=seeded(3))
    assert float(weave(noise)) < 0.1 * float(noise.square().mean())
