"""API and worker that share nothing but Redis and a bucket."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator

import numpy as np
import PIL.Image
import pytest

from shared.ids import random_id
from shared.objectfiles import ObjectFiles
from tests.conftest import broker_server
from tests.s3_server import S3Server
from tests.shared.stores import remains
from tests.stack import Stack

Picture = Callable[..., bytes]


@pytest.fixture(scope="module")
def prefix() -> str:
    return random_id("test")


@pytest.fixture(scope="module")
def stack(_s3: S3Server, prefix: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with broker_server(tmp_path_factory.mktemp("redis")) as server:
        stack = Stack(server, tmp_path_factory.mktemp("home"), TENFOLD_FILES_URL=_s3.url(prefix), **_s3.environment)
        try:
            stack.start("api")
            stack.start("worker")
            yield stack
        finally:
            stack.close()


@pytest.fixture
def files(s3: S3Server, prefix: str) -> ObjectFiles:
    return ObjectFiles(s3.url(prefix), 20.0)


def test_a_picture_goes_through_the_bucket_to_the_worker_and_back(
    stack: Stack, files: ObjectFiles, picture: Picture
) -> None:
    response = stack.call("blur", files={"image": ("a.png", picture(40, 30))}, headers={"Accept": "image/png"})
    assert response.status_code == 200, response.text
    assert np.asarray(PIL.Image.open(io.BytesIO(response.content))).shape == (30, 40, 3)
    job = response.links["job"]["url"].rpartition("/")[2]
    result = files.stat(json.loads(stack.record(job)["result"])["image"]["file"])
    with files.open(result.id) as stream:
        assert stream.read() == response.content
    stack.until(lambda: all(result.id in name for name in remains(files)))  # the input goes when the job is done
    assert stack.files() == []


def test_a_bucket_that_hangs_for_a_while_costs_time_and_no_job(stack: Stack, s3: S3Server, picture: Picture) -> None:
    jobs = [stack.submit("blur", files={"image": ("a.png", picture(seed=seed))}) for seed in range(3)]
    s3.freeze()
    try:
        assert stack.http.get("/readyz").status_code == 503
    finally:
        s3.thaw()
    for job in jobs:
        assert stack.wait_for(job, "succeeded", within_s=60)["attempt"] == "1"
    assert stack.http.get("/readyz").status_code == 200
