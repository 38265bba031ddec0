"""The figures of the model card: each measure against a reference, and the whole table of a real model on faces."""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from services.ifadit import evaluate as command
from services.ifadit.anonymizer import Ifadit
from services.ifadit.dataset import FACE_PX
from services.ifadit.evaluate import Person, Trial, as_tensor, psnr, rounded, ssim, table
from services.ifadit.judges import DlibJudge, TeacherJudge
from services.ifadit.teachers import IdentityTeacher
from shared.faces import FaceFinder, Pixels
from tests.services.ifadit.test_train import identity_weights

SMALL = Path(command.__file__).parent / "weights" / "small"
HAS_DLIB = all(importlib.util.find_spec(name) for name in ("dlib", "face_recognition_models"))


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder.load()


@pytest.fixture(scope="module")
def model() -> Ifadit:
    return Ifadit.load(SMALL)


@pytest.fixture(scope="module")
def photos() -> list[Pixels]:
    """Six photographs, 128 x 128 px, of one face and little else: two views each of what counts as three people."""
    head = Image.fromarray(data.astronaut()).crop((150, 10, 300, 160)).resize((128, 128), Image.Resampling.BICUBIC)
    views = [head, head.rotate(4, Image.Resampling.BICUBIC)]
    views += [view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for view in views]
    views += [view.convert("L").convert("RGB").point(lambda value: int(value * 0.7)) for view in views[:2]]
    return [np.asarray(view) for view in views]


@pytest.fixture(scope="module")
def packed(photos: list[Pixels], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two sets in their packed form: identities with two photographs, some of them in other splits."""
    folder = tmp_path_factory.mktemp("data")
    lfw = [(photo, str(number // 2), "test") for number, photo in enumerate(photos)]
    lfw[4:] = [(photos[4], "2", "train"), (photos[5], "2", "test")]
    pack(folder, command.LFW, [(np.zeros((128, 128, 3), np.uint8), "0", "test"), *lfw])
    pack(folder, command.UTK, [(photos[4], "-1", "test"), (photos[0], "-1", "val"), (photos[5], "-1", "test")])
    return folder


def pack(folder: Path, name: str, rows: Sequence[tuple[Pixels, str, str]]) -> None:
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        index = io.StringIO()
        writer = csv.writer(index)
        writer.writerow(["file", "identity", "split"])
        for number, (photo, identity, split) in enumerate(rows):
            stream = io.BytesIO()
            Image.fromarray(photo).save(stream, "PNG")
            archive.writestr(f"{number}.png", stream.getvalue())
            writer.writerow([f"{number}.png", identity, split])
        archive.writestr("index.csv", index.getvalue())


@pytest.fixture(scope="module")
def persons(packed: Path, finder: FaceFinder) -> list[Person]:
    return command.people(packed, finder, lfw=2, utk=1)


@pytest.fixture(scope="module")
def figures(model: Ifadit, persons: list[Person], finder: FaceFinder) -> dict[str, Any]:
    """The whole evaluation; the model's own encoder is the first judge, pixels in grey are the second."""

    def in_gray(x: Tensor) -> Tensor:
        return F.normalize(F.avg_pool2d(x.mean(1, keepdim=True), 4).flatten(1), dim=1)

    return command.evaluate(model, persons, model.embed, in_gray, finder)


def numbers(tree: Any) -> list[float]:
    return [n for value in tree.values() for n in numbers(value)] if isinstance(tree, dict) else [tree]


def channels_last(x: Tensor) -> NDArray[np.float64]:
    return np.asarray(x.permute(1, 2, 0).double())


@pytest.fixture(scope="module")
def pair(photos: list[Pixels]) -> tuple[Tensor, Tensor]:
    """Two pictures (2, 3, 128, 128), with noise and without."""
    target = as_tensor(photos[:2])
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    return (target + torch.tensor([0.02, 0.1])[:, None, None, None] * noise).clamp(0, 1), target


class TestPictureMeasures:
    def test_psnr_is_scikit_images_inside_the_mask(self, pair: tuple[Tensor, Tensor]) -> None:
        mask = torch.zeros(1, 1, 128, 128)
        mask[..., 20:90, 30:100] = 1
        for found, pred, target in zip(psnr(*pair, mask), *pair, strict=True):
            inside = [channels_last(x[:, 20:90, 30:100]) for x in (target, pred)]
            assert float(found) == pytest.approx(peak_signal_noise_ratio(*inside, data_range=1), abs=1e-3)

    def test_ssim_is_scikit_images_away_from_the_border(self, pair: tuple[Tensor, Tensor]) -> None:
        mask = F.pad(torch.ones(1, 1, 118, 118), (5, 5, 5, 5))  # the two continue a picture differently at its border
        for found, pred, target in zip(ssim(*pair, mask), *pair, strict=True):
            _, whole = structural_similarity(
                channels_last(target),
                channels_last(pred),
                data_range=1,
                channel_axis=-1,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                full=True,
            )
            assert float(found) == pytest.approx(float(whole[5:-5, 5:-5].mean()), abs=1e-4)

    def test_a_picture_is_perfectly_like_itself(self, pair: tuple[Tensor, Tensor]) -> None:
        mask = torch.ones(1, 1, 128, 128)
        assert psnr(pair[1], pair[1], mask).isinf().all()
        torch.testing.assert_close(ssim(pair[1], pair[1], mask), torch.ones(2), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("baseline", [command.blurred, command.pixelated])
    def test_a_baseline_keeps_the_mean_and_hides_what_is_small(
        self, baseline: Callable[[Tensor], Tensor], persons: list[Person]
    ) -> None:
        x = as_tensor([person.face for person in persons])
        torch.testing.assert_close(baseline(x).mean((2, 3)), x.mean((2, 3)), atol=0.03, rtol=0)
        stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
        torch.testing.assert_close(baseline(stripes), torch.full_like(stripes, 0.5), atol=0.01, rtol=0)

    def test_pixelation_leaves_one_color_a_cell(self, persons: list[Person]) -> None:
        x = as_tensor([persons[0].face])
        cells = F.unfold(command.pixelated(x), command.CELL_PX, stride=command.CELL_PX)
        assert float(cells.reshape(3, command.CELL_PX**2, -1).std(1).max()) < 1e-6

    def test_a_png_rounds_and_a_jpeg_loses_more_the_lower_its_quality(self, persons: list[Person]) -> None:
        x = as_tensor([person.face for person in persons]) * 0.999
        lost = [float((command.stored(x, quality) - x).abs().max()) for quality in (None, 95, 75)]
        assert lost[0] <= 0.5 / 255 + 1e-6
        assert lost[0] < lost[1] < lost[2]


class TestTrial:
    def test_one_pair_of_strangers_in_a_hundred_passes(self) -> None:
        rng = torch.Generator().manual_seed(3)
        trial = Trial(lambda x: F.normalize(x.flatten(1), dim=1), torch.randn(80, 3, 8, 8, generator=rng))
        between = trial.own @ trial.own.T
        strangers = [float(between[i, j]) for i in range(80) for j in range(80) if i != j]
        accepted = sum(cosine > trial.threshold for cosine in strangers) / len(strangers)
        assert accepted == pytest.approx(command.FALSE_ACCEPTS, abs=2 / len(strangers))

    def test_it_counts_who_passes_as_the_same_person(self) -> None:
        trial = Trial(lambda x: x.flatten(1), torch.eye(4).reshape(4, 1, 2, 2))
        assert trial.threshold == 0  # different people have nothing in common
        shown = torch.stack([trial.own[0], trial.own[1], -trial.own[2], trial.own[0]])
        assert trial.with_own(shown.reshape(4, 1, 2, 2)) == {"cosine": 0.25, "tar": 0.5}
        assert trial.with_own(torch.eye(4).reshape(4, 1, 2, 2)) == {"cosine": 1.0, "tar": 1.0}


class TestPeople:
    def test_only_test_splits_and_pairs_of_photographs_count(self, persons: list[Person], packed: Path) -> None:
        assert [person.other is not None for person in persons] == [True, True, False]
        assert all(person.face.shape == (FACE_PX, FACE_PX, 3) for person in persons)
        assert len(list(command.validation(packed, FaceFinder.load()))) == 1

    def test_an_identity_without_a_second_photograph_is_left_out(self, packed: Path, finder: FaceFinder) -> None:
        assert len(command.people(packed, finder, lfw=5, utk=0)) == 2

    def test_a_photograph_without_a_face_is_nobody(self, finder: FaceFinder) -> None:
        assert command.located(finder, np.zeros((128, 128, 3), np.uint8)) is None

    def test_the_astronaut_is_found(self, finder: FaceFinder) -> None:
        (face,) = command.astronaut(finder)
        assert face.shape == (FACE_PX, FACE_PX, 3)


class TestEvaluate:
    def test_every_figure_is_a_number_in_its_range(self, figures: dict[str, Any]) -> None:
        for judged in figures["judges"].values():
            for name, said in judged.items():
                if name != "threshold":
                    assert -1 <= said["cosine"] <= 1 + 1e-6
                    assert 0 <= said["tar"] <= 1
        assert all(0 <= share <= 1 for share in figures["detection"].values())
        assert all(np.isfinite(numbers(figures["pictures"])))

    def test_it_counts_the_people(self, figures: dict[str, Any]) -> None:
        assert [figures[name] for name in ("people", "people_lfw", "people_utk")] == [3, 2, 1]
        assert figures["detection"]["untouched"] == 1

    def test_what_a_recovery_may_promise_is_what_the_teacher_measured(self, figures: dict[str, Any]) -> None:
        teacher, promised = figures["judges"]["teacher"], figures["expected_recovery"]
        assert promised["png"] == promised["webp"] == teacher["recovered, png"]["cosine"]
        assert promised["jpeg"] == teacher["recovered, jpeg 95"]["cosine"]

    def test_the_right_key_recovers_more_of_the_picture_than_a_wrong_one(self, figures: dict[str, Any]) -> None:
        pictures = figures["pictures"]
        assert pictures["recovered, png"]["psnr_mask"] > pictures["recovered, wrong key"]["psnr_mask"]

    def test_the_table_has_every_figure_and_as_many_cells_in_every_line(self, figures: dict[str, Any]) -> None:
        lines = table(figures).splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert {line.split("|")[1].strip() for line in lines[2:-1]} == set(figures["judges"]["teacher"]) - {"threshold"}
        anonymized = next(line for line in lines if line.startswith("| anonymized |"))
        quality = figures["pictures"]["anonymized"]
        assert f"{quality['psnr_mask']:.1f} / {quality['ssim_mask']:.2f}" in anonymized
        assert f"{figures['judges']['second']['threshold']:.3f}" in lines[-1]

    def test_figures_are_kept_to_four_places(self, figures: dict[str, Any]) -> None:
        kept = rounded(figures | {"text": "as it is"})
        assert kept["text"] == "as it is"
        assert kept["people"] == figures["people"]
        for before, after in zip(numbers(figures["judges"]), numbers(kept["judges"]), strict=True):
            assert after == round(before, 4)

    def test_the_sheet_shows_six_pictures_a_face(self, model: Ifadit, persons: list[Person], tmp_path: Path) -> None:
        faces = [person.face for person in persons[:2]]
        command.sheet(model, faces, tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as image:
            shown = np.asarray(image.resize((6 * FACE_PX, 2 * FACE_PX), Image.Resampling.BOX)).astype(int)
        columns = np.split(shown, 6, axis=1)
        assert np.abs(columns[0] - np.concatenate(faces)).mean() < 4  # enlarged and shrunk again
        for index, column in enumerate(columns):
            for other in columns[index + 1 :]:
                assert np.abs(column - other).max() > 20


class TestJudges:
    def test_a_mirrored_face_is_the_same_person_to_the_teacher(self, persons: list[Person]) -> None:
        judge = TeacherJudge(IdentityTeacher(identity_weights()))
        x = as_tensor([person.face for person in persons])
        embeddings = judge(torch.cat([x, x.flip(3)]))
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(6))
        torch.testing.assert_close(embeddings[:3], embeddings[3:], atol=1e-5, rtol=0)

    @pytest.mark.skipif(HAS_DLIB, reason="dlib is installed: nothing is missing")
    def test_without_its_packages_the_second_judge_says_what_to_install(self, persons: list[Person]) -> None:
        with pytest.raises(ModuleNotFoundError, match="pip install dlib-bin face-recognition-models"):
            DlibJudge(as_tensor([persons[0].face]))

    @pytest.mark.skipif(not HAS_DLIB, reason="needs dlib-bin and face-recognition-models (the extra `evaluate`)")
    def test_the_second_judge_knows_a_person_again(self, photos: list[Pixels], finder: FaceFinder) -> None:
        faces = [cut[2] for photo in photos[:2] if (cut := command.located(finder, photo)) is not None]
        inverted = (255 - faces[0]).astype(np.uint8)
        first, again, other = DlibJudge(as_tensor([*faces, inverted]))(as_tensor([*faces, inverted]))
        assert float(first @ again) > float(first @ other)
