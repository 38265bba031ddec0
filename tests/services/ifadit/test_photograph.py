"""Where faces lie in whole photographs, what is drawn over them and what a record keeps of it.

The networks take no part: an inverted crop stands where a drawn face would, so that every pixel says who touched it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from services.ifadit import photograph
from services.ifadit.masks import EdgeConfig, EllipseConfig, ellipse_mask, soften
from services.ifadit.photograph import Place
from services.ifadit.service import MAX_FACES, Box, NoFace, TooManyFaces
from shared.faces import FaceFinder, Pixels, aligned_template, blur_region, mask_support
from shared.problems import InvalidRequest, RecordInvalid

SIZE = 64


def sample(name: str) -> Pixels:
    """One of the photographs that come with scikit-image."""
    return np.asarray(getattr(data, name)())


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder.load()


@pytest.fixture(scope="module")
def head() -> Pixels:
    """An upright head in 224 x 224 px, its eyes 43 px apart."""
    return np.ascontiguousarray(sample("astronaut")[:224, 112:336])


@pytest.fixture(scope="module")
def ground() -> Pixels:
    """A photograph without faces, 224 x 224 px."""
    return np.ascontiguousarray(sample("coffee")[100:324, 200:424])


@pytest.fixture(scope="module")
def mask() -> NDArray[np.floating]:
    ellipse = EllipseConfig(center=(0.5, 0.575), half_axes=(0.38, 0.45))
    soft = soften(ellipse_mask(SIZE, ellipse), EdgeConfig(dilate=1, gaussian=9, sigma=1.5))
    return np.asarray(soft[0, 0].numpy())


def shrunk(pixels: Pixels, side: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))


def inverted(pixels: Pixels, places: list[Place], mask: NDArray[np.floating]) -> Pixels:
    """The photograph with every aligned face inverted and every other one blurred."""
    matrices = [place.matrix for place in places if place.matrix is not None]
    drawn = 255 - photograph.crops(pixels, matrices, SIZE)
    return photograph.pasted(pixels, matrices, drawn, mask, [place for place in places if place.matrix is None])


def support(pixels: Pixels, places: list[Place], mask: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Pixels that may change: under the masks and in the blurred boxes."""
    allowed = np.zeros(pixels.shape[:2], np.bool_)
    for place in places:
        if place.matrix is not None:
            allowed |= mask_support(pixels.shape[:2], place.matrix, mask)
        else:
            x, y, w, h = place.box
            rows, columns = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
            allowed |= (abs(columns + 0.5 - x - w / 2) <= 0.7 * w + 1) & (abs(rows + 0.5 - y - h / 2) <= 0.7 * h + 1)
    return allowed


class TestFind:
    def test_a_face_is_cut_out_with_its_landmarks_on_the_template(self, finder: FaceFinder, head: Pixels) -> None:
        (place,) = photograph.find(head, finder, None, SIZE)
        assert place.matrix is not None
        crop = np.asarray(Image.fromarray(photograph.crops(head, [place.matrix], SIZE)[0]).resize((256, 256)))
        face = finder.landmarks_of_crop(crop)
        assert face is not None
        off = np.linalg.norm(face.landmarks / 4 - aligned_template(SIZE), axis=1)
        assert off.max() < 4, "a landmark lies more than 6 % of the crop away"

    def test_five_faces_come_from_left_to_right(self, finder: FaceFinder, head: Pixels) -> None:
        row = np.hstack([shrunk(head, 112)] * 5)
        places = photograph.find(row, finder, None, SIZE)
        assert [round((place.box[0] + place.box[2] / 2) // 112) for place in places] == [0, 1, 2, 3, 4]
        assert all(place.matrix is not None for place in places)

    def test_a_lying_face_beside_an_upright_one_is_not_passed_over(self, finder: FaceFinder, head: Pixels) -> None:
        assert len(photograph.find(np.hstack([head, np.rot90(head)]), finder, None, SIZE)) == 2

    @pytest.mark.parametrize("turns", [1, 2, 3])
    def test_a_turned_photograph_gives_the_upright_crop(self, finder: FaceFinder, head: Pixels, turns: int) -> None:
        (upright,), (turned,) = (
            photograph.find(np.ascontiguousarray(np.rot90(head, t)), finder, None, SIZE) for t in (0, turns)
        )
        assert upright.matrix is not None
        assert turned.matrix is not None
        expected = photograph.crops(head, [upright.matrix], SIZE).astype(int)
        seen = photograph.crops(np.rot90(head, turns), [turned.matrix], SIZE)
        assert np.abs(seen - expected).mean() < 8
        assert np.abs(seen[:, ::-1] - expected).mean() > 20, "the measure could not tell a crop that is upside down"

    def test_a_face_across_the_border_is_replaced(
        self, finder: FaceFinder, head: Pixels, mask: NDArray[np.floating]
    ) -> None:
        cut = np.ascontiguousarray(head[:, 85:])
        places = photograph.find(cut, finder, None, SIZE)
        assert len(places) == 1
        changed = (inverted(cut, places, mask) != cut).any(axis=2)
        assert changed[:, 0].any(), "the face is not replaced up to the border"
        assert not (changed & ~support(cut, places, mask)).any()

    def test_a_photograph_without_faces_is_refused(self, finder: FaceFinder, ground: Pixels) -> None:
        with pytest.raises(NoFace):
            photograph.find(ground, finder, None, SIZE)

    def test_a_single_pixel_is_refused(self, finder: FaceFinder) -> None:
        with pytest.raises(NoFace):
            photograph.find(np.zeros((1, 1, 3), np.uint8), finder, None, SIZE)

    def test_a_face_too_small_to_be_drawn_is_blurred_for_good(
        self, finder: FaceFinder, head: Pixels, ground: Pixels, mask: NDArray[np.floating]
    ) -> None:
        pixels = ground.copy()
        pixels[80:136, 80:136] = shrunk(head, 56)  # eyes 11 px apart
        places = photograph.find(pixels, finder, None, SIZE)
        assert [place.matrix for place in places] == [None]
        out = inverted(pixels, places, mask)
        assert np.array_equal(out, blur_region(pixels, places[0].box))
        with pytest.raises(NoFace):
            photograph.find(out, finder, None, SIZE)


class TestNamedBoxes:
    @pytest.mark.parametrize("box", [(60, 45, 95, 130), (75, 70, 65, 80), (40, 20, 140, 170)])
    def test_a_named_face_is_the_face_that_is_found(
        self, finder: FaceFinder, head: Pixels, box: tuple[float, float, float, float]
    ) -> None:
        (found,) = photograph.find(head, finder, None, SIZE)
        (named,) = photograph.find(head, finder, [_box(*box)], SIZE)
        assert named.matrix is not None
        assert found.matrix is not None
        crops = photograph.crops(head, [named.matrix, found.matrix], SIZE).astype(int)
        assert np.abs(crops[0] - crops[1]).mean() < 8
        assert named.box == box
        assert named.score is None

    def test_a_named_face_may_lie_on_its_side(self, finder: FaceFinder, head: Pixels) -> None:
        (place,) = photograph.find(np.ascontiguousarray(np.rot90(head)), finder, [_box(45, 70, 130, 95)], SIZE)
        assert place.matrix is not None

    def test_only_named_faces_are_replaced(self, finder: FaceFinder, head: Pixels, mask: NDArray[np.floating]) -> None:
        pair = np.hstack([head, head])
        places = photograph.find(pair, finder, [_box(224 + 60, 45, 95, 130)], SIZE)
        out = inverted(pair, places, mask)
        assert np.array_equal(out[:, :224], head)
        assert not np.array_equal(out[:, 224:], head)

    def test_a_named_box_without_a_face_is_blurred(self, finder: FaceFinder, ground: Pixels) -> None:
        (place,) = photograph.find(ground, finder, [_box(20, 30, 40, 50)], SIZE)
        assert place.matrix is None
        assert place.box == (20, 30, 40, 50)

    @pytest.mark.parametrize("box", [(224, 0, 10, 10), (0, 224, 10, 10), (-10, 0, 10, 10), (0, -11, 10, 10)])
    def test_a_box_outside_the_photograph_is_refused(
        self, finder: FaceFinder, ground: Pixels, box: tuple[float, float, float, float]
    ) -> None:
        with pytest.raises(NoFace, match="outside"):
            photograph.find(ground, finder, [_box(*box)], SIZE)

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
    def test_a_box_of_no_numbers_is_refused(self, finder: FaceFinder, ground: Pixels, number: float) -> None:
        with pytest.raises(InvalidRequest):
            photograph.find(ground, finder, [Box.model_construct(x=number, y=0, width=10, height=10)], SIZE)

    def test_too_many_faces_are_refused(self, finder: FaceFinder) -> None:
        with pytest.raises(TooManyFaces):
            photograph.find(np.zeros((1, 1, 3), np.uint8), finder, [_box(0, 0, 1, 1)] * (MAX_FACES + 1), SIZE)


class TestPasted:
    def test_what_lies_outside_the_masks_stays_bit_for_bit(
        self, finder: FaceFinder, head: Pixels, mask: NDArray[np.floating]
    ) -> None:
        row = np.hstack([head, shrunk(head, 224), np.rot90(head, 3)])
        places = photograph.find(row, finder, None, SIZE)
        out = inverted(row, places, mask)
        changed, allowed = (out != row).any(axis=2), support(row, places, mask)
        assert len(places) == 3
        assert not (changed & ~allowed).any()
        assert (changed & allowed).sum() > 0.8 * allowed.sum()
        assert allowed.mean() < 0.3

    def test_pasting_back_what_was_cut_from_the_result_recovers_the_photograph(
        self, finder: FaceFinder, head: Pixels, mask: NDArray[np.floating]
    ) -> None:
        places = photograph.find(head, finder, None, SIZE)
        there = inverted(head, places, mask)
        back = inverted(there, places, mask)
        (place,) = places
        assert place.matrix is not None
        inner = mask_support(head.shape[:2], place.matrix, (mask > 0.999).astype(float))
        inner &= ~mask_support(head.shape[:2], place.matrix, (mask < 0.999).astype(float))
        assert np.abs(there[inner].astype(int) - head[inner]).mean() > 60
        assert np.abs(back[inner].astype(int) - head[inner]).mean() < 8  # the crop has two thirds of the resolution

    def test_overlapping_faces_lie_over_each_other_in_order(self, head: Pixels, mask: NDArray[np.floating]) -> None:
        shifts = [np.array([[1.0, 0, -x], [0, 1, -60]]) for x in (60.0, 84.0)]
        drawn = np.stack([np.full((SIZE, SIZE, 3), value, np.uint8) for value in (0, 255)])
        out = photograph.pasted(head, shifts, drawn, mask, [])
        first, second = (mask_support(head.shape[:2], shift, (mask > 0.999).astype(float)) for shift in shifts)
        assert (first & second).any()
        assert (out[second] == 255).all()
        edge = mask_support(head.shape[:2], shifts[1], mask)
        assert (out[first & ~edge] == 0).all()

    def test_the_photograph_itself_is_not_touched(self, head: Pixels, mask: NDArray[np.floating]) -> None:
        before = head.copy()
        place = Place((10, 10, 30, 30), None, None)
        photograph.pasted(head, [np.eye(2, 3)], np.zeros((1, SIZE, SIZE, 3), np.uint8), mask, [place])
        assert np.array_equal(head, before)


class TestRecord:
    def test_a_record_says_the_places_to_the_last_bit(self, finder: FaceFinder, head: Pixels, ground: Pixels) -> None:
        pixels = np.hstack([head, ground])
        pixels[80:136, 300:356] = shrunk(head, 56)
        places = photograph.find(pixels, finder, None, SIZE)
        entries = json.loads(json.dumps(photograph.entries(places, ["00" * 16])))
        assert [entry["mode"] for entry in entries] == ["parametric", "redacted_irreversibly"]
        assert [entry.get("nonce") for entry in entries] == ["00" * 16, None]
        read = photograph.from_entries(entries)
        for place, kept in zip(places, read, strict=True):
            np.testing.assert_allclose(kept.box, place.box, atol=1e-6)
            if place.matrix is None:
                assert kept.matrix is None
            else:
                assert kept.matrix is not None
                assert np.array_equal(kept.matrix, place.matrix)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda entry: entry.update(matrix=["0", "0", "0", "0", "0", "0"]),
            lambda entry: entry.update(matrix=["nan", "0", "0", "0", "nan", "0"]),
            lambda entry: entry.update(matrix=["1e-9", "0", "0", "0", "1e-9", "0"]),
            lambda entry: entry.update(matrix=["1e9", "0", "0", "0", "1e9", "0"]),
            lambda entry: entry.update(matrix=["1", "0", "1e99", "0", "1", "0"]),
            lambda entry: entry.update(matrix=["1", "0.5", "0", "0.5", "1", "0"]),
            lambda entry: entry.update(matrix=["-1", "0", "0", "0", "1", "0"]),
            lambda entry: entry.update(matrix=["1", "0", "0", "0", "1"]),
            lambda entry: entry.update(matrix=[10**400, 0, 0, 0, 10**400, 0]),
            lambda entry: entry.update(matrix=None),
            lambda entry: entry.pop("matrix"),
            lambda entry: entry.update(box=["0", "0", "inf", "1"]),
            lambda entry: entry.update(box=["0", "0", "1"]),
            lambda entry: entry.update(box=[{}, "0", "1", "1"]),
            lambda entry: entry.pop("box"),
            lambda entry: entry.update(mode="exact"),
            lambda entry: entry.pop("mode"),
        ],
    )
    def test_a_record_that_nobody_wrote_is_refused(self, spoil: Callable[[dict[str, Any]], None]) -> None:
        (good,) = photograph.entries([Place((1, 2, 3, 4), np.array([[1.0, 0, 5], [0, 1, 6]]), 0.9)], [""])
        assert len(photograph.from_entries([good])) == 1
        spoil(good)
        with pytest.raises(RecordInvalid):
            photograph.from_entries([good])

    @pytest.mark.parametrize("faces", [[], None, "faces", {}, [None], [[]], ["face"], [{}] * (MAX_FACES + 1)])
    def test_a_list_of_no_faces_is_refused(self, faces: Any) -> None:
        with pytest.raises(RecordInvalid):
            photograph.from_entries(faces)


def _box(x: float, y: float, width: float, height: float) -> Box:
    return Box(x=x, y=y, width=width, height=height)
