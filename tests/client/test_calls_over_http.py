"""Both clients against a real server: operations and jobs."""

from __future__ import annotations

import io
import socket
import time
from pathlib import Path

import pytest

import tenfold
from tenfold.methods.ifadit import Anonymized, Recovered, Verified
from tests.client.conftest import Way
from tests.client.contract import Call, Contract
from tests.client.faults import answers, cuts, is_silent

BUSY = answers(503, "queue_full", Retry_After="1")
OPERATION = "POST /v1/ifadit"


class TestOperations:
    def test_a_picture_goes_there_and_comes_back(
        self, way: Way, contract: Contract, photo: Path, tmp_path: Path
    ) -> None:
        target = tmp_path / "anonymized.png"
        result = way(lambda client: client.ifadit.anonymize(photo, key="key_1", linkage="per_key"))
        assert way(lambda _: result.image.save(target)) == target
        (call,) = contract.called(OPERATION)
        assert call.files["image"] == [photo.read_bytes()]
        assert call.names == {"image": "image.jpg"}
        assert call.query == {"key": "key_1"}
        assert call.fields == {
            "linkage": "per_key",
            "output_format": "png",
            "mode": "parametric",
            "model": "ifadit/small",
        }
        assert isinstance(result, Anonymized)
        assert (result.key_id, result.linkage, result.faces[0].box.width) == ("key_1", "per_key", 3)
        assert result.job_id in contract.jobs
        assert target.read_bytes() == photo.read_bytes()
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    def test_recovery_sends_purpose_and_record(self, way: Way, contract: Contract, png: bytes) -> None:
        result = way(lambda c: c.ifadit.recover(png, b'{"v":1}', purpose="court order 17", allow_modified=True))
        (call,) = contract.called(OPERATION)
        assert call.fields == {"purpose": "court order 17", "allow_modified": "true", "output_format": "png"}
        assert call.files == {"image": [png], "record": [b'{"v":1}']}
        assert isinstance(result, Recovered)
        assert result.record_match

    def test_verification_leaves_out_what_was_not_given(self, way: Way, contract: Contract, png: bytes) -> None:
        result = way(lambda c: c.ifadit.verify(png, other=io.BytesIO(png)))
        (call,) = contract.called(OPERATION)
        assert call.files == {"image": [png], "other": [png]}
        assert isinstance(result, Verified)
        assert result.cosine is None

    def test_a_stored_file_is_sent_by_its_name(self, way: Way, contract: Contract, png: bytes) -> None:
        faces = [{"x": 1, "y": 2, "width": 3, "height": 4}]
        box = tenfold.Box(x=5, y=6, width=7, height=8)
        file = way(lambda c: c.files.upload(png))
        way(lambda c: c.ifadit.anonymize(file, faces=[*faces, box]))
        (call,) = contract.called(OPERATION)
        assert call.fields["image"] == {"file": file.file}
        assert call.fields["faces"] == [*faces, {"x": 5, "y": 6, "width": 7, "height": 8}]

    def test_any_operation_can_be_called_by_name(self, way: Way, contract: Contract, png: bytes) -> None:
        job = way(lambda c: c.call("dit-sr", "upscale", {"steps": 3, "boxes": [{"x": 1}]}, {"image": png}))
        (call,) = contract.called("POST /v1/dit-sr/upscale")
        assert call.fields == {"steps": "3", "boxes": '[{"x":1}]'}
        assert job.result["model"] == "ifadit/small@1"

    def test_a_job_that_fails_while_it_is_waited_for(self, way: Way, contract: Contract, png: bytes) -> None:
        contract.outcome = {"code": "no_face"}
        with pytest.raises(tenfold.InvalidInput) as raised:
            way(lambda c: c.ifadit.anonymize(png))
        assert raised.value.code == "no_face"
        assert raised.value.job_id in contract.jobs
        assert len(contract.called(OPERATION)) == 1


class TestWaiting:
    def test_a_job_that_takes_longer_is_followed_by_its_events(self, way: Way, contract: Contract, png: bytes) -> None:
        contract.holds, contract.takes_s = False, 0.3
        result = way(lambda c: c.ifadit.anonymize(png))
        assert result.job_id in contract.jobs
        assert len(contract.called("GET .*/events")) == 1
        assert len(contract.called(r"GET /v1/jobs/\w+$")) == 1

    def test_events_that_are_cut_go_on_where_they_broke_off(self, way: Way, contract: Contract, png: bytes) -> None:
        contract.holds, contract.takes_s, contract.steps = False, 0.3, 6
        contract.fail("GET .*/events", cuts(after_bytes=60))
        job = way(lambda c: c.submit("ifadit", "anonymize", {}, {"image": png}))
        events = way(lambda c: c.jobs.stream(job.id))
        assert [event.id for event in events] == [f"{n + 1}-0" for n in range(len(events))]
        assert [event.data.get("step") for event in events if event.kind == "progress"] == [1, 2, 3, 4, 5, 6]
        assert events[-1].is_last
        first, second = contract.called("GET .*/events")
        assert "last-event-id" not in first.headers
        assert second.headers["last-event-id"] == "1-0"

    def test_without_events_the_record_is_polled(self, way: Way, contract: Contract, png: bytes) -> None:
        contract.holds, contract.takes_s = False, 0.3
        contract.fail("GET .*/events", answers(404, "route_not_found"))
        way(lambda c: c.ifadit.anonymize(png))
        assert 2 <= len(contract.called(r"GET /v1/jobs/\w+$")) <= 5

    def test_past_the_wait_the_job_goes_on(self, way: Way, contract: Contract, png: bytes) -> None:
        contract.holds, contract.takes_s = False, 0.7
        began = time.monotonic()
        with pytest.raises(tenfold.TimedOut) as raised:
            way(lambda c: c.ifadit.anonymize(png, wait_s=0.3))
        assert 0.3 <= time.monotonic() - began < 0.7
        job_id = raised.value.job_id
        assert job_id is not None
        result = way(lambda c: c.jobs.wait(job_id), lambda job: job.result_as(Anonymized))
        assert result.job_id == job_id
        assert isinstance(result.image, tenfold.AsyncFile if way.is_async else tenfold.File)

    def test_a_submitted_job_that_fails_raises_when_it_is_waited_for(
        self, way: Way, contract: Contract, png: bytes
    ) -> None:
        contract.outcome, contract.takes_s = {"code": "no_worker", "status": 503}, 0.1
        job = way(lambda c: c.submit("ifadit", "anonymize", {}, {"image": png}))
        with pytest.raises(tenfold.Unavailable) as raised:
            way(lambda c: c.jobs.wait(job.id))
        assert (raised.value.code, raised.value.request_id, raised.value.job_id) == ("no_worker", "req_job", job.id)

    def test_a_result_is_not_read_before_there_is_one(self, way: Way, contract: Contract, png: bytes) -> None:
        contract.takes_s = 0.2
        job = way(lambda c: c.submit("ifadit", "anonymize", {}, {"image": png}))
        with pytest.raises(ValueError, match="no result yet"):
            job.result_as(Anonymized)


class TestRetries:
    def test_retry_after_is_obeyed_and_the_job_is_one(self, way: Way, contract: Contract, photo: Path) -> None:
        contract.fail(OPERATION, BUSY)
        way(lambda c: c.ifadit.anonymize(photo))
        first, second = contract.called(OPERATION)
        assert 1.0 <= second.at - first.at < 2.0
        assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
        assert second.files["image"] == [photo.read_bytes()]

    def test_an_answer_that_was_lost_is_asked_for_again(self, way: Way, contract: Contract, png: bytes) -> None:
        contract.fail(OPERATION, cuts(), cuts(after_bytes=20))
        file = io.BytesIO(b"not this" + png)
        file.seek(8)
        way(lambda c: c.ifadit.anonymize(file))
        assert [call.files["image"] for call in contract.called(OPERATION)] == [[png]] * 3
        assert len(contract.jobs) == 1

    def test_retries_end(self, way: Way, contract: Contract, png: bytes) -> None:
        contract.fail(OPERATION, *[answers(502, "bad_gateway")] * 2)
        with pytest.raises(tenfold.Unavailable) as raised:
            way(lambda c: c.ifadit.anonymize(png), max_retries=1)
        assert (raised.value.status, raised.value.request_id) == (502, "req_fault")

    def test_what_lasts_is_not_repeated(self, way: Way, contract: Contract, png: bytes) -> None:
        contract.fail(OPERATION, answers(403, "scope_missing"))
        with pytest.raises(tenfold.NotAllowed):
            way(lambda c: c.ifadit.anonymize(png))
        assert len(contract.called(OPERATION)) == 1

    def test_a_server_that_is_silent(self, way: Way, contract: Contract) -> None:
        contract.fail("GET /v1/jobs", is_silent(1.0))
        with pytest.raises(tenfold.TimedOut):
            way(lambda c: c.jobs.get("job_1"), timeout_s=0.2)

    def test_nobody_listens(self, way: Way) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with pytest.raises(tenfold.ConnectionFailed, match=str(port)):
            way(lambda c: c.jobs.get("job_1"), base_url=f"http://127.0.0.1:{port}", max_retries=1)

    def test_the_callers_own_key_finds_the_job_again(self, way: Way, contract: Contract, png: bytes) -> None:
        for _ in range(2):
            way(lambda c: c.ifadit.anonymize(png, idempotency_key="photo 1"))
        assert len(contract.jobs) == 1


class TestJobs:
    def test_a_list_has_as_many_pages_as_it_needs(self, way: Way, contract: Contract) -> None:
        self._fill(contract, 230)
        jobs = way(lambda c: c.jobs.list())
        assert [job.id for job in jobs] == sorted(contract.jobs, reverse=True)
        assert len(contract.called("GET /v1/jobs")) == 3

    def test_who_stops_early_asks_for_no_more(self, contract: Contract, client: tenfold.Client) -> None:
        self._fill(contract, 230)
        for _job in client.jobs.list():
            break
        assert len(contract.called("GET /v1/jobs")) == 1

    def test_a_job_is_read_whatever_became_of_it(self, way: Way, contract: Contract, png: bytes) -> None:
        contract.outcome, contract.takes_s = {"code": "no_face"}, 0.1
        name = way(lambda c: c.submit("ifadit", "anonymize", {}, {"image": png})).id
        way(lambda c: c.jobs.stream(name))
        job = way(lambda c: c.jobs.get(name))
        assert (job.state, job.problem.code) == ("failed", "no_face")

    def test_cancelling(self, way: Way, contract: Contract, png: bytes) -> None:
        contract.takes_s = 5
        job = way(lambda c: c.submit("ifadit", "anonymize", {}, {"image": png}), lambda job: job)
        assert way(lambda c: c.jobs.cancel(job.id)).state == "cancelled"
        with pytest.raises(tenfold.Conflict, match="cancelled"):
            way(lambda c: c.jobs.wait(job.id))

    def test_another_tenants_job_looks_like_no_job(self, way: Way) -> None:
        with pytest.raises(tenfold.NotFound) as raised:
            way(lambda c: c.jobs.get("job_x"))
        assert (raised.value.code, raised.value.status, raised.value.request_id) == ("job_not_found", 404, "req_1")

    @staticmethod
    def _fill(contract: Contract, count: int) -> None:
        for n in range(count):
            contract.start("ifadit", "anonymize", Call("POST", "/", {}, {"idempotency-key": str(n)}))
