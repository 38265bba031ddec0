"""Exact recovery over HTTP, through every process: by an officer, with the sidecar, under a key that allows it."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tests.main_job.conftest import Installation, png
from tests.main_job.test_main_job import pixels_of, problem

BOXES = json.dumps([{"x": 180, "y": 60, "width": 90, "height": 110}, {"x": 250, "y": 130, "width": 30, "height": 20}])
"""The astronaut's face, and a place beside it that is no face: it is blurred for good."""


@pytest.fixture(scope="module")
def key(installed: Installation) -> str:
    """A secret key that allows originals to be kept."""
    asked = {"label": "exact", "purposes": ["anonymize", "recover", "forensic"]}
    answer = installed.post("/v1/keys", "custodian", json=asked)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["key_id"])


@pytest.fixture(autouse=True, scope="module")
def module_officer(installed: Installation) -> None:
    """Another officer from this module on."""
    installed.officer = next(installed.officers)


def anonymize(installed: Installation, photograph: bytes, key: str | None, **fields: Any) -> Any:
    fields = {"mode": "forensic", **fields}
    path = f"/v1/ifadit/anonymize?key={key}" if key else "/v1/ifadit/anonymize"
    return installed.post(path, files={"image": ("p.png", photograph)}, data=fields)


@pytest.fixture(scope="module")
def kept(installed: Installation, astronaut: bytes, key: str) -> dict[str, Any]:
    """The result of an anonymization that keeps the originals, with its files as bytes."""
    answer = anonymize(installed, astronaut, key)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()["result"]
    return {**result, "bytes": {name: installed.download(result[name]) for name in ("image", "record", "sidecar")}}


def recover(installed: Installation, kept: dict[str, Any], role: str = "officer", **data: Any) -> Any:
    files = {"sidecar": ("s.ifx", data.pop("sidecar", kept["bytes"]["sidecar"]))}
    if "record" in data:
        files["record"] = ("r.json", data.pop("record"))
    return installed.recover(data.pop("image", kept["bytes"]["image"]), role, data=data, files=files)


class TestExactRecovery:
    def test_every_pixel_is_the_photographs(
        self, installed: Installation, kept: dict[str, Any], astronaut: bytes
    ) -> None:
        photo = pixels_of(astronaut)
        assert not np.array_equal(pixels_of(kept["bytes"]["image"]), photo)
        answer = recover(installed, kept, purpose="court order 18")
        assert answer.status_code == 200, answer.text
        result = answer.json()["result"]
        assert (result["fidelity"], result["expected_fidelity"], result["record_match"]) == ("forensic", None, True)
        assert np.array_equal(pixels_of(installed.download(result["image"], "officer")), photo)
        entries = [json.loads(e["event"]) for e in installed.get("/v1/audit?limit=1000", "officer").json()["entries"]]
        (redeemed,) = [entry for entry in entries if entry.get("purpose") == "court order 18"]
        assert (redeemed["mode"], redeemed["decision"]) == ("forensic", "allowed")

    def test_under_the_masks_of_a_jpeg_as_well(self, installed: Installation, astronaut: bytes, key: str) -> None:
        result = anonymize(installed, astronaut, key, output_format="jpeg").json()["result"]
        files = {name: installed.download(result[name]) for name in ("image", "record", "sidecar")}
        answer = recover(installed, {"bytes": files}, record=files["record"], output_format="webp")
        assert answer.json()["result"]["fidelity"] == "forensic", answer.text
        recovered = pixels_of(installed.download(answer.json()["result"]["image"], "officer"))
        photo, shown = pixels_of(astronaut), pixels_of(files["image"])
        exact = (recovered == photo).all(2)
        assert np.array_equal(recovered[~exact], shown[~exact])
        box = result["faces"][0]["box"]
        x, y = int(box["x"] + box["width"] / 2), int(box["y"] + box["height"] / 2)
        assert exact[y - 20 : y + 20, x - 20 : x + 20].all()

    def test_what_was_blurred_for_good_stays_blurred(self, installed: Installation, key: str) -> None:
        photo = skimage.data.astronaut()
        answer = anonymize(installed, png(photo), key, faces=BOXES)
        result = answer.json()["result"]
        assert {face["action"] for face in result["faces"]} == {"anonymized", "redacted_irreversibly"}, answer.text
        files = {name: installed.download(result[name]) for name in ("image", "record", "sidecar")}
        recovered = recover(installed, {"bytes": files}).json()["result"]
        pixels = pixels_of(installed.download(recovered["image"], "officer"))
        blurred = np.zeros(photo.shape[:2], bool)
        blurred[126:154, 244:286] = True
        assert np.array_equal(pixels[~blurred], photo[~blurred])
        assert np.abs(pixels[132:148, 252:278].astype(int) - photo[132:148, 252:278]).max() > 8

    def test_without_the_sidecar_it_is_an_approximation_that_says_so(
        self, installed: Installation, kept: dict[str, Any], anonymized: dict[str, Any]
    ) -> None:
        promised = kept["expected_recovery"]["png"]
        for picture in (kept["bytes"]["image"], installed.download(anonymized["result"]["image"])):
            result = installed.recover(picture).json()["result"]
            assert (result["fidelity"], result["expected_fidelity"]) == ("parametric", promised)

    def test_a_picture_comes_with_a_link_to_its_sidecar(
        self, installed: Installation, astronaut: bytes, key: str
    ) -> None:
        answer = installed.post(
            f"/v1/ifadit/anonymize?key={key}",
            headers={"Accept": "image/png"},
            files={"image": ("p.png", astronaut)},
            data={"mode": "forensic"},
        )
        assert 'rel="sidecar"' in answer.headers["link"]


class TestRefusals:
    def test_a_key_that_was_not_made_for_it(self, installed: Installation, astronaut: bytes) -> None:
        before = installed.files()
        body = problem(anonymize(installed, astronaut, None), 409, "key_purpose")
        assert body["purposes"] == ["anonymize", "recover"]
        assert not installed.left_behind(before)

    def test_other_requests_under_the_same_key_keep_nothing(
        self, installed: Installation, astronaut: bytes, key: str
    ) -> None:
        result = anonymize(installed, astronaut, key, mode="parametric").json()["result"]
        assert result["sidecar"] is None
        assert "sidecar" not in json.loads(installed.download(result["record"]))["faces"][0]

    def test_the_app_key_holds_ciphertext_and_gets_no_further(
        self, installed: Installation, kept: dict[str, Any], astronaut: bytes
    ) -> None:
        for role in ("app", "custodian"):
            assert problem(recover(installed, kept, role), 403, "scope_missing")["scope"] == "recover"
        sidecar = kept["bytes"]["sidecar"]
        assert kept["sidecar"]["media_type"] == "application/vnd.tenfold.ifx"
        photo = pixels_of(astronaut)
        rows = [photo[y, 200:212].tobytes() for y in range(90, 160, 5)]
        assert not any(row in sidecar for row in rows)
        assert b"\x89PNG" not in sidecar

    @pytest.mark.usefixtures("new_officer")
    def test_an_altered_foreign_or_wrong_sidecar(
        self, installed: Installation, kept: dict[str, Any], anonymized: dict[str, Any], astronaut: bytes, key: str
    ) -> None:
        sidecar = kept["bytes"]["sidecar"]
        result = anonymize(installed, astronaut, key).json()["result"]
        foreign = installed.download(result["sidecar"])
        dek = sidecar.index(b'"dek":"') + 20
        other = b"0" if sidecar[dek : dek + 1] != b"0" else b"1"
        for wrong in (
            sidecar[:-1] + bytes([sidecar[-1] ^ 1]),
            sidecar[:dek] + other + sidecar[dek + 1 :],
            sidecar[:200],
            foreign,
            astronaut,
        ):
            problem(recover(installed, kept, sidecar=wrong), 422, "sidecar_invalid")
        picture = installed.download(anonymized["result"]["image"])
        problem(recover(installed, kept, image=picture), 422, "sidecar_invalid")

    def test_another_picture_even_with_the_officers_word(self, installed: Installation, kept: dict[str, Any]) -> None:
        stream = io.BytesIO()
        with Image.open(io.BytesIO(kept["bytes"]["image"])) as image:
            image.save(stream, "JPEG", quality=90)
        answer = recover(
            installed, kept, image=stream.getvalue(), record=kept["bytes"]["record"], allow_modified="true"
        )
        assert "very picture" in problem(answer, 422, "record_mismatch")["detail"]

    def test_a_format_that_would_not_keep_the_pixels(self, installed: Installation, kept: dict[str, Any]) -> None:
        body = problem(recover(installed, kept, output_format="jpeg"), 422, "invalid_request")
        assert body["errors"][0]["place"] == "output_format"

    def test_a_stopped_key(self, installed: Installation, kept: dict[str, Any], key: str) -> None:
        try:
            assert installed.post(f"/v1/keys/{key}/disable", "custodian").status_code == 200
            problem(recover(installed, kept), 409, "key_disabled")
        finally:
            assert installed.post(f"/v1/keys/{key}/enable", "custodian").status_code == 200


class TestLeases:
    def entries(self, installed: Installation, action: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after, count = -1, 1000
        while count == 1000:  # every page adds an entry, so there is none without
            page = installed.get(f"/v1/audit?limit=1000&after={after}", "officer").json()
            found += [json.loads(entry["event"]) for entry in page["entries"]]
            after, count = page["next_after"], len(page["entries"])
        return [entry for entry in found if entry["action"] == action]

    def test_those_of_refused_and_replayed_calls_are_given_back(
        self, installed: Installation, astronaut: bytes
    ) -> None:
        released = {entry["lease"] for entry in self.entries(installed, "lease.release")}
        problem(installed.anonymize(b"no picture"), 422, "image_unreadable")
        problem(installed.anonymize(astronaut, linkage="no such"), 422, "invalid_request")
        problem(installed.anonymize(astronaut, {"Accept": "text/html"}), 406, "not_acceptable")
        key = {"Idempotency-Key": "a photograph sent twice"}
        jobs = [installed.anonymize(astronaut, key).json() for _ in range(2)]
        assert jobs[0]["id"] == jobs[1]["id"]
        now = {entry["lease"] for entry in self.entries(installed, "lease.release")}
        assert len(now - released) == 4
        opened = [entry for entry in self.entries(installed, "lease.open") if entry["lease"] in now - released]
        assert len(opened) == 4
        assert jobs[0]["id"] not in {entry["job_id"] for entry in opened}
