from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import plain_dit_sr
from services.dit_sr.adafm import adafm, filter_matrix
from services.dit_sr.denoiser import UNetModelSwin
from shared.nn.freezing import freeze
from shared.resshift.tokens import GroupNorm
from shared.resshift.windows import from_windows, last_row_mask, shifted, to_windows
from tests.services.dit_sr.tiny import TINY, denoiser

CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_fourier(x: Tensor, scale: Tensor) -> Tensor:
    """AdaFM as the paper writes it."""
    b, c, h, w = x.shape
    p = scale.shape[1]
    patches = x.reshape(b, c, h // p, p, w // p, p).transpose(3, 4)
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(patches) * scale[:, None, None, None], s=(p, p))
    return filtered.transpose(3, 4).reshape(b, c, h, w)


class TestAdaFM:
    @settings(max_examples=30, deadline=None)
    @given(p=st.sampled_from([2, 4, 8]), rows=st.integers(1, 3), columns=st.integers(1, 3), seed=st.integers(0, 99))
    def test_the_matrix_does_what_the_fourier_transform_does(self, p: int, rows: int, columns: int, seed: int) -> None:
        x, scale = draw(2, 3, rows * p, columns * p, seed=seed), draw(2, p, p // 2 + 1, seed=seed + 1)
        filtered = adafm(to_windows(x, p), filter_matrix(scale))
        torch.testing.assert_close(from_windows(filtered, p, *x.shape[2:]), by_fourier(x, scale), atol=1e-5, rtol=0)

    def test_a_spectrum_of_ones_changes_nothing(self) -> None:
        x = draw(1, 2, 64, 3)
        torch.testing.assert_close(adafm(x, filter_matrix(torch.ones(1, 8, 5))), x, atol=1e-6, rtol=0)

    def test_one_matrix_serves_a_whole_batch(self) -> None:
        x, matrix = draw(3, 4, 64, 2), filter_matrix(draw(1, 8, 5))
        torch.testing.assert_close(adafm(x, matrix), adafm(x, matrix.expand(3, -1, -1)), atol=1e-5, rtol=0)

    def test_gradients_reach_the_spectrum_as_through_the_fourier_transform(self) -> None:
        x, ours, theirs = draw(2, 3, 16, 16), draw(2, 8, 5).requires_grad_(), draw(2, 8, 5).requires_grad_()
        weights = draw(2, 3, 16, 16, seed=1)
        (gained,) = torch.autograd.grad(
            (adafm(to_windows(x, 8), filter_matrix(ours)) * to_windows(weights, 8)).sum(), ours
        )
        (expected,) = torch.autograd.grad((by_fourier(x, theirs) * weights).sum(), theirs)
        torch.testing.assert_close(gained, expected, atol=1e-4, rtol=1e-4)


class TestWindows:
    @settings(max_examples=30, deadline=None)
    @given(batch=st.integers(1, 3), rows=st.integers(1, 4), columns=st.integers(1, 4), w=st.sampled_from([2, 4, 8]))
    def test_a_map_comes_back_from_its_windows(self, batch: int, rows: int, columns: int, w: int) -> None:
        x = draw(batch, 3, rows * w, columns * w)
        assert from_windows(to_windows(x, w), w, rows * w, columns * w).equal(x)

    @settings(max_examples=30, deadline=None)
    @given(batch=st.integers(1, 3), rows=st.integers(1, 4), columns=st.integers(1, 4), w=st.sampled_from([2, 4, 8]))
    def test_shifted_windows_are_those_of_the_rolled_map(self, batch: int, rows: int, columns: int, w: int) -> None:
        x, shift = draw(batch, 3, rows * w, columns * w), w // 2
        windows = shifted(batch, rows * w, columns * w, w, shift, CPU)
        tokens = to_windows(x, w).flatten(0, 2)
        rolled = to_windows(x.roll((-shift, -shift), dims=(2, 3)), w)
        free = torch.cat([rolled[:, :-columns].flatten(0, 2), rolled[:, -columns:].flatten(0, 2)])
        assert tokens[windows.gather].equal(free)
        assert windows.free == batch * (rows - 1) * columns
        assert tokens[windows.gather][windows.scatter].equal(tokens)

    def test_the_mask_parts_left_from_right(self) -> None:
        mask = last_row_mask(4, 2, CPU).view(4, 4, 4, 4)
        right = torch.arange(4) >= 2
        assert (mask == torch.where(right[:, None] == right, 0.0, -100.0)[None, :, None, :]).all()

    def test_a_map_that_does_not_divide_is_refused(self) -> None:
        with pytest.raises(ValueError, match="12 x 16"):
            to_windows(draw(1, 3, 12, 16), 8)


def test_the_normalisation_is_that_of_the_whole_map() -> None:
    x, norm = draw(2, 64, 16, 24), GroupNorm(64)
    theirs = torch.nn.functional.group_norm(x, 32)
    torch.testing.assert_close(from_windows(norm(to_windows(x, 8)), 8, 16, 24), theirs, atol=1e-5, rtol=0)


def _frozen(network: UNetModelSwin) -> UNetModelSwin:
    freeze(network)
    return network


class TestNetwork:
    def test_an_item_of_a_batch_is_what_it_is_alone(self) -> None:
        network = denoiser()
        x, t, lq = draw(3, 3, 16, 32), torch.tensor([14, 6, 0]), draw(3, 3, 16, 32, seed=1)
        together = network(x, t, lq)
        for i in range(3):
            torch.testing.assert_close(network(x[[i]], t[[i]], lq[[i]]), together[[i]], atol=1e-5, rtol=0)

    def test_the_filters_of_one_time_serve_a_batch(self) -> None:
        network = denoiser()
        x, lq, t = draw(2, 3, 16, 16), draw(2, 3, 16, 16, seed=1), torch.tensor([7])
        parts = network.predict(x, network.condition(lq), network.filters(t))
        torch.testing.assert_close(parts, network(x, t.expand(2), lq), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("changed", [{}, {"lq_size": 64}, {"attention_resolutions": [16]}], ids=str)
    def test_every_parameter_learns(self, changed: dict[str, Any]) -> None:
        network = denoiser(**changed).train().requires_grad_(True)
        scale = network.config["lq_size"] // 16
        y = network(draw(2, 3, 16, 16), torch.tensor([3, 11]), draw(2, 3, 16 * scale, 16 * scale))
        y.square().mean().backward()
        idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert not idle

    def test_it_learns_after_it_has_sampled(self) -> None:
        """What is kept per size was made for the sampler, where nothing records gradients."""
        network = denoiser()
        x, t, lq = draw(1, 3, 32, 48), torch.tensor([2]), draw(1, 3, 32, 48)
        with torch.inference_mode():
            sampled = network(x, t, lq)
        learning = network.requires_grad_(True)(x, t, lq)
        learning.sum().backward()
        torch.testing.assert_close(learning.detach(), sampled, atol=1e-5, rtol=0)

    def test_filters_that_begin_as_identity_let_everything_pass(self) -> None:
        network = UNetModelSwin(**TINY)
        network.start_with_identity_filters()
        for block in network.transformer_blocks():
            torch.nn.init.zeros_(block.adaLN_scale_msa[1].weight)
            filters = block.filters(draw(1, 128))
            torch.testing.assert_close(filters.msa[0], torch.eye(64), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("size", [(16, 16), (32, 48)], ids=str)
    @pytest.mark.parametrize("changed", [{}, {"channel_mult": [1, 2, 2], "image_size": 32, "lq_size": 32}], ids=str)
    def test_frozen_or_not_it_gives_the_numbers_of_the_plain_form(
        self, size: tuple[int, int], changed: dict[str, Any]
    ) -> None:
        network = denoiser(**changed)
        x, t, lq = draw(2, 3, *size), torch.tensor([3, 9]), draw(2, 3, *size, seed=1)
        x, lq = (F.interpolate(part, scale_factor=network.multiple / 16) for part in (x, lq))
        plain = plain_dit_sr.forward(network, x, t, lq)
        torch.testing.assert_close(network(x, t, lq), plain, atol=1e-5, rtol=0)
        torch.testing.assert_close(_frozen(network)(x, t, lq), plain, atol=1e-5, rtol=0)

    def test_freezing_leaves_the_state_dict_as_it_was(self) -> None:
        network = denoiser()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        after = _frozen(network).state_dict()
        assert before.keys() == after.keys()
        assert all(after[name].equal(tensor) for name, tensor in before.items())

    def test_a_latent_of_any_multiple_is_taken(self) -> None:
        network = denoiser()
        assert network.multiple == 16
        x = draw(1, 3, 48, 16)
        assert network(x, torch.tensor([0]), x).shape == x.shape

    @pytest.mark.parametrize("changed", [{"image_size": 15}, {"num_head_channels": 24}, {"lq_size": 48}], ids=str)
    def test_sizes_that_do_not_fit_are_refused(self, changed: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"image_size|halved"):
            denoiser(**changed)
