"""The detector: the same picture, the same score; and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data

from services.dlsr.dataset import FACE_PX
from services.dlsr.detector import BASELINES, Detector, total
from services.dlsr.encoder import EncoderConfig, load_encoder
from services.dlsr.encoding import Features, encode, given, prepared
from services.dlsr.reconstruction import keyed_noise
from services.dlsr.service import EncoderMismatch, FeaturesUnfit, NotCalibrated, ScoreUnavailable
from shared.face_crops import aligned_template, similarity, warp_crop
from shared.faces import FaceFinder
from shared.images import Picture
from shared.problems import WeightsDamaged

WEIGHTS = Path(__file__).parents[3] / "services" / "dlsr" / "weights"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.load(WEIGHTS / "small", "cpu")


@pytest.fixture(scope="module")
def windows() -> list[Picture]:
    rng = np.random.default_rng(0)
    photo = data.astronaut()
    corners = [(int(rng.integers(0, 384)), int(rng.integers(0, 384))) for _ in range(20)]
    return [Picture(photo[top : top + 128, left : left + 128]) for top, left in corners]


class TestOnePictureOneScore:
    def test_alone_and_among_others(self, detector: Detector, windows: list[Picture]) -> None:
        together = detector.score(encode(detector.encoder, windows), detector.kinds)
        for place in (0, 7, 19):
            (alone,) = detector.score(encode(detector.encoder, [windows[place]]), detector.kinds)
            for kind, verdict in alone.items():
                assert verdict.score == pytest.approx(together[place][kind].score, rel=1e-4), kind

    def test_contributions_add_up_to_the_score(self, detector: Detector, windows: list[Picture]) -> None:
        for verdicts in detector.score(encode(detector.encoder, windows[:3]), detector.kinds):
            for verdict in verdicts.values():
                assert len(verdict.contributions) == 5
                assert sum(verdict.contributions) == pytest.approx(verdict.score, rel=1e-4, abs=1e-5)

    def test_the_noise_is_the_pictures_own(self) -> None:
        both = keyed_noise(3, ["a", "b"], 4, 3, 10)
        assert torch.equal(keyed_noise(3, ["b"], 2, 3, 10)[0], both[1, :2])
        assert not torch.equal(both[0], both[1])
        assert not torch.equal(keyed_noise(4, ["a"], 4, 3, 10)[0], both[0])
        assert abs(float(keyed_noise(0, ["k"], 4, 3, 5000).std()) - 1) < 0.02

    def test_a_verdict_is_p_at_most_alpha(self, detector: Detector, windows: list[Picture]) -> None:
        features = encode(detector.encoder, windows)
        for alpha in (0.05, 0.5):
            for verdicts in detector.score(features, ("mse", "knn"), alpha):
                for verdict in verdicts.values():
                    assert verdict.p_value is not None
                    assert verdict.is_ood == (verdict.p_value <= alpha)


class TestThePathOfAPicture:
    def test_alpha_lies_over_white_and_gray_is_three_channels(self, detector: Detector) -> None:
        pixels = np.zeros((40, 40, 3), np.uint8)
        clear = Picture(pixels, alpha=np.zeros((40, 40), np.uint8))
        assert (prepared(clear, detector.encoder.config) == 255).all()

    def test_small_looks_at_32_px_of_anything(self, detector: Detector, windows: list[Picture]) -> None:
        sharp = windows[0]
        reduced = Image.fromarray(sharp.pixels).resize((32, 32), Image.Resampling.BILINEAR)
        config = detector.encoder.config
        assert np.array_equal(prepared(sharp, config), prepared(Picture(np.asarray(reduced)), config))


class TestRefusing:
    def test_vectors_of_another_width(self, detector: Detector) -> None:
        with pytest.raises(FeaturesUnfit) as refused:
            detector.score(given(np.zeros((2, 7), np.float32)))
        assert refused.value.extras == {"width": 512}

    def test_scores_that_a_trimmed_detector_has_not(self, detector: Detector) -> None:
        trimmed = detector.trimmed()
        with pytest.raises(ScoreUnavailable) as refused:
            trimmed.parts(Features(torch.zeros(1, 512), ("k",)), ("lr",))
        assert "mse" in refused.value.extras["kinds"]
        assert not {"lr", "knn"} & set(trimmed.kinds)

    def test_p_values_before_a_calibration(self, detector: Detector) -> None:
        bare = Detector(detector.config, detector.encoder, detector.end, None, None, {})
        features = Features(torch.randn(1, 512), ("k",))
        (verdicts,) = bare.score(features)
        assert verdicts["mse"].p_value is None
        assert verdicts["mse"].is_ood is None
        assert not set(bare.kinds) & set(BASELINES)
        with pytest.raises(NotCalibrated):
            bare.p_values(features)

    def test_an_encoder_that_is_not_the_detectors(self, tmp_path: Path) -> None:
        shutil.copytree(WEIGHTS / "small", tmp_path / "other")
        config = json.loads((tmp_path / "other" / "config.json").read_text())
        config["encoder"]["input_px"] = 96
        (tmp_path / "other" / "config.json").write_text(json.dumps(config))
        with pytest.raises(EncoderMismatch):
            Detector.load(tmp_path / "other", "cpu")

    @pytest.mark.parametrize("file", ["config.json", "lfdn_end.safetensors", "baselines.safetensors"])
    def test_a_damaged_file_is_named(self, tmp_path: Path, file: str) -> None:
        shutil.copytree(WEIGHTS / "small", tmp_path / "cut")
        (tmp_path / "cut" / file).write_bytes((tmp_path / "cut" / file).read_bytes()[:100])
        with pytest.raises(WeightsDamaged, match=file):
            Detector.load(tmp_path / "cut", "cpu")

    def test_a_missing_tensor_is_named(self, tmp_path: Path) -> None:
        shutil.copytree(WEIGHTS / "small", tmp_path / "part")
        tensors = load_file(tmp_path / "part" / "lfdn_end.safetensors")
        del tensors["out.2.bias"]
        save_file(tensors, tmp_path / "part" / "lfdn_end.safetensors")
        with pytest.raises(WeightsDamaged, match=r"out\.2\.bias is missing"):
            Detector.load(tmp_path / "part", "cpu")


class TestTheGuardOfFaces:
    def test_a_cat_a_page_and_a_scan_are_no_faces_and_a_face_is_one(self) -> None:
        guard = Detector.load(WEIGHTS / "small-faces", "cpu")
        page = np.stack([data.page()] * 3, axis=2)
        strange = encode(guard.encoder, map(Picture, (data.chelsea(), page, data.coffee())))
        assert (guard.p_values(strange) <= guard.config.alpha).all()
        photo = data.astronaut()
        (found, *_) = FaceFinder.load().find(photo)
        face = warp_crop(photo, similarity(found.landmarks, aligned_template(FACE_PX)), FACE_PX)
        assert guard.p_values(encode(guard.encoder, [Picture(face)]))[0] > guard.config.alpha


def test_the_fingerprint_tells_paths_apart(detector: Detector) -> None:
    config = EncoderConfig("efficientnet-lite0", 128, 32)
    assert load_encoder(config, None, "cpu").fingerprint == detector.config.fingerprint
    assert load_encoder(replace(config, first_px=None), None, "cpu").fingerprint != detector.config.fingerprint


def test_calibrating_anew_changes_p_values_and_no_score(detector: Detector) -> None:
    shifted = Features(torch.randn(150, 512, generator=torch.Generator().manual_seed(0)), tuple(map(str, range(150))))
    anew = detector.calibrated(shifted)
    kind = detector.config.kind
    assert np.array_equal(total(anew.parts(shifted, (kind,))[kind]), total(detector.parts(shifted, (kind,))[kind]))
    assert anew.p_values(shifted).mean() == pytest.approx(0.5, abs=0.02)
    assert detector.p_values(shifted).mean() < 0.01
