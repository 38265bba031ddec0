"""Where tiles lie, what is padded, and that nothing is lost or doubled when they are put together."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.resshift.noise import BLOCK, NoiseField, Place, draws
from shared.resshift.padding import pad_reflect, reflected, up_to_multiple
from shared.resshift.tiling import Axis, Band, Window, tile_starts

WINDOWS = st.sampled_from(("flat", "gaussian"))


@given(length=st.integers(1, 4096), tile=st.integers(8, 512), overlap=st.integers(0, 7))
def test_tiles_cover_every_pixel_and_stay_inside(length: int, tile: int, overlap: int) -> None:
    starts = tile_starts(length, tile, stride=tile - overlap)
    assert starts[0] == 0
    assert starts[-1] + tile >= length
    assert all(a < b <= a + tile for a, b in pairwise(starts)), "a gap or a repeated tile"
    assert length <= tile or starts[-1] + tile == length


@given(
    length=st.integers(1, 700),
    tiles=st.integers(1, 8),
    overlap=st.integers(0, 6),
    multiple=st.sampled_from((8, 16, 64)),
    grain=st.sampled_from((1, 2, 8)),
    factor=st.sampled_from((1, 4)),
    window=WINDOWS,
)
def test_the_weights_of_all_tiles_add_up_to_one_everywhere(
    length: int, tiles: int, overlap: int, multiple: int, grain: int, factor: int, window: Window
) -> None:
    tile = tiles * multiple
    axis = Axis.plan(length, tile, tile - overlap // grain * grain, multiple=multiple, grain=grain)
    total = torch.zeros(axis.padded * factor)
    for start, weights in zip(axis.starts, axis.weights(factor, window), strict=True):
        assert start % grain == 0
        assert (weights > 0).all()
        total[start * factor : start * factor + len(weights)] += weights
    torch.testing.assert_close(total, torch.ones_like(total))
    assert length <= axis.padded < length + max(multiple, grain)
    assert axis.tile % multiple == 0


@settings(max_examples=40)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    tile=st.sampled_from((8, 16, 24)),
    overlap=st.sampled_from((0, 3, 7)),
    factor=st.sampled_from((1, 2)),
    window=WINDOWS,
)
def test_a_picture_cut_and_blended_is_itself(
    height: int, width: int, tile: int, overlap: int, factor: int, window: Window
) -> None:
    rows, columns = (Axis.plan(side, tile, tile - overlap, multiple=8) for side in (height, width))
    picture = torch.rand(2, rows.padded, columns.padded)
    enlarged = F.interpolate(picture[None], scale_factor=factor, mode="nearest")[0]
    band = Band(rows, columns, 2, factor, window)
    finished = []
    for top in rows.starts:
        for column, left in enumerate(columns.starts):
            part = enlarged[:, top * factor :, left * factor :]
            band.add(column, part[:, : rows.tile * factor, : columns.tile * factor])
        finished.append(band.next_row())
    torch.testing.assert_close(torch.cat(finished, 1), enlarged)


def test_a_bell_hides_the_edge_of_a_tile() -> None:
    first, second = Axis.plan(120, 64, 56, multiple=64).weights(1, "gaussian")
    overlap = first[56:], second[:8]
    assert overlap[0][0] > 0.99
    assert overlap[0][-1] < 0.01
    assert (overlap[0].diff() < 0).all()
    torch.testing.assert_close(overlap[0] + overlap[1], torch.ones(8))
    assert (first[:56] == 1).all()


@pytest.mark.parametrize(
    ("tile", "stride", "multiple", "grain"), [(60, 32, 64, 1), (64, 0, 64, 1), (64, 65, 64, 1), (64, 30, 64, 8)]
)
def test_a_plan_that_the_network_cannot_divide_is_refused(tile: int, stride: int, multiple: int, grain: int) -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        Axis.plan(100, tile, stride, multiple=multiple, grain=grain)


@given(length=st.integers(2, 50), extra=st.integers(0, 49))
def test_padding_is_that_of_the_reference_as_far_as_the_reference_goes(length: int, extra: int) -> None:
    extra = min(extra, length - 1)
    x = torch.rand(1, 1, length, length)
    expected = F.pad(x, (0, extra, 0, extra), mode="reflect")
    assert torch.equal(pad_reflect(x, length + extra, length + extra), expected)


@given(length=st.integers(1, 40), start=st.integers(-100, 0), stop=st.integers(1, 200))
def test_padding_beyond_one_reflection_goes_to_and_fro(length: int, start: int, stop: int) -> None:
    expected = np.pad(np.arange(length), (-start, max(stop - length, 0)), mode="reflect")[: stop - start]
    assert reflected(start, stop, length).tolist() == expected.tolist()


def test_one_pixel_is_repeated() -> None:
    x = torch.rand(1, 3, 1, 1)
    assert torch.equal(pad_reflect(x, 64, 64), x.expand(1, 3, 64, 64))


@given(st.integers(1, 10_000), st.integers(1, 512))
def test_the_least_multiple(length: int, multiple: int) -> None:
    answer = up_to_multiple(length, multiple)
    assert answer % multiple == 0
    assert answer - multiple < length <= answer


class TestNoise:
    @given(st.integers(0, 150), st.integers(0, 150), st.integers(1, 100), st.integers(1, 100))
    def test_a_tile_is_cut_from_the_field_of_the_whole_picture(
        self, top: int, left: int, height: int, width: int
    ) -> None:
        field = NoiseField(5, 2)
        whole = field.cut(1, 0, 0, 250, 250)
        assert torch.equal(field.cut(1, top, left, height, width), whole[:, top : top + height, left : left + width])

    def test_it_is_normal(self) -> None:
        field = NoiseField(3, 4).cut(0, 0, 0, 8 * BLOCK, 8 * BLOCK)
        assert abs(float(field.mean())) < 0.005
        assert abs(float(field.std()) - 1) < 0.005
        blocks = field.reshape(4, 8, BLOCK, 8, BLOCK).transpose(2, 3).reshape(256, -1)
        correlation = torch.corrcoef(blocks) - torch.eye(256)
        assert float(correlation.abs().max()) < 0.1, "two blocks hold the same numbers"

    def test_seeds_and_draws_differ(self) -> None:
        cuts = [NoiseField(seed, 1).cut(draw, 0, 0, 8, 8) for seed in (0, 1, 2**63 - 1) for draw in (0, 1)]
        assert len({tuple(cut.flatten().tolist()) for cut in cuts}) == 6

    def test_a_batch_draws_for_each_what_it_draws_alone(self) -> None:
        places = [Place(NoiseField(seed, 2), 8 * seed, 4, 16, 24) for seed in (1, 2)]
        batch = draws(places, torch.device("cpu"))
        alone = [draws([place], torch.device("cpu")) for place in places]
        for _ in range(3):
            together = next(batch)
            for i in range(2):
                assert torch.equal(together[i], next(alone[i])[0])
