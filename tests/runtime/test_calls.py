"""What a service answers, over HTTP, with a real worker behind it."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL.Image
import pytest

from shared.context import HEADER
from tests.stack import Stack

Picture = Callable[..., bytes]
PNG = {"Accept": "image/png"}


def pixels_of(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    assert response.headers["content-type"] == "application/problem+json"
    assert body["request_id"].startswith("req_")
    return body


class TestAnswers:
    def test_a_call_waits_for_its_result(self, stack: Stack) -> None:
        response = stack.call("noop", {"text": "hello"})
        job = response.json()
        assert response.status_code == 200
        assert job["state"] == "succeeded"
        assert job["result"]["text"] == "hello"
        assert response.headers["location"] == job["url"] == f"/v1/jobs/{job['id']}"

    def test_a_missing_seed_is_drawn_and_echoed(self, stack: Stack) -> None:
        job = stack.call("noop", {}).json()
        assert job["seed"] == job["result"]["seed"]
        assert job["seed"] != stack.call("noop", {}).json()["seed"]
        assert stack.call("noop", {"seed": 7}).json()["result"]["seed"] == 7

    def test_a_call_that_takes_longer_than_it_may_wait_is_accepted(self, stack: Stack) -> None:
        response = stack.call("sleep", {"seconds": 1.5}, headers={"Prefer": "wait=0.2"})
        assert response.status_code == 202
        assert response.headers["retry-after"]
        stack.wait_for(response.json()["id"], "succeeded")

    def test_a_picture_goes_in_and_comes_out(self, stack: Stack, picture: Picture) -> None:
        sent = picture(40, 30)
        response = stack.call("blur", files={"image": ("a.png", sent)})
        image = response.json()["result"]["image"]
        assert (image["width"], image["height"], image["media_type"]) == (40, 30, "image/png")

    def test_a_picture_is_the_answer_where_one_is_asked_for(self, stack: Stack, picture: Picture) -> None:
        sent = picture(40, 30)
        note = json.dumps({"said": "ü"}).encode()
        response = stack.call(
            "blur",
            files={"image": ("a.png", sent), "note": ("n.json", note)},
            headers={"Accept": "image/png"},
        )
        assert response.headers["content-type"] == "image/png"
        blurred, original = pixels_of(response.content), pixels_of(sent)
        assert blurred.shape == original.shape
        expected = original[3:8, 3:8].reshape(-1, 3).mean(0)
        assert np.abs(blurred[5, 5] - expected).max() <= 1
        assert 'rel="job"' in response.headers["link"]
        assert 'rel="note"' in response.headers["link"]

    def test_a_number_of_a_choice_is_taken_as_text(self, stack: Stack, picture: Picture) -> None:
        once, twice = (
            stack.call("blur", data={"strength": strength}, files={"image": ("a.png", picture())}, headers=PNG).content
            for strength in ("1", "2")
        )
        assert not np.array_equal(pixels_of(once), pixels_of(twice))

    def test_a_file_in_json_is_taken_by_name_and_as_base64(self, stack: Stack, picture: Picture) -> None:
        data = {"data": base64.b64encode(picture()).decode()}
        first = stack.call("blur", {"image": data}).json()["result"]["image"]
        again = stack.call("blur", {"image": {"file": first["file"]}})
        assert again.status_code == 200

    def test_concurrent_calls_of_one_kind_share_a_batch(self, stack: Stack, picture: Picture) -> None:
        blocker = stack.submit("sleep", {"seconds": 0.6, "steps": 1})
        stack.wait_for(blocker, "running")
        with ThreadPoolExecutor(16) as pool:
            calls = [
                pool.submit(stack.call, "blur", files={"image": ("a.png", picture(size, size, seed))})
                for seed, size in enumerate([32, 48] * 8)
            ]
            results = [call.result().json()["result"] for call in calls]
        assert max(result["batch"] for result in results) >= 4
        assert all(result["batch"] <= 8 for result in results)

    def test_a_call_alone_does_not_wait_for_company(self, stack: Stack) -> None:
        assert stack.call("noop", {}).json()["result"]["batch"] == 1

    def test_what_a_call_stored_is_gone_when_it_is_finished(self, stack: Stack, picture: Picture) -> None:
        before = set(stack.files())
        response = stack.call("blur", files={"image": ("a.png", picture())}).json()
        kept = {response["result"]["image"]["file"]}
        stack.until(lambda: {path.stem for path in set(stack.files()) - before} == kept, within_s=3)


class TestIdempotency:
    def test_the_same_key_gives_the_same_job(self, stack: Stack, picture: Picture) -> None:
        headers = {"Idempotency-Key": "k1"}
        first, second = (
            stack.call("blur", files={"image": ("a.png", picture())}, headers=headers).json() for _ in range(2)
        )
        assert first["id"] == second["id"]

    def test_in_parallel_too(self, stack: Stack) -> None:
        with ThreadPoolExecutor(8) as pool:
            calls = [
                pool.submit(stack.call, "noop", {"text": "x"}, headers={"Idempotency-Key": "k2"}) for _ in range(8)
            ]
            assert len({call.result().json()["id"] for call in calls}) == 1

    def test_the_same_key_for_another_picture_is_refused(self, stack: Stack, picture: Picture) -> None:
        headers = {"Idempotency-Key": "k3"}
        stack.call("blur", files={"image": ("a.png", picture(seed=1))}, headers=headers)
        response = stack.call("blur", files={"image": ("a.png", picture(seed=2))}, headers=headers)
        problem(response, 409, "idempotency_conflict")

    def test_a_replay_of_another_principal_is_a_job_of_its_own(self, stack: Stack) -> None:
        headers = {"Idempotency-Key": "k4"}
        one = stack.call("noop", {}, headers=headers).json()
        other = stack.call("noop", {}, headers=headers, principal="prn_2").json()
        assert one["id"] != other["id"]

    def test_a_malformed_key_is_refused(self, stack: Stack) -> None:
        problem(stack.call("noop", {}, headers={"Idempotency-Key": "x" * 256}), 422, "malformed_idempotency_key")


class TestBadInput:
    @pytest.mark.parametrize(
        ("kwargs", "status", "code"),
        [
            ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "bad_syntax"),
            ({"content": b"[]", "headers": {"Content-Type": "application/json"}}, 400, "bad_syntax"),
            ({"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, 400, "bad_syntax"),
            ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media_type"),
            ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "bad_syntax"),
            ({"content": b""}, 415, "unsupported_media_type"),
            ({"json": {"txt": "hello"}}, 422, "invalid_request"),
            ({"json": {"text": 3}}, 422, "invalid_request"),
            ({"json": {"text": "x" * 1001}}, 422, "invalid_request"),
            ({"data": {"txt": "hello"}, "files": {"x": b""}}, 422, "invalid_request"),
            ({"json": {}, "headers": {"Accept": "image/png"}}, 406, "not_acceptable"),
        ],
    )
    def test_a_bad_body_is_told_what_is_wrong(
        self, stack: Stack, kwargs: dict[str, Any], status: int, code: str
    ) -> None:
        problem(stack.call("noop", **kwargs), status, code)

    @pytest.mark.parametrize(
        ("data", "status", "code"),
        [
            (b"", 422, "image_unreadable"),
            (b"not a picture", 422, "image_unreadable"),
            (b"%PDF-1.4 not a picture either", 415, "unsupported_media_type"),
            (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, 422, "image_unreadable"),
        ],
    )
    def test_a_file_that_is_no_picture_is_refused(self, stack: Stack, data: bytes, status: int, code: str) -> None:
        before = len(stack.files())
        problem(stack.call("blur", files={"image": ("a.png", data)}), status, code)
        assert len(stack.files()) == before

    def test_a_damaged_picture_fails_alone_among_good_ones(self, stack: Stack, picture: Picture) -> None:
        whole = [picture(32, 32, seed) for seed in range(8)]
        middle = len(whole[3]) // 2
        whole[3] = whole[3][:middle] + bytes(40) + whole[3][middle + 40 :]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda data: stack.call("blur", files={"image": ("a.png", data)}), whole))
        assert [answer.status_code for answer in answers] == [200] * 3 + [422] + [200] * 4
        assert "job_id" in problem(answers[3], 422, "image_unreadable")

    def test_a_field_given_twice_is_refused(self, stack: Stack) -> None:
        parts = [("text", (None, "a")), ("text", (None, "b"))]
        body = problem(stack.call("noop", files=parts), 422, "invalid_request")
        assert body["errors"][0]["place"] == "text"

    def test_text_where_a_file_belongs_is_told_how_to_send_one(self, stack: Stack) -> None:
        body = problem(stack.call("blur", files={"image": (None, "a.png")}), 422, "invalid_request")
        assert "curl -F" in body["detail"]

    def test_a_file_of_another_tenant_does_not_exist(self, stack: Stack, picture: Picture) -> None:
        image = stack.call("blur", files={"image": ("a.png", picture())}).json()["result"]["image"]
        response = stack.call("blur", {"image": {"file": image["file"]}}, tenant="other")
        problem(response, 404, "file_not_found")

    def test_broken_base64_is_told_so(self, stack: Stack) -> None:
        problem(stack.call("blur", {"image": {"data": "###"}}), 422, "invalid_request")

    def test_a_failure_of_the_method_is_its_own_problem(self, stack: Stack) -> None:
        body = problem(stack.call("fail", {"how": "problem"}), 422, "diagnostic_refused")
        assert body["how"] == "problem"
        assert body["job_id"].startswith("job_")

    def test_a_bug_of_the_method_tells_nothing(self, stack: Stack) -> None:
        body = problem(stack.call("fail", {"how": "bug"}), 500, "internal_error")
        assert "bug of the method" not in json.dumps(body)

    def test_too_little_memory_fails_that_job_alone(self, stack: Stack) -> None:
        problem(stack.call("fail", {"how": "memory"}), 507, "insufficient_memory")
        assert stack.call("noop", {}).status_code == 200


class TestWhoMay:
    def test_a_call_without_the_gateways_signature_is_refused(self, stack: Stack) -> None:
        response = stack.http.post("/v1/diagnostic/noop", json={})
        assert (response.status_code, response.json()["code"]) == (403, "call_not_signed")

    def test_a_forged_signature_is_refused(self, stack: Stack) -> None:
        good = stack.call("noop", {}).request.headers[HEADER]
        payload, _, tag = good.partition(".")
        for forged in (f"{payload}.{tag[:-2]}AA", f"{payload[:-4]}AAAA.{tag}", payload, "", "a.b.c"):
            response = stack.http.post("/v1/diagnostic/noop", json={}, headers={HEADER: forged})
            assert response.status_code == 403

    def test_a_call_signed_for_another_operation_is_refused(self, stack: Stack) -> None:
        signed = stack.call("noop", {}).request.headers[HEADER]
        response = stack.http.post("/v1/diagnostic/sleep", json={}, headers={HEADER: signed})
        assert response.json()["code"] == "call_not_signed"

    def test_an_expired_call_is_refused(self, stack: Stack) -> None:
        assert stack.call("noop", {}, lasts_s=-1).json()["code"] == "call_not_signed"

    def test_a_missing_scope_is_named(self, stack: Stack) -> None:
        assert problem(stack.call("noop", {}, scopes=("keys",)), 403, "scope_missing")["scope"] == "use"

    def test_a_sensitive_job_is_hidden_even_in_a_replay(self, stack: Stack, picture: Picture) -> None:
        response = stack.call("whisper", files={"image": ("a.png", picture())}, scopes=("recover",))
        job = response.json()
        assert job["state"] == "succeeded"
        assert stack.record(job["id"])["scope"] == "recover"
        answer = stack.call("blur", {"image": {"file": job["result"]["image"]["file"]}})
        problem(answer, 404, "file_not_found")


class TestDescription:
    def test_the_service_says_what_it_offers_and_how_it_fares(self, stack: Stack) -> None:
        said = stack.http.get("/v1/methods/diagnostic").json()
        assert {operation["name"] for operation in said["operations"]} >= {"noop", "blur", "train"}
        assert said["live"]["workers"] == 1

    def test_the_document_shows_files_as_parts_and_by_name(self, stack: Stack) -> None:
        document = stack.http.get("/openapi.json").json()
        content = document["paths"]["/v1/diagnostic/blur"]["post"]["requestBody"]["content"]
        part = content["multipart/form-data"]["schema"]["properties"]["image"]
        assert (part["type"], part["format"]) == ("string", "binary")
        assert content["application/json"]["schema"]["$ref"].endswith("/BlurRequest")

    def test_metrics_count_requests_by_operation_and_status(self, stack: Stack) -> None:
        stack.call("noop", {})
        text = stack.http.get("/metrics").text
        assert 'tenfold_service_requests_total{method="diagnostic",operation="noop",status="200"}' in text


def test_many_calls_at_once_are_all_answered(stack: Stack) -> None:
    barrier = threading.Barrier(32)

    def call(number: int) -> str:
        barrier.wait()
        text: str = stack.call("noop", {"text": str(number)}).json()["result"]["text"]
        return text

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(call, range(32))) == [str(number) for number in range(32)]
