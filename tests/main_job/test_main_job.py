"""A face is anonymized under a key that the gateway keeps, and recovered with it: over HTTP, through every process."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.ifadit.photograph import from_entries
from services.ifadit.pipeline import RECORD_KEYWORD
from shared.faces import mask_support
from tests.main_job.conftest import Installation


def pixels_of(data: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    assert response.headers["content-type"] == "application/problem+json"
    return body


@pytest.fixture(scope="class")
def class_officer(installed: Installation) -> None:
    """Another officer from this class on."""
    installed.officer = next(installed.officers)


class TestAnonymize:
    def test_the_face_changes_and_nothing_outside_its_mask(
        self, installed: Installation, anonymized: dict[str, Any], astronaut: bytes
    ) -> None:
        result = anonymized["result"]
        before, after = pixels_of(astronaut), pixels_of(installed.download(result["image"]))
        record = json.loads(installed.download(result["record"]))
        (place,) = from_entries(record["faces"])
        assert place.matrix is not None
        support = mask_support(before.shape[:2], place.matrix, np.ones((64, 64), np.float32))
        assert np.array_equal(before[~support], after[~support])
        assert np.abs(before[support].astype(int) - after[support]).mean() > 2
        assert [face["action"] for face in result["faces"]] == ["anonymized"]

    def test_the_picture_carries_its_record_and_no_other_metadata(
        self, installed: Installation, anonymized: dict[str, Any]
    ) -> None:
        with Image.open(io.BytesIO(installed.download(anonymized["result"]["image"]))) as image:
            assert set(image.info) == {RECORD_KEYWORD}
            record = json.loads(image.info[RECORD_KEYWORD])
        assert record == json.loads(installed.download(anonymized["result"]["record"]))
        assert record["sig"]["alg"] == "Ed25519"

    def test_a_photograph_without_a_face_is_refused_and_not_given_back(self, installed: Installation) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, "PNG")
        before = installed.files()
        problem(installed.anonymize(stream.getvalue()), 422, "no_face")
        assert not installed.left_behind(before)

    def test_a_face_too_small_is_blurred_for_good_and_listed(self, installed: Installation, astronaut: bytes) -> None:
        with Image.open(io.BytesIO(astronaut)) as image:
            small = image.resize((110, 110))
        stream = io.BytesIO()
        small.save(stream, "PNG")
        box = json.dumps([{"x": 38, "y": 12, "width": 22, "height": 26}])
        response = installed.anonymize(stream.getvalue(), faces=box)
        assert response.status_code == 200, response.text
        result = response.json()["result"]
        assert [face["action"] for face in result["faces"]] == ["redacted_irreversibly"]
        before, after = np.asarray(small), pixels_of(installed.download(result["image"]))
        assert not np.array_equal(before[15:35, 40:58], after[15:35, 40:58])

    @pytest.mark.usefixtures("new_officer")
    def test_every_output_format_recovers(self, installed: Installation, astronaut: bytes) -> None:
        for name, media_type in (("jpeg", "image/jpeg"), ("webp", "image/webp")):
            result = installed.anonymize(astronaut, output_format=name).json()["result"]
            assert result["image"]["media_type"] == media_type
            record = installed.download(result["record"])
            picture = installed.download(result["image"])
            answer = installed.recover(picture, files={"record": ("r.json", record)})
            assert answer.json()["result"]["record_match"] is True, answer.text

    def test_per_key_gives_a_person_the_same_face_and_per_image_another(
        self, installed: Installation, astronaut: bytes
    ) -> None:
        def faces(linkage: str) -> list[np.ndarray[Any, Any]]:
            results = [installed.anonymize(astronaut, linkage=linkage).json()["result"] for _ in range(2)]
            return [pixels_of(installed.download(result["image"])) for result in results]

        linked, unlinked = faces("per_key"), faces("per_image")
        assert np.array_equal(linked[0], linked[1])
        assert not np.array_equal(unlinked[0], unlinked[1])


class TestRecover:
    def test_an_officer_recovers_and_states_why(self, installed: Installation, anonymized: dict[str, Any]) -> None:
        picture = installed.download(anonymized["result"]["image"])
        response = installed.recover(picture, data={"purpose": "court order 17"})
        result = response.json()["result"]
        assert response.status_code == 200, response.text
        assert (result["fidelity"], result["record_match"]) == ("parametric", True)
        assert result["key_id"] == anonymized["result"]["key_id"]
        recovered = pixels_of(installed.download(result["image"], "officer"))
        assert recovered.shape == pixels_of(picture).shape
        assert not np.array_equal(recovered, pixels_of(picture))
        entries = installed.get("/v1/audit?limit=1000", "officer").json()["entries"]
        assert any("court order 17" in entry["event"] for entry in entries)

    def test_the_same_picture_is_recovered_to_the_same_bytes(
        self, installed: Installation, anonymized: dict[str, Any]
    ) -> None:
        picture = installed.download(anonymized["result"]["image"])
        first, second = (
            installed.download(installed.recover(picture).json()["result"]["image"], "officer") for _ in range(2)
        )
        assert first == second

    def test_no_purpose_no_recovery(self, installed: Installation, anonymized: dict[str, Any]) -> None:
        picture = installed.download(anonymized["result"]["image"])
        files = {"image": ("a.png", picture)}
        body = problem(installed.post("/v1/ifadit/recover", "officer", files=files), 422, "invalid_request")
        assert body["errors"][0]["place"] == "purpose"

    def test_whoever_is_no_officer_does_not_recover(self, installed: Installation, anonymized: dict[str, Any]) -> None:
        picture = installed.download(anonymized["result"]["image"])
        for role in ("app", "custodian"):
            assert problem(installed.recover(picture, role), 403, "scope_missing")["scope"] == "recover"

    def test_an_officer_does_not_anonymize(self, installed: Installation, astronaut: bytes) -> None:
        files = {"image": ("a.png", astronaut)}
        problem(installed.post("/v1/ifadit/anonymize", "officer", files=files), 403, "scope_missing")

    def test_a_picture_that_was_changed_needs_the_officers_word(
        self, installed: Installation, anonymized: dict[str, Any]
    ) -> None:
        picture = installed.download(anonymized["result"]["image"])
        record = installed.download(anonymized["result"]["record"])
        stream = io.BytesIO()
        with Image.open(io.BytesIO(picture)) as image:
            image.save(stream, "JPEG", quality=85)
        files = {"record": ("r.json", record)}
        problem(installed.recover(stream.getvalue(), files=files), 422, "record_mismatch")
        allowed = installed.recover(stream.getvalue(), files=files, data={"allow_modified": "true"})
        assert allowed.json()["result"]["record_match"] is False

    @pytest.mark.usefixtures("new_officer")
    def test_a_forged_record_opens_nothing(self, installed: Installation, anonymized: dict[str, Any]) -> None:
        picture = installed.download(anonymized["result"]["image"])
        record = json.loads(installed.download(anonymized["result"]["record"]))
        for forged in (
            {**record, "linkage": "per_key"},
            {**record, "key_version": 2},
            {**record, "faces": []},
            {**record, "sig": {**record["sig"], "value": "A" * 86}},
            {},
        ):
            files = {"record": ("r.json", json.dumps(forged))}
            response = installed.recover(picture, files=files, data={"allow_modified": "true"})
            problem(response, 422, "record_invalid")

    @pytest.mark.usefixtures("new_officer")
    def test_a_picture_without_a_record_is_told_what_is_missing(
        self, installed: Installation, astronaut: bytes
    ) -> None:
        assert "record" in problem(installed.recover(astronaut), 422, "record_invalid")["detail"]


@pytest.mark.usefixtures("class_officer")
class TestSecrecyOfRecoveries:
    def test_the_app_key_reaches_nothing_of_a_recovery(
        self, installed: Installation, anonymized: dict[str, Any]
    ) -> None:
        picture = installed.download(anonymized["result"]["image"])
        key = {"Idempotency-Key": "one recovery"}
        job = installed.recover(picture, headers=key).json()
        assert job["state"] == "succeeded"
        url, image = job["url"], job["result"]["image"]["url"]
        assert installed.get(url).status_code == 404
        assert installed.get(f"{url}/events").status_code == 404
        assert installed.post(f"{url}/cancel").status_code == 404
        assert installed.get(image).status_code == 404
        assert installed.get(image, "custodian").status_code == 404
        listed = installed.get("/v1/jobs", params={"limit": 100}).json()
        assert job["id"] not in json.dumps(listed)
        replay = installed.recover(picture, "app", headers=key)
        assert replay.status_code == 403
        assert job["id"] not in replay.text
        assert installed.get(url, "officer").status_code == 200
        assert installed.recover(picture, headers=key).json()["id"] == job["id"]

    def test_inputs_of_an_anonymization_are_gone_and_never_readable_at_rest(
        self, installed: Installation, astronaut: bytes
    ) -> None:
        before = installed.files()
        result = installed.anonymize(astronaut).json()["result"]
        assert not installed.left_behind(before, result["image"], result["record"])

    def test_what_a_recovery_gives_is_encrypted_at_rest(
        self, installed: Installation, anonymized: dict[str, Any]
    ) -> None:
        picture = installed.download(anonymized["result"]["image"])
        image = installed.recover(picture).json()["result"]["image"]
        plain = installed.download(image, "officer")
        (stored,) = (installed.home / "files").rglob(image["file"])
        assert plain.startswith(b"\x89PNG")
        assert plain[:64] not in stored.read_bytes()
        assert b"PNG" not in stored.read_bytes()[:64]


@pytest.mark.usefixtures("class_officer")
class TestKeys:
    def test_a_disabled_key_opens_nothing_until_it_is_enabled(self, installed: Installation, astronaut: bytes) -> None:
        key = installed.post("/v1/keys", "custodian", json={"label": "trial"}).json()["key_id"]
        files = {"image": ("p.png", astronaut)}
        made = installed.post(f"/v1/ifadit/anonymize?key={key}", files=files).json()["result"]
        assert made["key_id"] == key
        picture = installed.download(made["image"])
        assert installed.post(f"/v1/keys/{key}/disable", "custodian", json={}).status_code == 200
        problem(installed.recover(picture), 409, "key_disabled")
        problem(installed.post(f"/v1/ifadit/anonymize?key={key}", files=files), 409, "key_disabled")
        assert installed.post(f"/v1/keys/{key}/enable", "custodian", json={}).status_code == 200
        assert installed.recover(picture).status_code == 200

    def test_a_rotated_key_still_recovers_what_its_older_version_made(
        self, installed: Installation, astronaut: bytes
    ) -> None:
        key = installed.post("/v1/keys", "custodian", json={"label": "rotated"}).json()["key_id"]
        files = {"image": ("p.png", astronaut)}
        old = installed.post(f"/v1/ifadit/anonymize?key={key}", files=files).json()["result"]
        assert installed.post(f"/v1/keys/{key}/rotate", "custodian", json={}).status_code == 200
        new = installed.post(f"/v1/ifadit/anonymize?key={key}", files=files).json()["result"]
        assert (old["key_version"], new["key_version"]) == (1, 2)
        for made in (old, new):
            result = installed.recover(installed.download(made["image"])).json()["result"]
            assert result["key_version"] == made["key_version"]

    def test_a_key_that_is_not_there_looks_like_another_tenants(
        self, installed: Installation, astronaut: bytes
    ) -> None:
        files = {"image": ("p.png", astronaut)}
        unknown = "key_" + "0" * 26
        problem(installed.post(f"/v1/ifadit/anonymize?key={unknown}", files=files), 404, "key_not_found")

    def test_recover_refuses_a_key_that_is_not_the_records(
        self, installed: Installation, anonymized: dict[str, Any]
    ) -> None:
        other = installed.post("/v1/keys", "custodian", json={"label": "other"}).json()["key_id"]
        picture = installed.download(anonymized["result"]["image"])
        response = installed.post(
            f"/v1/ifadit/recover?key={other}",
            "officer",
            files={"image": ("a.png", picture)},
            data={"purpose": "a test"},
        )
        problem(response, 422, "record_mismatch")


class TestVerify:
    def test_a_record_belongs_to_its_picture_alone(
        self, installed: Installation, anonymized: dict[str, Any], astronaut: bytes
    ) -> None:
        record = installed.download(anonymized["result"]["record"])
        picture = installed.download(anonymized["result"]["image"])
        for image, match in ((picture, True), (astronaut, False)):
            files = {"image": ("a.png", image), "record": ("r.json", record)}
            result = installed.post("/v1/ifadit/verify", files=files).json()["result"]
            assert (result["record_valid"], result["record_match"]) == (True, match)

    def test_comparing_two_people_takes_an_officer(self, installed: Installation, astronaut: bytes) -> None:
        files = {"image": ("a.png", astronaut), "other": ("b.png", astronaut)}
        problem(installed.post("/v1/ifadit/verify", files=files), 403, "scope_missing")
        result = installed.post("/v1/ifadit/verify", "officer", files=files).json()["result"]
        assert result["cosine"] > 0.999
