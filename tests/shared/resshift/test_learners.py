"""The learners of the small variants: what learns, what stays, and what a denoiser is shown."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from shared.resshift.autoencoderlearner import AutoencoderLearner
from shared.resshift.decoderlearner import DecoderLearner
from shared.resshift.denoiserlearner import GUESSED, STARTS, DenoiserLearner
from shared.resshift.schedule import at, exponential
from shared.resshift.smallchain import SMALL as CHAIN
from shared.training import Learner
from tests.shared.resshift.tinytraining import autoencoder, loss, pairs, seeded

CPU = torch.device("cpu")


class Guess(nn.Module):
    """A denoiser whose residual is a learnt constant."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.full((1, 3, 1, 1), 0.25))

    def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        return self.constant.expand_as(x)


def denoiser_learner() -> DenoiserLearner:
    return DenoiserLearner(Guess(), autoencoder(), exponential(**CHAIN), pairs(), loss(), CPU)


def trained(learner: Learner, steps: int, done: float = 0.5) -> list[float]:
    """The L1 of every step."""
    return [float(learner.step(step, done, seeded(step))["l1"]) for step in range(steps)]


def changed(network: nn.Module, before: nn.Module) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("kind", [AutoencoderLearner, DecoderLearner])
def test_pictures_come_nearer(kind: Callable[..., Learner]) -> None:
    errors = trained(kind(autoencoder(), pairs(), loss(), CPU), 60)
    assert sum(errors[-10:]) < 0.99 * sum(errors[:10])


def test_the_stage_of_the_decoder_leaves_the_latent_alone() -> None:
    network = autoencoder()
    before = copy.deepcopy(network)
    trained(DecoderLearner(network, pairs(), loss(), CPU), 2)
    assert changed(network.decoder, before.decoder)
    assert not changed(network.encoder, before.encoder)


@pytest.mark.parametrize(("done", "decoder_learns"), [(0.0, False), (0.5, True)])
def test_the_decoder_learns_along_once_pictures_are_compared(done: float, decoder_learns: bool) -> None:
    learner = denoiser_learner()
    before = copy.deepcopy(learner.autoencoder)
    learner.step(100, done, seeded(0))
    assert changed(learner.denoiser, Guess())
    assert changed(learner.autoencoder.decoder, before.decoder) == decoder_learns
    assert not changed(learner.autoencoder.encoder, before.encoder)


class TestWhatADenoiserIsShown:
    def test_starts_hold_nothing_of_the_truth(self) -> None:
        learner = denoiser_learner()
        z_y, lq = torch.zeros(8, 3, 16, 16), torch.zeros(8, 3, 16, 16)
        first, _ = learner.noised(torch.zeros(8, 3, 16, 16), z_y, lq, seeded(3), own=True)
        second, t = learner.noised(torch.ones(8, 3, 16, 16), z_y, lq, seeded(3), own=True)
        assert torch.equal(first[:STARTS], second[:STARTS])
        assert set(t[:STARTS].tolist()) <= set(learner.starts.tolist())

    def test_guesses_are_the_networks_own_and_the_rest_is_true(self) -> None:
        """Without noise x_t is z_y + (1 - eta) (x_0 - z_y), from which x_0 follows."""
        learner = DenoiserLearner(Guess(), autoencoder(), exponential(**CHAIN | {"kappa": 1e-6}), pairs(), loss(), CPU)
        z, z_y = torch.ones(8, 3, 16, 16), torch.zeros(8, 3, 16, 16)
        x_t, t = learner.noised(z, z_y, torch.zeros(8, 3, 16, 16), seeded(4), own=True)
        x0 = x_t / (1 - at(learner.schedule.eta, t, x_t))
        guesses = slice(STARTS, STARTS + GUESSED)
        torch.testing.assert_close(x0[guesses], torch.full_like(x0[guesses], -0.25), atol=1e-3, rtol=0)
        torch.testing.assert_close(x0[STARTS + GUESSED :], z[STARTS + GUESSED :], atol=1e-3, rtol=0)

    def test_starts_are_where_the_walks_start(self) -> None:
        assert denoiser_learner().starts.tolist() == [14, 13, 11, 7, 0]
