from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from shared.face_crops import inverse, resample, transform, turning
from shared.faces import Face, FaceFinder, Pixels, blur_region

# Read off the picture by eye: pupils, tip of the nose, corners of the mouth.
ASTRONAUT = np.array([[204, 101], [247, 104], [226, 128], [202, 140], [245, 142]])


def sample(name: str) -> Pixels:
    """One of the photographs that come with scikit-image."""
    return np.asarray(getattr(data, name)())


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder.load()


@pytest.fixture(scope="module")
def astronaut() -> Pixels:
    return sample("astronaut")


def far(face: Face, points: np.ndarray) -> float:
    """The largest distance of a landmark from where it should be, px."""
    return float(np.linalg.norm(face.landmarks - points, axis=1).max())


class TestFind:
    def test_a_portrait_has_one_face_with_its_landmarks_in_place(self, finder: FaceFinder, astronaut: Pixels) -> None:
        (face,) = finder.find(astronaut)
        assert face.score > 0.99
        assert far(face, ASTRONAUT) < 4
        x, y, w, h = face.box
        assert 160 < x < 200
        assert 40 < y < 80
        assert 60 < w < 120
        assert 90 < h < 140

    @pytest.mark.parametrize("degrees", [-150, -90, -50, 35, 60, 90, 135, 180])
    def test_a_turned_picture_has_its_landmarks_in_place(
        self, finder: FaceFinder, astronaut: Pixels, degrees: float
    ) -> None:
        head = astronaut[:256, 96:352]
        matrix, (height, width) = turning(256, 256, degrees)
        seen = resample(head, inverse(matrix), height, width, border="zero").round().astype(np.uint8)
        (face,) = finder.find(seen, min_face_px=40)
        assert far(face, transform(matrix, ASTRONAUT - (96, 0))) < 5

    def test_upright_and_turned_faces_of_one_picture_are_found_where_asked(
        self, finder: FaceFinder, astronaut: Pixels
    ) -> None:
        head = astronaut[:256, 96:352]
        both = np.hstack([head, np.rot90(head)])
        assert len(finder.find(both, min_face_px=40, turned="always")) == 2

    def test_a_face_cut_by_the_border_is_found(self, finder: FaceFinder, astronaut: Pixels) -> None:
        (face,) = finder.find(astronaut[:, 195:])
        assert far(face, ASTRONAUT - (195, 0)) < 10

    def test_two_people_are_two_faces(self, finder: FaceFinder, astronaut: Pixels) -> None:
        faces = finder.find(np.hstack([astronaut, astronaut]))
        assert sorted(round(face.centre[0] / 512) for face in faces) == [0, 1]

    def test_a_picture_without_faces_has_none(self, finder: FaceFinder) -> None:
        assert finder.find(sample("coffee"), turned="never") == []

    def test_noise_has_no_faces(self, finder: FaceFinder) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        assert finder.find(noise) == []

    @pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (11, 11), (12, 12), (3, 90)])
    def test_a_picture_too_small_for_faces_has_none(self, finder: FaceFinder, shape: tuple[int, int]) -> None:
        assert finder.find(np.zeros((*shape, 3), np.uint8)) == []

    def test_small_faces_are_passed_over_when_large_ones_are_asked_for(
        self, finder: FaceFinder, astronaut: Pixels
    ) -> None:
        assert finder.find(astronaut, min_face_px=200, turned="never") == []
        assert len(finder.find(astronaut, min_face_px=80, turned="never")) == 1

    def test_a_step_that_raises_ends_the_search(self, finder: FaceFinder, astronaut: Pixels) -> None:
        told = []

        def cancel(step: int) -> None:
            told.append(step)
            if step == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            finder.find(astronaut, on_step=cancel)
        assert told == [0, 1, 2, 3]

    @pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
    def test_what_is_no_rgb_picture_is_refused(self, finder: FaceFinder, wrong: np.ndarray) -> None:
        with pytest.raises(ValueError, match="uint8"):
            finder.find(wrong)


class TestLandmarksOfCrop:
    @pytest.mark.parametrize(("left", "top", "side"), [(170, 50, 115), (160, 40, 130), (150, 20, 170)])
    def test_a_crop_of_a_face_has_its_landmarks_in_place(
        self, finder: FaceFinder, astronaut: Pixels, left: int, top: int, side: int
    ) -> None:
        face = finder.landmarks_of_crop(astronaut[top : top + side, left : left + side])
        assert face is not None
        assert far(face, ASTRONAUT - (left, top)) < 4

    def test_a_crop_of_something_else_has_no_face(self, finder: FaceFinder) -> None:
        assert finder.landmarks_of_crop(sample("coffee")[100:228, 200:328]) is None

    def test_one_pixel_has_no_face(self, finder: FaceFinder) -> None:
        assert finder.landmarks_of_crop(np.zeros((1, 1, 3), np.uint8)) is None


def test_a_redacted_face_is_not_found_again(finder: FaceFinder, astronaut: Pixels) -> None:
    (face,) = finder.find(astronaut)
    assert finder.find(blur_region(astronaut, face.box)) == []


class TestFaceAt:
    @pytest.mark.parametrize("box", [(172, 45, 95, 130), (185, 75, 70, 80), (150, 20, 140, 170)])
    def test_a_tight_or_loose_box_around_a_face_gives_its_landmarks(
        self, finder: FaceFinder, astronaut: Pixels, box: tuple[float, float, float, float]
    ) -> None:
        face = finder.face_at(astronaut, box)
        assert face is not None
        assert far(face, ASTRONAUT) < 5

    @pytest.mark.parametrize(
        "box",
        [(300, 300, 60, 60), (600, 0, 50, 50), (-90, -90, 50, 50), (100, 100, 0, 0), (-1e9, 100, 1e9, 5), (3, 3, 1, 1)],
    )
    def test_a_box_of_something_else_or_of_nothing_has_no_face(
        self, finder: FaceFinder, astronaut: Pixels, box: tuple[float, float, float, float]
    ) -> None:
        assert finder.face_at(astronaut, box) is None
