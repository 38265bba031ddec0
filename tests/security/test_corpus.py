"""Hundreds of bad files: each has its answer, none is a 500, and nothing stays behind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis

from shared.jobs import TERMINAL
from shared.problems import MEDIA_TYPE
from tests.main_job.conftest import Installation
from tests.security.corpus import OK, BadFile, all_archives, pictures

AT_ONCE = 4
SETTLED_S = 10.0
PICTURES, ARCHIVES = pictures(), all_archives()


class Remains:
    """What lies in the file store and in the broker."""

    def __init__(self, fortress: Installation, broker: redis.Redis, method: str) -> None:
        self._fortress, self._broker, self._method = fortress, broker, method

    def files(self) -> set[str]:
        return {path.name for path in (self._fortress.home / "files").rglob("*") if path.is_file()}

    def jobs(self) -> set[str]:
        pattern = f"tf:{self._method}:job:*"
        names = (str(name) for name in self._broker.scan_iter(match=pattern, count=1000))
        return {name.split(":")[3] for name in names}

    def states(self, jobs: set[str]) -> set[str]:
        found = (self._broker.hget(f"tf:{self._method}:job:{job}", "state") for job in jobs)
        return {str(state) for state in found}

    def unfinished(self) -> dict[str, Any]:
        """Whatever is still queued, leased or waited for: nothing, once all is settled."""
        p = f"tf:{self._method}:"
        found = {name: self._broker.zcard(p + name) for name in ("queued", "active", "deadlines")}
        found["queue"] = self._broker.llen(self._method)
        found["units"] = len(list(self._broker.scan_iter(match=f"{p}job:*:units")))
        return {name: count for name, count in found.items() if count}

    def settled(self, kept: set[str]) -> tuple[set[str], dict[str, Any]]:
        """Files beyond `kept`, and what is unfinished, once both are empty or some time has passed."""
        deadline = time.monotonic() + SETTLED_S
        while (left := (self.files() - kept, self.unfinished())) != (set(), {}) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left


class Sent:
    """A corpus, sent, with what was there before."""

    def __init__(self, remains: Remains, answers: dict[str, httpx.Response], files: set[str], jobs: set[str]) -> None:
        self.remains, self.answers, self.files_before, self.jobs_before = remains, answers, files, jobs

    def named_jobs(self) -> set[str]:
        bodies = (answer.json() for answer in self.answers.values())
        return {body.get("id") or body["job_id"] for body in bodies if "id" in body or "job_id" in body}


@pytest.fixture(scope="module")
def broker(fortress: Installation) -> Any:
    url = (fortress.home / "secrets" / "tenfold_broker_url").read_text()
    with redis.Redis.from_url(url, decode_responses=True) as client:
        yield client


def send(fortress: Installation, broker: redis.Redis, path: str, field: str, corpus: Sequence[BadFile]) -> Sent:
    remains = Remains(fortress, broker, path.split("/")[2])
    files, jobs = remains.files(), remains.jobs()

    def post(bad: BadFile) -> httpx.Response:
        return fortress.post(path, files={field: (bad.file_name, bad.data, bad.media_type)})

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = dict(zip((bad.name for bad in corpus), pool.map(post, corpus), strict=True))
    return Sent(remains, answers, files, jobs)


@pytest.fixture(scope="module")
def looked_at(fortress: Installation, broker: redis.Redis) -> Sent:
    return send(fortress, broker, "/v1/probe/look", "image", PICTURES)


@pytest.fixture(scope="module")
def unpacked(fortress: Installation, broker: redis.Redis) -> Sent:
    return send(fortress, broker, "/v1/probe/unpack", "archive", ARCHIVES)


def code_of(answer: httpx.Response) -> str:
    return OK if answer.status_code == 200 else str(answer.json()["code"])


def check(bad: BadFile, answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    assert code_of(answer) in bad.right, answer.text
    if answer.status_code == 200:
        result = answer.json()["result"]
        assert {name: result[name] for name in bad.result} == bad.result
    else:
        assert answer.headers["content-type"] == MEDIA_TYPE
        assert answer.json()["request_id"]


def test_the_corpus_is_large_and_every_file_has_a_name_of_its_own() -> None:
    names = [bad.name for bad in (*PICTURES, *ARCHIVES)]
    assert len(names) == len(set(names)) >= 300


@pytest.mark.parametrize("bad", PICTURES, ids=lambda bad: bad.name)
def test_a_bad_picture_has_its_answer(looked_at: Sent, bad: BadFile) -> None:
    check(bad, looked_at.answers[bad.name])


@pytest.mark.parametrize("bad", ARCHIVES, ids=lambda bad: bad.name)
def test_a_bad_archive_has_its_answer(unpacked: Sent, bad: BadFile) -> None:
    check(bad, unpacked.answers[bad.name])


def test_no_file_and_no_job_stays_behind(looked_at: Sent, unpacked: Sent) -> None:
    remains, before = looked_at.remains, looked_at.files_before
    assert remains.settled(before) == (set(), {})
    named = looked_at.named_jobs() | unpacked.named_jobs()
    assert remains.jobs() - looked_at.jobs_before == named, "a record that no answer spoke of"
    assert remains.states(named) <= TERMINAL


@pytest.mark.slow
def test_anonymize_meets_the_same_pictures(fortress: Installation, broker: redis.Redis) -> None:
    """Encrypted at rest on their way, under a lease. None of them shows a face."""
    sent = send(fortress, broker, "/v1/ifadit/anonymize", "image", PICTURES)
    for bad in PICTURES:
        answer = sent.answers[bad.name]
        assert 400 <= answer.status_code < 500, (bad.name, answer.text)
        right = (bad.right - {OK}) | ({"no_face", "photograph_too_large"} if OK in bad.right else set())
        if bad.name == "png with fewer pixels than it says":  # 36 megapixels: looked at before it is decoded
            right = frozenset({"photograph_too_large"})
        assert code_of(answer) in right, bad.name
    assert sent.remains.settled(sent.files_before) == (set(), {})
    assert sent.remains.jobs() - sent.jobs_before == sent.named_jobs()
