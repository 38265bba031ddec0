"""Both clients against a real server: files, large and small."""

from __future__ import annotations

import hashlib
import io
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tenfold
from tests.client.conftest import Way
from tests.client.contract import Contract, Kept
from tests.client.faults import answers, cuts

LARGE_BYTES = 24 * 2**20
FLAT_BYTES = 4 * 2**20  # client and server together, whatever the size of the file
BLOCK = hashlib.sha256(b"block").digest() * 2048  # 64 KiB


def large() -> Kept:
    """A file that is made while it is read."""
    digest = hashlib.sha256()
    for _ in range(LARGE_BYTES // len(BLOCK)):
        digest.update(BLOCK)
    return Kept("application/zip", LARGE_BYTES, digest.hexdigest(), lambda a, b: (BLOCK + BLOCK)[a % 65536 :][: b - a])


@pytest.fixture
def memory_of() -> Iterator[Callable[[Callable[[], Any]], int]]:
    """Peak of what Python allocates while something runs, in bytes."""

    def measure(do: Callable[[], Any]) -> int:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        do()
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    yield measure
    tracemalloc.stop()


class TestUpload:
    def test_a_file_is_stored_and_its_facts_come_back(self, way: Way, contract: Contract, photo: Path) -> None:
        file = way(lambda c: c.files.upload(photo))
        content = photo.read_bytes()
        assert (file.media_type, file.bytes) == ("image/jpeg", len(content))
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        (call,) = contract.called("POST /v1/files")
        assert call.headers["content-length"] == str(len(content))
        assert way(lambda _: file.read()) == content

    def test_the_caller_may_say_what_it_is(self, way: Way) -> None:
        assert way(lambda c: c.files.upload(b"PK", media_type="application/zip")).media_type == "application/zip"

    def test_it_is_sent_anew_after_a_cut(self, way: Way, contract: Contract, photo: Path) -> None:
        contract.fail("POST /v1/files", cuts())
        with photo.open("rb") as opened:
            file = way(lambda c: c.files.upload(opened))
        assert file.sha256 == hashlib.sha256(photo.read_bytes()).hexdigest()
        first, second = contract.called("POST /v1/files")
        assert first.headers["idempotency-key"] == second.headers["idempotency-key"]

    def test_a_large_one_takes_little_memory(
        self, way: Way, tmp_path: Path, memory_of: Callable[[Callable[[], Any]], int]
    ) -> None:
        path = tmp_path / "large.zip"
        with path.open("wb") as out:
            out.truncate(LARGE_BYTES)  # a hole: read as zeros, on no disk
        assert memory_of(lambda: way(lambda c: c.files.upload(path))) < FLAT_BYTES


class TestDownload:
    def test_a_large_one_takes_little_memory(
        self, way: Way, contract: Contract, tmp_path: Path, memory_of: Callable[[Callable[[], Any]], int]
    ) -> None:
        facts = contract.keep(large())
        target = tmp_path / "large.zip"
        assert memory_of(lambda: way(lambda c: c.files.download(facts["file"], target))) < FLAT_BYTES
        with target.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"]

    def test_a_cut_one_is_resumed(self, way: Way, contract: Contract, tmp_path: Path) -> None:
        content = BLOCK * 8
        facts = contract.keep(Kept.of(content, "application/zip"))
        contract.fail("GET /v1/files", cuts(after_bytes=200_000), cuts(after_bytes=100_000))
        target = tmp_path / "file.zip"
        assert way(lambda c: c.files.download(facts["file"], target)) == target
        assert target.read_bytes() == content
        starts = [call.headers.get("range") for call in contract.called("GET /v1/files")]
        assert starts == [None, "bytes=200000-", "bytes=300000-"]

    def test_a_damaged_one_leaves_what_was_there_before(self, way: Way, contract: Contract, tmp_path: Path) -> None:
        kept = Kept.of(b"right", "application/zip")
        facts = contract.keep(Kept(kept.media_type, kept.size, kept.sha256, lambda a, b: b"wrong"[a:b]))
        target = tmp_path / "file.zip"
        target.write_bytes(b"before")
        with pytest.raises(tenfold.ServerFault) as raised:
            way(lambda c: c.files.download(facts["file"], target))
        assert raised.value.code == "download_damaged"
        assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]
        assert target.read_bytes() == b"before"

    def test_a_folder_that_is_not_there_is_an_error_of_the_callers(
        self, way: Way, contract: Contract, tmp_path: Path
    ) -> None:
        facts = contract.keep(Kept.of(b"abc", "application/zip"))
        with pytest.raises(FileNotFoundError):
            way(lambda c: c.files.download(facts["file"], tmp_path / "nowhere" / "file.zip"))

    def test_it_comes_in_pieces(self, way: Way, contract: Contract) -> None:
        facts = contract.keep(Kept.of(BLOCK * 3, "application/zip"))
        pieces = way(lambda c: c.files.stream(facts["file"]))
        assert b"".join(pieces) == BLOCK * 3
        assert len(pieces) > 1

    def test_an_iterator_that_is_left_lets_its_connection_go(self, contract: Contract, client: tenfold.Client) -> None:
        facts = contract.keep(large())
        for _ in range(120):  # more than the pool has connections
            pieces = client.files.stream(facts["file"])
            next(pieces)
            pieces.close()  # type: ignore[attr-defined]
        assert client.files.get(facts["file"]).bytes == LARGE_BYTES


class TestFacts:
    def test_they_come_without_the_bytes(self, way: Way, contract: Contract) -> None:
        facts = contract.keep(Kept.of(b"abc", "application/zip"))
        file = way(lambda c: c.files.get(facts["file"]))
        assert (file.media_type, file.bytes, file.sha256) == ("application/zip", 3, facts["sha256"])
        assert [call.method for call in contract.calls] == ["HEAD"]
        assert way(lambda c: c.files.get(file)).file == file.file
        assert way(lambda _: file.stream()) == way(lambda c: c.files.stream(file)) == [b"abc"]

    def test_a_file_that_is_gone(self, way: Way) -> None:
        for step in (
            lambda c: c.files.get("file_x"),
            lambda c: c.files.stream("file_x"),
            lambda c: c.files.delete("file_x"),
        ):
            with pytest.raises(tenfold.NotFound):
                way(step)

    def test_deleting(self, way: Way, contract: Contract) -> None:
        file = way(lambda c: c.files.upload(io.BytesIO(b"abc")))
        assert way(lambda c: c.files.delete(file)) is None
        assert contract.files == {}

    def test_deleting_when_the_answer_was_lost(self, way: Way, contract: Contract) -> None:
        file = way(lambda c: c.files.upload(b"abc"))
        contract.fail("DELETE", cuts())
        assert way(lambda c: c.files.delete(file)) is None

    def test_a_busy_server(self, way: Way, contract: Contract) -> None:
        facts = contract.keep(Kept.of(b"abc", "application/zip"))
        contract.fail("GET /v1/files", answers(503, "service_unavailable", Retry_After="0"))
        assert way(lambda c: c.files.stream(facts["file"])) == [b"abc"]

    def test_a_file_without_a_client_cannot_be_read(self) -> None:
        with pytest.raises(RuntimeError, match="client"):
            tenfold.File(file="file_1", media_type="image/png", bytes=3).read()
