"""A guard before an operation: what a caller gets, who sees what, and what happens when a part falls."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.guard.conftest import Site

Gray = Callable[..., bytes]

GUARD = {"guard": "dlsr/darkness"}
REFUSE = {**GUARD, "guard_action": "refuse"}


class TestFlag:
    def test_the_answer_says_how_usual_the_picture_is(self, site: Site, gray: Gray) -> None:
        job = site.call("blur", gray(204), **GUARD).json()
        assert job["state"] == "succeeded"
        assert job["attempt"] == 1
        assert job["guard"] | {"job": None} == {
            "model": "dlsr/darkness@1",
            "action": "flag",
            "job": None,
            "views": 1,
            "p_value": pytest.approx(0.8),
            "alpha": 0.05,
            "is_ood": False,
            "error": None,
        }
        assert job["result"]["image"]["width"] == 40

    def test_a_strange_picture_is_computed_and_flagged(self, site: Site, gray: Gray) -> None:
        job = site.call("blur", gray(2), **GUARD).json()
        assert job["state"] == "succeeded"
        assert job["guard"]["is_ood"] is True

    def test_the_guards_job_can_be_looked_up(self, site: Site, gray: Gray) -> None:
        guard = site.call("blur", gray(204), **GUARD).json()["guard"]
        looked = site.job(guard["job"])
        assert (looked["method"], looked["operation"], looked["state"]) == ("dlsr", "score", "succeeded")

    def test_without_one_nothing_is_said(self, site: Site, gray: Gray) -> None:
        assert site.call("blur", gray(2)).json()["guard"] is None

    def test_a_guard_that_fails_is_noted_and_the_job_goes_on(self, site: Site, gray: Gray) -> None:
        job = site.call("blur", gray(204), guard="dlsr/broken").json()
        assert job["state"] == "succeeded"
        assert job["guard"]["error"]["code"] == "detector_dim"
        assert job["guard"]["p_value"] is None


class TestRefuse:
    def test_a_usual_picture_passes(self, site: Site, gray: Gray) -> None:
        assert site.call("blur", gray(204), **REFUSE).json()["state"] == "succeeded"

    def test_a_strange_one_is_refused_and_nothing_is_left(self, site: Site, gray: Gray) -> None:
        before = site.files()
        response = site.call("blur", gray(2), **REFUSE)
        assert response.status_code == 422
        problem = response.json()
        assert problem["code"] == "out_of_distribution"
        assert problem["p_value"] == pytest.approx(2 / 255)
        assert problem["model"] == "dlsr/darkness@1"
        assert site.job(problem["job_id"])["guard"]["is_ood"] is True
        site.fleet.until(lambda: site.files() <= before, 10)

    def test_a_guard_that_fails_fails_the_job(self, site: Site, gray: Gray) -> None:
        response = site.call("blur", gray(204), guard="dlsr/broken", guard_action="refuse")
        assert (response.status_code, response.json()["code"]) == (503, "detector_dim")


class TestAsking:
    @pytest.mark.parametrize(
        ("ref", "status", "code"),
        [
            ("dlsr/theirs", 404, "model_not_found"),
            ("dlsr/nobody", 404, "model_not_found"),
            ("diagnostic/small", 422, "invalid_request"),
            ("darkness", 422, "invalid_request"),
        ],
    )
    def test_what_is_no_detector_of_the_tenant_is_refused_at_once(
        self, site: Site, gray: Gray, ref: str, status: int, code: str
    ) -> None:
        response = site.call("blur", gray(204), guard=ref)
        assert (response.status_code, response.json()["code"]) == (status, code)

    def test_an_operation_without_pictures_has_no_guard(self, site: Site) -> None:
        headers = site.fleet.headers()
        response = site.http.post("/v1/diagnostic/noop", json={"text": "", **GUARD}, headers=headers)
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request")

    def test_every_view_counts(self, site: Site, gray: Gray) -> None:
        guard = site.call("blur-halves", gray(255, 51), **GUARD).json()["guard"]
        assert guard["views"] == 2
        assert guard["p_value"] == pytest.approx(2 * 51 / 255)


class TestSecrecy:
    @pytest.mark.parametrize("operation", ["veil", "blur-halves"])
    def test_the_guard_of_a_sensitive_operation_sees_encrypted_copies_that_go_with_it(
        self, site: Site, gray: Gray, operation: str
    ) -> None:
        before = site.files()
        job_id = site.submit(operation, gray(204), guard="dlsr/slow")
        guard = site.until_parked(job_id)["guard"]
        views = site.files() - before
        assert len(views) > 1, "the picture itself and what the guard looks at"
        assert not [path for path in views if b"PNG" in path.read_bytes()[:16]]
        for path in views:
            answer = site.http.get(f"/v1/files/{path.name}", headers=site.fleet.headers("officer"))
            assert answer.status_code == 404
        with site.fleet.broker() as broker:
            asked = broker.hgetall(f"tf:diagnostic:job:{job_id}")
            looked = broker.hgetall(f"tf:dlsr:job:{guard['job']}")
        assert looked["lease"]
        assert looked["lease"] != asked["lease"]
        assert asked["lease"] not in json.dumps(looked)
        assert not set(_files(looked)) & set(_files(asked)), "a copy under a key of its own"
        job = site.until_finished(job_id)
        assert job["state"] == "succeeded"
        results = {job["result"]["image"]["file"]}
        site.fleet.until(lambda: {path.name for path in site.files() - before} == results, 10)

    def test_an_officers_guard_needs_no_other_scope(self, site: Site, gray: Gray) -> None:
        job = site.call("whisper", gray(204), role="officer", **GUARD).json()
        assert job["state"] == "succeeded"
        assert job["guard"]["p_value"] == pytest.approx(0.8)
        looked = site.http.get(f"/v1/jobs/{job['guard']['job']}", headers=site.fleet.headers("app"))
        assert looked.status_code == 404, "as the job that asked"

    def test_what_a_whole_tenant_may_see_is_not_copied(self, site: Site, gray: Gray) -> None:
        job_id = site.submit("blur", gray(204), guard="dlsr/slow")
        guard = site.until_parked(job_id)["guard"]
        with site.fleet.broker() as broker:
            asked = broker.hgetall(f"tf:diagnostic:job:{job_id}")
            looked = broker.hgetall(f"tf:dlsr:job:{guard['job']}")
        assert _files(looked) == _files(asked)
        assert site.until_finished(job_id)["state"] == "succeeded"


def _files(record: dict[str, str]) -> list[str]:
    request: dict[str, Any] = json.loads(record["request"])
    images = request.get("images") or [request["image"]]
    return [image["file"] for image in images]


class TestFalling:
    def test_a_job_gives_its_place_up_while_its_guard_looks(self, own_site: Site, gray: Gray) -> None:
        job_id = own_site.submit("blur", gray(204), guard="dlsr/slow")
        assert own_site.until_parked(job_id)["state"] == "queued"
        with own_site.fleet.broker() as broker:
            assert not broker.zcard("tf:diagnostic:active")
            assert not broker.llen("diagnostic"), "nor does it wait in the queue"

    def test_a_killed_worker_costs_the_guard_an_attempt_and_the_job_none(self, own_site: Site, gray: Gray) -> None:
        job_id = own_site.submit("blur", gray(204), guard="dlsr/slow")
        own_site.until_parked(job_id)
        own_site.fleet.kill("worker")
        own_site.fleet.start("worker")
        job = own_site.until_finished(job_id)
        assert (job["state"], job["attempt"]) == ("succeeded", 1)
        assert job["guard"]["p_value"] == pytest.approx(0.8)

    def test_a_gateway_that_starts_anew_wakes_what_was_parked(self, own_site: Site, gray: Gray) -> None:
        job_id = own_site.submit("blur", gray(204), guard="dlsr/slow")
        own_site.until_parked(job_id)
        own_site.fleet.kill("gateway")
        own_site.fleet.start("gateway")
        own_site.fleet.until(own_site.fleet.is_ready, 60)
        assert own_site.until_finished(job_id)["state"] == "succeeded"

    def test_a_parked_job_is_cancelled_at_once_and_stays_so(self, own_site: Site, gray: Gray) -> None:
        job_id = own_site.submit("blur", gray(204), guard="dlsr/slow")
        guard = own_site.until_parked(job_id)["guard"]
        own_site.http.post(f"/v1/jobs/{job_id}/cancel", headers=own_site.fleet.headers())
        assert own_site.job(job_id)["state"] == "cancelled"
        own_site.until_finished(guard["job"])
        assert own_site.job(job_id)["state"] == "cancelled"
        with own_site.fleet.broker() as broker:
            assert not broker.zcard("tf:diagnostic:parked")
