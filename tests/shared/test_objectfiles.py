"""What is true of the bucket only: other processes that die, servers that do not answer, memory in flight."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable

import obstore
import obstore.exceptions
import pytest

from shared.files import FileStore
from shared.filestores import open_store
from shared.ids import ordered_id, random_id
from shared.localfiles import LocalFiles
from shared.objectfiles import PART_BYTES, SWEEP_GRACE_S, ObjectFiles, _due, _errors
from shared.problems import ServiceUnavailable, StoredFileNotFound
from shared.settings import InternalSettings
from tests.redis_server import free_port
from tests.s3_server import S3Server
from tests.shared.stores import Clock, put, remains

MIB = 2**20


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def url(s3: S3Server) -> str:
    return s3.url(random_id("test"))


@pytest.fixture
def store(url: str, clock: Clock) -> ObjectFiles:
    return ObjectFiles(url, 20.0, clock)


def script(code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


HALF_A_FILE = """
import sys, time
from shared.files import Owner
from shared.objectfiles import ObjectFiles, PART_BYTES

writer = ObjectFiles(sys.argv[1], 20.0).create(Owner("acme"), "image/png", 60.0)
writer.write(bytes(PART_BYTES + 1))
sys.stdout.write(writer.id + chr(10))
sys.stdout.flush()
time.sleep(600)
"""

FLIGHT = """
import hashlib, json, secrets, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shared.files import Owner
from shared.objectfiles import ObjectFiles

store, block = ObjectFiles(sys.argv[1], 60.0), secrets.token_bytes(2**20)

def memory(name):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024

def upload(_):
    with store.create(Owner("acme"), "image/png", 600.0) as writer:
        for _ in range(8):
            writer.write(block)
        return writer.commit()

def download(stored):
    digest = hashlib.sha256()
    with store.open(stored.id) as reader:
        while chunk := reader.read(256 * 1024):
            digest.update(chunk)
    assert digest.hexdigest() == stored.sha256

download(upload(0))  # imports and connections are not the files'
with ThreadPoolExecutor(8) as pool:
    before = memory("VmRSS")
    files = list(pool.map(upload, range(8)))
    list(pool.map(download, files))
    sys.stdout.write(json.dumps({"grown": memory("VmHWM") - before, "bytes": sum(file.bytes for file in files)}))
"""


class TestMemory:
    def test_eight_files_of_eight_mib_at_once_cost_less_than_four(self, url: str) -> None:
        said, _ = script(FLIGHT, url).communicate(timeout=120)
        measured = json.loads(said)
        assert measured["bytes"] == 64 * MIB
        assert measured["grown"] < 32 * MIB, f"{measured['grown'] / MIB:.1f} MiB"  # measured: 19


class TestCrashes:
    def test_a_writer_killed_in_the_middle_leaves_nothing_that_can_be_seen(self, store: ObjectFiles, url: str) -> None:
        process = script(HALF_A_FILE, url)
        assert process.stdout is not None
        file_id = process.stdout.readline().strip()
        process.kill()
        process.wait()
        process.stdout.close()
        assert re.fullmatch("file_.*", file_id)
        for ask in (store.stat, store.open):
            with pytest.raises(StoredFileNotFound):
                ask(file_id)
        assert remains(store) == []

    def test_bytes_whose_description_was_never_written_are_swept(self, store: ObjectFiles, clock: Clock) -> None:
        kept, crashed = put(store, ttl_s=1e6), put(store, ttl_s=60.0)
        obstore.delete(store._store, f"{crashed.id[-2:]}/{crashed.id}.json")
        with pytest.raises(StoredFileNotFound):
            store.open(crashed.id)
        assert store.sweep(clock.now + 60.0 + SWEEP_GRACE_S) == 1
        assert [name for name in remains(store) if kept.id not in name] == []

    def test_a_mark_of_bytes_that_never_came_is_swept(self, store: ObjectFiles, clock: Clock) -> None:
        stored = put(store, ttl_s=60.0)
        for path in remains(store):
            if path != _due(stored.id, stored.expires_at):
                obstore.delete(store._store, path)
        assert store.sweep(clock.now + 60.0 + SWEEP_GRACE_S) == 0
        assert remains(store) == []

    def test_a_sweep_that_was_cut_off_is_finished_by_the_next(self, store: ObjectFiles, clock: Clock) -> None:
        stored = put(store, ttl_s=60.0)
        obstore.delete(store._store, f"{stored.id[-2:]}/{stored.id}")
        assert store.sweep(clock.now + 60.0 + SWEEP_GRACE_S) == 1
        assert remains(store) == []

    def test_a_file_deleted_while_it_is_extended_does_not_come_back(self, store: ObjectFiles) -> None:
        stored = put(store)
        obstore.delete(store._store, f"{stored.id[-2:]}/{stored.id}")
        with pytest.raises(StoredFileNotFound):
            store.extend(stored.id, 600.0)
        assert [name for name in remains(store) if name != _due(stored.id, stored.expires_at)] == []

    def test_a_file_deleted_while_it_is_read_is_not_found(self, store: ObjectFiles) -> None:
        stored = put(store, bytes(2 * MIB))
        with store.open(stored.id) as reader:
            reader.read(1000)
            store.delete(stored.id)
            with pytest.raises(StoredFileNotFound):
                reader.read()


def uses(store: FileStore, stored_id: str) -> list[Callable[[], object]]:
    return [
        lambda: put(store),
        lambda: put(store, bytes(PART_BYTES + 1)),
        lambda: store.open(stored_id),
        lambda: store.extend(stored_id, 600.0),
        lambda: store.delete(stored_id),
        lambda: store.sweep(2e9),
        store.check,
    ]


class TestUnreachable:
    @pytest.mark.parametrize(
        "kind",
        [kind for kind in vars(obstore.exceptions).values() if isinstance(kind, type)],
        ids=lambda kind: kind.__name__,
    )
    def test_every_exception_of_the_library_is_a_problem_of_the_service(self, kind: type[Exception]) -> None:
        with pytest.raises(ServiceUnavailable), _errors("read"):
            raise kind("for this reason")

    def test_a_server_that_refuses_is_a_problem_of_the_service(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        store = ObjectFiles(url, 0.5)
        for use in uses(store, ordered_id("file")):
            with pytest.raises(ServiceUnavailable) as raised:
                use()
            assert raised.value.retry_after_s is not None
            assert "tenfold-files" not in raised.value.detail

    def test_a_server_that_hangs_is_given_up_in_time_and_used_again_once_it_answers(
        self, s3: S3Server, url: str, clock: Clock
    ) -> None:
        store = ObjectFiles(url, 0.5, clock)
        stored = put(store, bytes(2 * MIB))
        with store.open(stored.id) as reader:
            reader.read(1000)
            s3.freeze()
            try:
                for use in (lambda: put(store), store.check, reader.read, lambda: store.stat(stored.id)):
                    with pytest.raises(ServiceUnavailable):
                        use()
            finally:
                s3.thaw()
        store.check()
        with store.open(stored.id) as reader:
            assert reader.read() == bytes(2 * MIB)

    def test_a_bucket_that_is_not_there_is_told(self, s3: S3Server) -> None:
        store = ObjectFiles("s3://no-such-bucket/x", 5.0)
        with pytest.raises(ServiceUnavailable):
            store.check()
        with pytest.raises(ServiceUnavailable, match="no such bucket"):
            put(store)


def settings(files_url: str) -> InternalSettings:
    return InternalSettings(broker_url="redis://127.0.0.1:1/0", internal_secret="i" * 32, files_url=files_url)


class TestChoice:
    @pytest.mark.parametrize(
        ("files_url", "kind"),
        [
            ("", LocalFiles),
            ("var/files", LocalFiles),
            ("/var/files", LocalFiles),
            ("file:///var/my%20files", LocalFiles),
            ("s3://bucket", ObjectFiles),
            ("s3://bucket/a/b/", ObjectFiles),
            ("gs://bucket/a", ObjectFiles),
            ("az://account/container/a", ObjectFiles),
        ],
    )
    def test_the_url_chooses_the_store(self, files_url: str, kind: type[FileStore]) -> None:
        assert isinstance(open_store(settings(files_url), 1.0), kind)

    def test_a_prefix_is_a_prefix(self) -> None:
        for url in ("s3://b-1/a/b/", "gs://b-1/a/b", "az://account/c-1/a/b"):
            store = open_store(settings(url), 1.0)
            assert isinstance(store, ObjectFiles)
            assert 'prefix="a/b"' in repr(store._store)

    @pytest.mark.parametrize(
        "files_url",
        [
            "ftp://host/x",
            "http://host/bucket",
            "s3:/bucket",
            "s3://",
            "s3:///x",
            "s3://b?x=1",
            "az://account",
            "az://a/",
        ],
    )
    def test_another_url_is_refused_with_the_settings(self, files_url: str) -> None:
        with pytest.raises(ValueError, match="it is written as s3://bucket/prefix"):
            settings(files_url)

    def test_without_the_package_the_start_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "obstore", None)
        monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
        with pytest.raises(RuntimeError, match=re.escape("pip install 'tenfold-server[object-store]'")):
            open_store(settings("s3://bucket/x"), 1.0)
