"""Workers, trainers and the broker die, hang and come back: nothing accepted is lost, nothing takes effect twice."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from shared.jobs import message
from tests.conftest import broker_server
from tests.redis_server import RedisServer
from tests.stack import Stack


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, dict[str, str], float]]:
    """Worker and trainer were killed with a job of each kind in hand, and started again; and when."""
    with broker_server(tmp_path_factory.mktemp("redis")) as server:
        stack = Stack(server, tmp_path_factory.mktemp("home"))
        try:
            for kind in ("api", "worker", "trainer"):
                stack.start(kind)
            training = {"name": "counted", "steps": 60, "seconds_a_step": 0.05}
            jobs = {"training": stack.submit("train", training)}
            progress = '{"step": 0}'
            stack.until(lambda: json.loads(stack.record(jobs["training"]).get("progress", progress))["step"] >= 20)
            jobs["units"] = stack.submit("sleep", {"seconds": 0.3, "units": 10})
            stack.until(lambda: json.loads(stack.record(jobs["units"]).get("units", '{"done": 0}'))["done"] >= 3)
            jobs["steps"] = stack.submit("sleep", {"seconds": 4, "steps": 40})
            stack.wait_for(jobs["steps"], "running")
            killed = time.monotonic()
            for kind in ("worker", "trainer"):
                stack.kill(kind)
            for kind in ("worker2", "trainer"):
                stack.start(kind)
            yield stack, jobs, killed
        finally:
            stack.close()


class TestCrash:
    def test_it_costs_one_attempt_and_no_result(self, crashed: tuple[Stack, dict[str, str], float]) -> None:
        stack, jobs, killed = crashed
        stack.until(lambda: stack.record(jobs["steps"])["attempt"] == "2")
        assert time.monotonic() - killed <= 25
        assert stack.wait_for(jobs["steps"], "succeeded")["attempt"] == "2"

    def test_finished_units_are_not_done_again(self, crashed: tuple[Stack, dict[str, str], float]) -> None:
        stack, jobs, _ = crashed
        result = json.loads(stack.wait_for(jobs["units"], "succeeded", within_s=40)["result"])
        assert result["units_done"] == 10
        assert result["units_of_this_attempt"] <= 7

    def test_a_training_goes_on_from_its_checkpoint(self, crashed: tuple[Stack, dict[str, str], float]) -> None:
        stack, jobs, _ = crashed
        result = json.loads(stack.wait_for(jobs["training"], "succeeded", within_s=40)["result"])
        assert result["model"] == "diagnostic/counted@1"
        assert result["resumed_at"] >= 19


@pytest.mark.slow
def test_a_job_that_kills_its_worker_every_time_fails(own_stack: Stack) -> None:
    own_stack.start("api")
    own_stack.start("worker")
    job_id = own_stack.submit("fail", {"how": "die"})
    for kind in ("worker", "worker2"):
        own_stack.processes[kind].wait(40) if kind in own_stack.processes else own_stack.start(kind)
    own_stack.processes["worker2"].wait(40)
    record = own_stack.wait_for(job_id, "failed", within_s=30)
    assert record["lost"] == "2"


def test_a_second_message_of_a_finished_job_does_not_run_it_again(own_stack: Stack) -> None:
    own_stack.start("api")
    own_stack.start("worker")
    job_id = own_stack.call("noop", {"text": "once"}).json()["id"]
    events = own_stack.redis.xlen(f"tf:diagnostic:job:{job_id}:events")
    own_stack.redis.lpush("diagnostic", message("diagnostic", job_id, "diagnostic", "again"))
    own_stack.until(lambda: own_stack.redis.llen("diagnostic") == 0)
    assert own_stack.call("noop", {}).status_code == 200
    assert own_stack.record(job_id)["attempt"] == "1"
    assert own_stack.redis.xlen(f"tf:diagnostic:job:{job_id}:events") == events


def test_a_worker_told_to_end_finishes_what_it_runs(own_stack: Stack) -> None:
    own_stack.start("api")
    own_stack.start("worker")
    job_id = own_stack.submit("sleep", {"seconds": 3, "steps": 30})
    own_stack.wait_for(job_id, "running")
    assert own_stack.terminate("worker") == 0
    assert own_stack.record(job_id)["state"] == "succeeded"


def test_what_is_not_finished_in_time_is_put_back_and_its_attempt_does_not_count(own_stack: Stack) -> None:
    own_stack.start("api")
    own_stack.start("worker", TENFOLD_DRAIN_S="0.5")
    job_id = own_stack.submit("sleep", {"seconds": 0.3, "units": 12})
    own_stack.wait_for(job_id, "running")
    own_stack.until(lambda: "units" in own_stack.record(job_id))
    assert own_stack.terminate("worker") == 0
    assert own_stack.record(job_id)["state"] == "queued"
    own_stack.start("worker2")
    record = own_stack.wait_for(job_id, "succeeded")
    result = json.loads(record["result"])
    assert record["attempt"] == "1"
    assert result["units_done"] == 12
    assert result["units_of_this_attempt"] < 12


class TestCancel:
    def test_a_running_job_stops_at_its_next_step_and_the_worker_goes_on(self, own_stack: Stack) -> None:
        own_stack.start("api")
        own_stack.start("worker")
        job_id = own_stack.submit("sleep", {"seconds": 60, "steps": 600})
        own_stack.wait_for(job_id, "running")
        own_stack.cancel(job_id)
        own_stack.wait_for(job_id, "cancelled", within_s=5)
        assert own_stack.call("noop", {}).status_code == 200

    def test_a_deadline_ends_a_running_job(self, own_stack: Stack) -> None:
        own_stack.start("api")
        own_stack.start("worker")
        job_id = own_stack.submit("sleep", {"seconds": 60, "steps": 600}, lasts_s=2)
        own_stack.wait_for(job_id, "expired", within_s=15)


def test_a_hung_device_fails_its_job_and_ends_the_process(own_stack: Stack) -> None:
    own_stack.start("api")
    own_stack.start("worker", TENFOLD_HARD_TIMEOUT_S="2")
    job_id = own_stack.submit("fail", {"how": "hang"})
    assert own_stack.processes["worker"].wait(20) == 70
    error = json.loads(own_stack.wait_for(job_id, "failed")["error"])
    assert error["code"] == "hung"


def test_a_broker_restart_loses_no_job_and_waiting_calls_are_answered(
    own_stack: Stack, own_server: RedisServer
) -> None:
    own_stack.start("api")
    own_stack.start("worker")
    waiting = own_stack.submit("sleep", {"seconds": 3, "steps": 30})
    own_stack.wait_for(waiting, "running")
    queued = [own_stack.submit("sleep", {"seconds": 0.01}) for _ in range(5)]
    answers: list[int] = []
    caller = threading.Thread(
        target=lambda: answers.append(own_stack.call("sleep", {"seconds": 0.05}).status_code), daemon=True
    )
    caller.start()
    time.sleep(1.2)  # the append-only file is written every second
    own_server.kill()
    time.sleep(0.5)
    own_server.start()
    for job_id in (waiting, *queued):
        own_stack.wait_for(job_id, "succeeded", within_s=60)
    caller.join(40)
    assert answers == [200]


@pytest.mark.slow
def test_an_idle_worker_still_hears_after_ten_seconds(own_stack: Stack) -> None:
    own_stack.start("api")
    own_stack.start("worker")
    own_stack.call("noop", {})
    time.sleep(11)  # twice the socket timeout that redis-py has by default
    assert own_stack.call("noop", {}).status_code == 200
    job_id = own_stack.submit("sleep", {"seconds": 60, "steps": 600})
    own_stack.wait_for(job_id, "running")
    own_stack.cancel(job_id)
    own_stack.wait_for(job_id, "cancelled", within_s=3)


class TestTrainer:
    def test_a_trainer_that_nobody_needs_ends_by_itself(self, own_stack: Stack) -> None:
        own_stack.start("trainer", TENFOLD_TRAINER_IDLE_S="1")
        assert own_stack.processes["trainer"].wait(20) == 0
