from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from services.ifadit.flow import PAPER, CouplingBlock, FlowConfig, IdentityTransform
from tests.services.ifadit.tiny import randomize


def transform(config: FlowConfig, seed: int, spread: float = 0.1) -> IdentityTransform:
    flow = IdentityTransform(config)
    randomize(flow, seed, spread)
    return flow.double().requires_grad_(False)


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SMALL = FlowConfig(dim=128, condition=128, hidden=(96, 64, 64, 96), blocks=4, clamp=2.0, negative_slope=0.01)


@pytest.mark.parametrize(
    ("config", "spread"), [(SMALL, 0.1), pytest.param(PAPER, 0.05, marks=pytest.mark.slow)], ids=["small", "paper"]
)
def test_ten_thousand_identities_come_back_under_ten_thousand_keys(config: FlowConfig, spread: float) -> None:
    flow = transform(config, seed=1, spread=spread)
    for part in range(5):
        z = torch.nn.functional.normalize(draw((2000, config.dim), part))
        condition = draw((2000, config.condition), 100 + part)
        moved, logdet = flow(z, condition)
        back, logdet_back = flow.inverse(moved, condition)
        assert (back - z).abs().max() < 1e-5
        assert (moved - z).abs().amax(1).min() > 0.1, "a face that was hardly moved"
        torch.testing.assert_close(logdet + logdet_back, torch.zeros_like(logdet), atol=1e-8, rtol=0)


def test_a_fresh_flow_multiplies_by_one_and_permutes() -> None:
    config = FlowConfig(8, 4, (4,), 1, 2.0, 0.01)
    block = CouplingBlock(config)
    for parameter in block.subnet.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(3, 8)
    step = block(x, torch.randn(3, 4))
    torch.testing.assert_close(step.value.sort(1).values, x.sort(1).values)
    torch.testing.assert_close(step.logdet, torch.zeros(3), atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    dim=st.integers(2, 9),
    condition=st.integers(1, 5),
    hidden=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    blocks=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_the_log_determinant_is_that_of_the_jacobian(
    dim: int, condition: int, hidden: list[int], blocks: int, seed: int
) -> None:
    config = FlowConfig(dim, condition, tuple(hidden), blocks, clamp=2.0, negative_slope=0.01)
    flow = transform(config, seed, spread=0.5)
    z, c = draw((1, dim), seed), draw((1, condition), seed + 1)
    jacobian = torch.func.jacrev(lambda x: flow(x, c)[0])(z).reshape(dim, dim)
    torch.testing.assert_close(flow(z, c)[1][0], jacobian.det().abs().log(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(flow.inverse(flow(z, c)[0], c)[0], z, atol=1e-9, rtol=0)


def test_another_key_gives_another_identity_in_both_directions() -> None:
    flow = transform(PAPER, seed=2)
    z, right, wrong = draw((4, 512), 1), draw((4, 512), 2), draw((4, 512), 3)
    moved, _ = flow(z, right)
    assert (flow(z, wrong)[0] - moved).abs().amax(1).min() > 0.1
    assert (flow.inverse(moved, wrong)[0] - z).abs().amax(1).min() > 0.1


def test_the_steps_of_the_inverse_undo_those_of_the_forward_pass_one_by_one() -> None:
    flow = transform(FlowConfig(7, 3, (5,), 3, 2.0, 0.01), seed=3, spread=0.5)
    z, c = draw((2, 7), 1), draw((2, 3), 2)
    forward = [z, *(step.value for step in flow.steps(z, c))]
    backward = [step.value for step in flow.inverse_steps(forward[-1], c)]
    for there, back in zip(forward[-2::-1], backward, strict=True):
        torch.testing.assert_close(back, there, atol=1e-10, rtol=0)


def test_permutations_are_never_trained() -> None:
    trained = {name for name, _ in IdentityTransform(PAPER).requires_grad_(True).named_parameters()}
    assert not any("w_perm" in name for name in trained)
