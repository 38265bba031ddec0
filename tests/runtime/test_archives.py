"""An archive in, an archive out: what a caller gets, what becomes of faults, and what a restart redoes."""

from __future__ import annotations

import gzip
import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest

from tests.stack import Stack

Picture = Callable[..., bytes]


def zipped(files: dict[str, bytes], mode: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return out.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def bomb() -> bytes:
    """A small zip that says it unpacks to six gigabytes."""
    data = bytearray(zipped({"a.png": bytes(1000), "b.png": bytes(1000)}))
    entry = -1
    while (entry := data.find(b"PK\x01\x02", entry + 1)) >= 0:
        data[entry + 24 : entry + 28] = (3 * 2**30).to_bytes(4, "little")
    return bytes(data)


def sent(stack: Stack, archive: bytes, **fields: Any) -> httpx.Response:
    return stack.call("blur-each", data=fields, files={"archive": ("a.zip", archive)})


def results_of(stack: Stack, response: httpx.Response) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The lines of `results.jsonl`, and the files beside it."""
    assert response.status_code == 200, response.text
    stored = response.json()["result"]["archive"]
    assert stored["media_type"] == "application/zip"
    path = next(path for path in stack.files() if path.name == stored["file"])
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    return [json.loads(line) for line in files.pop("results.jsonl").splitlines()], files


def pixels_of(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


class TestResults:
    def test_they_come_in_the_order_of_the_input_and_a_bad_file_is_its_own_affair(
        self, stack: Stack, picture: Picture
    ) -> None:
        files = {"cat/1.png": picture(40, 30), "notes.txt": b"no picture", "cat/wide.png": picture(80, 10)}
        files |= {f"dog/{i}.png": picture(20 + i, 20) for i in range(4)}
        lines, pictures = results_of(stack, sent(stack, zipped(files)))
        assert [line["id"] for line in lines] == list(files)
        assert [line.get("error", {}).get("code") for line in lines] == [
            None,
            "image_unreadable",
            "image_too_large",
            *[None] * 4,
        ]
        for line, data in zip(lines, files.values(), strict=True):
            if "result" in line:
                result = PIL.Image.open(io.BytesIO(pictures.pop(line["result"]["image"])))
                assert result.size == PIL.Image.open(io.BytesIO(data)).size
                assert line["result"]["note"] is None
        assert not pictures

    def test_each_is_what_the_picture_alone_would_be(self, stack: Stack, picture: Picture) -> None:
        one = picture(24, 24)
        lines, pictures = results_of(stack, sent(stack, zipped({"a.png": one})))
        alone = stack.call("blur", files={"image": ("a.png", one)}, headers={"Accept": "image/png"}).content
        there = pictures[lines[0]["result"]["image"]]
        assert np.array_equal(pixels_of(there), pixels_of(alone))

    def test_a_manifest_says_which_and_in_what_order(self, stack: Stack, picture: Picture) -> None:
        rows = [{"path": "b.png", "id": "second"}, {"path": "missing.png"}, {"path": "a.png"}, {"path": "b.png"}]
        manifest = "\n".join(map(json.dumps, rows)).encode()
        files = {"a.png": picture(), "b.png": picture(seed=1), "manifest.jsonl": manifest}
        lines, pictures = results_of(stack, sent(stack, tarred(files)))
        assert [line["id"] for line in lines] == ["second", "line 2", "a.png", "b.png"]
        assert [line.get("error", {}).get("code") for line in lines] == [None, "invalid_request", None, None]
        assert len(pictures) == 3

    def test_only_the_result_is_left(self, stack: Stack, picture: Picture) -> None:
        before = set(stack.files())
        response = sent(stack, gzip.compress(tarred({f"{i}.png": picture(seed=i) for i in range(5)})))
        name = response.json()["result"]["archive"]["file"]
        stack.until(lambda: {path.name for path in set(stack.files()) - before} == {name, f"{name}.json"})

    def test_nothing_in_it_is_readable_and_still_every_entry_has_its_line(self, stack: Stack) -> None:
        lines, pictures = results_of(stack, sent(stack, zipped({"a": b"x", "b": b"y"})))
        assert [line["error"]["code"] for line in lines] == ["image_unreadable"] * 2
        assert not pictures


FAULTS: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "traversal": (lambda: zipped({"../a.png": b"x"}), 422, "archive_unsafe"),
    "absolute path": (lambda: tarred({"/etc/a.png": b"x"}), 422, "archive_unsafe"),
    "link": (lambda: zipped({"a.png": b"/etc/passwd"}, stat.S_IFLNK | 0o777), 422, "archive_unsafe"),
    "bomb": (bomb, 422, "archive_unsafe"),
    "gzip bomb": (lambda: gzip.compress(tarred({"a.png": bytes(70 * 2**20)})), 200, ""),
    "empty": (lambda: zipped({}), 422, "archive_unsafe"),
    "cut off": (lambda: zipped({"a.png": bytes(1000)})[:700], 422, "archive_unsafe"),
    "no archive": (lambda: b"GIF89a", 415, "unsupported_media_type"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_its_answer_and_leaves_nothing_behind(stack: Stack, fault: str) -> None:
    make, status, code = FAULTS[fault]
    before = set(stack.files())
    response = sent(stack, make())
    assert response.status_code == status, response.text
    if status == 200:  # the archive is sound; its only file is larger than any picture may be
        lines, _ = results_of(stack, response)
        assert [line["error"]["code"] for line in lines] == ["body_too_large"]
    else:
        assert response.json()["code"] == code
        stack.until(lambda: set(stack.files()) == before)


class TestARestart:
    def test_it_redoes_only_what_was_open_and_gives_the_same(self, own_stack: Stack, picture: Picture) -> None:
        own_stack.start("api")
        own_stack.start("worker")
        archive = zipped({f"{i}.png": picture(seed=i) for i in range(12)})
        whole = results_of(own_stack, sent(own_stack, archive))
        response = own_stack.call(
            "blur-each",
            data={"seconds": "0.4"},
            files={"archive": ("a.zip", archive)},
            headers={"Prefer": "respond-async"},
        )
        job_id = response.json()["id"]
        own_stack.until(lambda: json.loads(own_stack.record(job_id).get("units", '{"done": 0}'))["done"] >= 2)
        own_stack.kill("worker")
        own_stack.start("worker")
        record = own_stack.wait_for(job_id, "succeeded", within_s=60)
        result = json.loads(record["result"])
        assert int(record["attempt"]) == 2
        assert 0 < result["parts_of_this_attempt"] <= 4
        response = httpx.Response(200, json={"result": result})
        assert results_of(own_stack, response) == whole

    def test_what_is_cancelled_leaves_no_file(self, own_stack: Stack, picture: Picture) -> None:
        own_stack.start("api")
        own_stack.start("worker")
        response = own_stack.call(
            "blur-each",
            data={"seconds": "0.3"},
            files={"archive": ("a.zip", zipped({f"{i}.png": picture(seed=i) for i in range(40)}))},
            headers={"Prefer": "respond-async"},
        )
        job_id = response.json()["id"]
        own_stack.until(lambda: "units" in own_stack.record(job_id))
        own_stack.cancel(job_id)
        own_stack.wait_for(job_id, "cancelled")
        own_stack.until(lambda: not own_stack.files())
