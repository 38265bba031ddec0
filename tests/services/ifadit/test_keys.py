from __future__ import annotations

import math
import struct
from statistics import NormalDist

import numpy as np
import pytest
import torch

from services.ifadit.alignment import ffhq_quad
from services.ifadit.keys import key_vector
from services.ifadit.losses import inter_loss, reversed_identity_loss

NUMBERS = [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 123456789]
OCTETS = b"".join(struct.pack(">I", n) for n in NUMBERS)


def test_v1_spreads_the_octets_over_one_half_to_one() -> None:
    expected = np.array([0.5 + 0.5 * n / 2**32 for n in NUMBERS]).astype(np.float32)
    assert key_vector(OCTETS, "v1-uniform").numpy().tolist() == expected.tolist()


def test_v2_takes_normal_quantiles_and_stays_finite_at_both_ends() -> None:
    expected = [NormalDist().inv_cdf((n + 0.5) / 2**32) for n in NUMBERS]
    key = key_vector(bytearray(OCTETS), "v2-gauss")
    torch.testing.assert_close(key.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-6)


def test_a_key_does_not_share_memory_with_its_octets() -> None:
    octets = bytearray(OCTETS)
    key = key_vector(octets, "v1-uniform")
    before = key.clone()
    octets[:] = bytes(len(octets))
    assert torch.equal(key, before)


@pytest.mark.parametrize("octets", [b"", b"abc", bytes(7)])
def test_octets_that_are_no_whole_number_of_coordinates_are_refused(octets: bytes) -> None:
    with pytest.raises(ValueError, match="4 octets"):
        key_vector(octets, "v2-gauss")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="v3"):
        key_vector(OCTETS, "v3")  # type: ignore[arg-type]


def test_inter_loss_a_pair_does_not_grow_with_the_batch() -> None:
    one = torch.nn.functional.normalize(torch.ones(1, 8))
    for count in (2, 5, 9):
        assert inter_loss(one.expand(count, -1), per_pair=True).item() == pytest.approx(1)
        assert inter_loss(one.expand(count, -1)).item() == pytest.approx(math.comb(count, 2), rel=1e-5)
    assert inter_loss(one, per_pair=True).item() == 0


def test_people_who_differ_enough_feel_no_push() -> None:
    a = torch.eye(4, requires_grad=True)
    loss = reversed_identity_loss(a, torch.eye(4).roll(1, 0), margin=0.1)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(0.1)
    assert a.grad is not None
    assert not a.grad.any()


def test_landmarks_without_a_direction_or_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="direction"):
        ffhq_quad(np.ones((68, 2)))
    with pytest.raises(ValueError, match="68"):
        ffhq_quad(np.ones((5, 2)))
