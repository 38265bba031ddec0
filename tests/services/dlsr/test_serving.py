"""Fit, score, calibrate, compare over HTTP, with real processes and the real encoder."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import skimage.data

from shared.modelfolder import files_of
from tenfold import Client, InvalidInput, NotFound, Problem
from tests.fleet import Fleet
from tests.services.dlsr.pictures import checker, wave, waves, zipped

METHODS = {"dlsr": "services.dlsr.service:service", "ifadit": "services.ifadit.service:service"}
COUNT = 205
SEED = 3


class Site:
    """One installation that serves `dlsr`, with a trainer, and a client of it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.client: Any = Client(fleet.url, fleet.key("app"), timeout_s=120)

    def job(self, job_id: str) -> Any:
        return self.client.jobs.get(job_id)

    def files(self) -> list[Path]:
        found = (self.fleet.home.folder / "files").rglob("file_*")
        return [path for path in found if path.is_file() and path.suffix != ".json"]

    def model_bytes(self, model: str) -> dict[str, bytes]:
        """The files of a model of the tenant."""
        name, _, version = model.removeprefix("dlsr/").partition("@")
        folder = self.fleet.home.folder / "models/trained/local/dlsr" / name / version
        return {path.name: path.read_bytes() for path in files_of(folder)}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Fleet(tmp_path_factory.mktemp("dlsr"), METHODS, trainer=True) as fleet:
        site = Site(fleet)
        with contextlib.closing(site.client):
            yield site


@pytest.fixture(scope="module")
def usual() -> bytes:
    """An archive of waves; two of its files are no pictures, and one is there twice."""
    files = {f"waves/{seed}.png": wave(seed, 28 + seed % 9) for seed in range(COUNT)}
    return zipped(files | {"notes.txt": b"no picture", "waves/copy.png": wave(0, 28), "waves/cut.png": wave(1)[:200]})


@pytest.fixture(scope="module")
def fitted(site: Site, usual: bytes) -> Any:
    return site.client.dlsr.fit(usual, name="waves", seed=SEED, wait_s=300)


class TestFit:
    def test_it_gives_a_detector_and_says_what_became_of_the_pictures(self, site: Site, fitted: Any) -> None:
        assert fitted.model == "dlsr/waves@1"
        assert fitted.seed == SEED
        assert fitted.pictures.given == COUNT + 1
        assert fitted.pictures.different == COUNT
        assert {one.id: one.code for one in fitted.unreadable} == {
            "notes.txt": "image_unreadable",
            "waves/cut.png": "image_unreadable",
        }
        assert fitted.pictures.calibration >= 100
        assert set(fitted.suspicious) <= {f"waves/{seed}.png" for seed in range(COUNT)}
        losses = list(fitted.validation_loss.values())
        assert min(losses[1:]) < losses[0]

    def test_the_model_is_the_tenants_with_card_and_figures(self, site: Site, fitted: Any) -> None:
        model = site.client.models.get("dlsr/waves")
        assert model.kind == "trained"
        assert model.figures["pictures"]["different"] == COUNT
        assert "not measured" in model.card

    def test_the_job_told_of_its_units_and_losses(self, site: Site, fitted: Any) -> None:
        events = [event.data for event in site.client.jobs.stream(fitted.job_id)]
        assert any("loss" in data or "validation_loss" in data for data in events)
        assert any(data.get("done") == data.get("of") for data in events if "done" in data)

    def test_nothing_of_the_pictures_is_left(self, site: Site, fitted: Any) -> None:
        checkpoint = 1
        site.fleet.until(lambda: len(site.files()) <= checkpoint, 10)

    @pytest.mark.slow  # twice the wait until a dead trainer's lease is over
    def test_a_trainer_that_dies_halfway_is_followed_by_one_that_ends_with_the_same_detector(
        self, site: Site, usual: bytes, fitted: Any
    ) -> None:
        job = site.client.submit("dlsr", "fit", {"name": "halves", "seed": SEED}, {"archive": usual})
        site.fleet.until(lambda: ((site.job(job.id).units or {}).get("done") or 0) >= 2, 120)
        site.fleet.kill("trainer")  # in the middle of encoding
        site.fleet.start("trainer")
        with site.fleet.broker() as broker:
            site.fleet.until(lambda: bool(broker.hexists(f"tf:dlsr:job:{job.id}", "checkpoint")), 180)
        assert site.job(job.id).state == "running"
        site.fleet.kill("trainer")  # in the middle of training
        site.fleet.start("trainer")
        done = site.client.jobs.wait(job.id, wait_s=300)
        assert done.attempt == 3
        assert done.result is not None
        halves, wholes = site.model_bytes(done.result["model"]), site.model_bytes(fitted.model)
        assert halves.pop("MODEL_CARD.md") != wholes.pop("MODEL_CARD.md"), "they have their own names"
        assert halves == wholes

    @pytest.mark.parametrize(
        ("files", "code"),
        [
            ({"one.png": wave(0)}, "too_few_pictures"),
            pytest.param({f"{i}.png": wave(0) for i in range(200)}, "too_few_pictures", marks=pytest.mark.slow),
            ({f"{i}.png": wave(i) if i % 10 == 0 else b"broken" for i in range(200)}, "pictures_unreadable"),
            ({"../a.png": wave(0)}, "archive_unsafe"),
            ({}, "archive_unsafe"),
        ],
        ids=["one picture", "one picture many times", "most unreadable", "traversal", "empty"],
    )
    def test_what_makes_no_detector_is_a_problem_and_leaves_nothing(
        self, site: Site, files: dict[str, bytes], code: str
    ) -> None:
        before = set(site.files())
        with pytest.raises(Problem) as raised:
            site.client.dlsr.fit(zipped(files), name="none", wait_s=120)
        assert raised.value.code == code
        site.fleet.until(lambda: set(site.files()) <= before, 10)
        with pytest.raises(NotFound):
            site.client.models.get("dlsr/none")

    @pytest.mark.parametrize("name", ["small", "small-own", "paper-1", "Capital", ""])
    def test_a_name_that_is_reserved_or_none_is_refused_at_once(self, site: Site, name: str) -> None:
        with pytest.raises(InvalidInput):
            site.client.dlsr.fit(waves(2), name=name)


class TestScore:
    def test_the_usual_passes_and_the_strange_is_found(self, site: Site, fitted: Any) -> None:
        usual = [wave(seed, 32) for seed in range(1000, 1024)]
        strange = [checker(seed) for seed in range(6)]
        found: Any = site.client.dlsr.score([*usual, *strange], model="dlsr/waves")
        flags = np.array([one.is_ood for one in found.results])
        assert flags[len(usual) :].all()
        assert flags[: len(usual)].mean() < 0.25
        assert found.alpha == 0.05
        assert found.model == "dlsr/waves@1"

    def test_every_score_adds_up_and_has_its_own_p_value(self, site: Site, fitted: Any) -> None:
        kinds = ["mahalanobis", "mse", "mfsim", "mfsim_all", "lr", "knn", "pca", "distance_to_mean"]
        (one,) = site.client.dlsr.score(wave(5000), model="dlsr/waves", kinds=kinds).results
        assert one.kind == "mahalanobis"
        assert list(one.scores) == kinds
        for verdict in one.scores.values():
            assert len(verdict.contributions) == 5
            assert sum(verdict.contributions) == pytest.approx(verdict.score, rel=1e-4, abs=1e-5)
            assert 0 < verdict.p_value <= 1
            assert verdict.is_ood == (verdict.p_value <= 0.05)
        assert one.p_value == one.scores["mahalanobis"].p_value

    def test_a_picture_has_the_same_score_alone_in_a_list_and_in_an_archive(self, site: Site, fitted: Any) -> None:
        pictures = {f"{seed}.png": wave(seed, 40) for seed in range(2000, 2066)}  # more than a unit of 64
        names = list(pictures)
        alone = site.client.dlsr.score(pictures[names[65]], model="dlsr/waves").results[0]
        listed = site.client.dlsr.score(list(pictures.values())[-20:], model="dlsr/waves").results[19]
        made = site.client.dlsr.score(archive=zipped(pictures | {"x.txt": b"x"}), model="dlsr/waves")
        with zipfile.ZipFile(io.BytesIO(made.archive.read())) as archive:
            lines = [json.loads(line) for line in archive.read("results.jsonl").splitlines()]
        assert [line["id"] for line in lines] == [*names, "x.txt"]
        assert lines[-1]["error"]["code"] == "image_unreadable"
        scores = [alone.scores["mse"].score, listed.scores["mse"].score, lines[65]["result"]["scores"]["mse"]["score"]]
        assert scores == pytest.approx([scores[0]] * 3, abs=1e-5, rel=1e-5)

    def test_without_a_name_it_is_the_shipped_detector(self, site: Site) -> None:
        found = site.client.dlsr.score([skimage.data.chelsea(), checker(1)])
        assert found.model == "dlsr/small@1"
        assert found.results[0].p_value > found.results[1].p_value, "a cat is one of its ten kinds"

    def test_alpha_moves_the_verdict_and_not_the_score(self, site: Site, fitted: Any) -> None:
        strict, lax = (
            site.client.dlsr.score([wave(seed) for seed in range(24)], model="dlsr/waves", alpha=alpha).results
            for alpha in (0.01, 0.5)
        )
        assert [one.p_value for one in strict] == [one.p_value for one in lax]
        assert sum(one.is_ood for one in strict) < sum(one.is_ood for one in lax)

    @pytest.mark.parametrize(
        ("fields", "status", "code"),
        [
            ({"model": "dlsr/nobody"}, 404, "model_not_found"),
            ({"model": "ifadit/small"}, 422, "invalid_request"),
            ({"model": "dlsr/waves", "alpha": "0"}, 422, "invalid_request"),
            ({"model": "dlsr/waves", "kinds": "anger"}, 422, "invalid_request"),
        ],
    )
    def test_what_it_cannot_do_it_says(
        self, site: Site, fitted: Any, fields: dict[str, str], status: int, code: str
    ) -> None:
        response = httpx.post(
            f"{site.fleet.url}/v1/dlsr/score",
            data=fields,
            files={"images": ("a.png", wave(0))},
            headers=site.fleet.headers(),
        )
        assert (response.status_code, response.json()["code"]) == (status, code)

    def test_pictures_and_an_archive_are_one_too_many(self, site: Site, fitted: Any) -> None:
        for given in ({}, {"images": [wave(0)], "archive": waves(2)}):
            with pytest.raises(InvalidInput):
                site.client.dlsr.score(model="dlsr/waves", **given)


class TestCompare:
    def test_the_same_kind_is_no_drift_and_another_is(self, site: Site, fitted: Any) -> None:
        usual = site.client.dlsr.compare(archive=waves(40, first=3000), model="dlsr/waves", alpha=0.001)
        assert not usual.is_drift
        assert usual.pictures == 40
        mixed = {f"{seed}.png": wave(seed) if seed % 2 else checker(seed) for seed in range(40)}
        drifted = site.client.dlsr.compare(archive=zipped(mixed), model="dlsr/waves")
        assert drifted.is_drift
        assert drifted.statistic > usual.statistic
        strange = {f"{seed}.png" for seed in range(0, 40, 2)}
        assert len(strange & set(drifted.strange)) > 15

    def test_a_list_of_pictures_is_a_batch_too(self, site: Site, fitted: Any) -> None:
        found = site.client.dlsr.compare([checker(seed) for seed in range(20)], model="dlsr/waves")
        assert found.is_drift
        assert found.strange == tuple(map(str, range(20)))


class TestCalibrate:
    def test_it_is_a_new_version_with_other_p_values_and_the_same_networks(self, site: Site, fitted: Any) -> None:
        archive = zipped({f"{seed}.png": checker(seed) for seed in range(100)})
        made = site.client.dlsr.calibrate(archive, model="dlsr/waves@1", name="checkers", wait_s=120)
        assert made.model == "dlsr/checkers@1"
        assert made.calibration == 100
        before, after = site.model_bytes("dlsr/waves@1"), site.model_bytes(made.model)
        assert before["lfdn_end.safetensors"] == after["lfdn_end.safetensors"]
        found = site.client.dlsr.score([checker(seed) for seed in range(500, 520)], model=made.model)
        assert sum(one.is_ood for one in found.results) < 8

    @pytest.mark.slow  # versions are the same thing for a fit and in every method
    def test_the_same_name_again_is_the_next_version(self, site: Site, fitted: Any) -> None:
        for number in (1, 2):
            made = site.client.dlsr.calibrate(waves(100), model="dlsr/waves@1", name="again", wait_s=120)
            assert made.model == f"dlsr/again@{number}"

    def test_too_few_are_a_problem_and_a_shipped_one_needs_a_name(self, site: Site, fitted: Any) -> None:
        with pytest.raises(Problem) as raised:
            site.client.dlsr.calibrate(waves(99), model="dlsr/waves", wait_s=120)
        assert raised.value.code == "too_few_pictures"
        with pytest.raises(InvalidInput):
            site.client.dlsr.calibrate(waves(99), model="dlsr/small")

    def test_another_tenants_detector_does_not_exist(self, site: Site, fitted: Any) -> None:
        site.fleet._run(["-m", "deploy.admin.main", "tenants", "create", "others"])
        command = ["-m", "deploy.admin.main", "keys", "create", "--tenant", "others", "--role", "app"]
        with contextlib.closing(Client(site.fleet.url, site.fleet._run(command).strip())) as stranger:
            for call in (
                lambda: stranger.dlsr.score(wave(0), model="dlsr/waves"),
                lambda: stranger.dlsr.compare([wave(0)], model="dlsr/waves"),
                lambda: stranger.dlsr.calibrate(waves(2), model="dlsr/waves"),
                lambda: stranger.models.get("dlsr/waves"),
            ):
                with pytest.raises(NotFound):
                    call()


class TestGuard:
    """Of the face service."""

    def test_a_face_is_shown_cut_out_and_the_answer_says_how_unusual_it_is(self, site: Site, fitted: Any) -> None:
        made = site.client.ifadit.anonymize(skimage.data.astronaut(), guard="dlsr/waves")
        assert [face.action for face in made.faces] == ["anonymized"]
        assert (made.guard.model, made.guard.views) == ("dlsr/waves@1", 1)
        assert made.guard.is_ood is True, "a face is no wave"

    def test_it_refuses_before_anything_is_anonymized(self, site: Site, fitted: Any) -> None:
        before = set(site.files())
        with pytest.raises(InvalidInput) as raised:
            site.client.ifadit.anonymize(skimage.data.astronaut(), guard="dlsr/waves", guard_action="refuse")
        assert raised.value.code == "out_of_distribution"
        site.fleet.until(lambda: set(site.files()) <= before, 10)

    def test_where_no_face_is_found_the_whole_picture_is_shown(self, site: Site, fitted: Any) -> None:
        with pytest.raises(InvalidInput) as raised:
            site.client.ifadit.anonymize(skimage.data.coffee(), guard="dlsr/waves", guard_action="refuse")
        assert raised.value.code == "out_of_distribution"
        with pytest.raises(InvalidInput) as raised:
            site.client.ifadit.anonymize(wave(7, 200), guard="dlsr/waves", guard_action="refuse")
        assert raised.value.code == "no_face", "it passes as usual, and then it has no face"

    @pytest.mark.slow  # test_detector.py asks the shipped one without a server
    def test_the_shipped_one_lets_faces_pass_and_refuses_what_is_none(self, site: Site) -> None:
        guard = {"guard": "dlsr/small-faces", "guard_action": "refuse"}
        made = site.client.ifadit.anonymize(skimage.data.astronaut(), **guard)
        assert made.guard.is_ood is False
        for other in (skimage.data.chelsea(), skimage.data.page(), skimage.data.coffee()):
            with pytest.raises(InvalidInput) as raised:
                site.client.ifadit.anonymize(other, **guard)
            assert raised.value.code == "out_of_distribution"
