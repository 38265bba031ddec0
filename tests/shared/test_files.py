"""What every file store promises: the folder, the bucket, and the memory that stands for them in tests."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.files import FileCensus, FileDamaged, FileStore, InMemoryFiles, Owner, StoredFile
from shared.ids import random_id
from shared.localfiles import LocalFiles
from shared.objectfiles import PART_BYTES, SWEEP_GRACE_S, ObjectFiles
from shared.problems import StoredFileNotFound, UnsupportedMediaType
from tests.s3_server import S3Server
from tests.shared.stores import ACME, KEY, LEASED, Clock, describe, lying, overwrite, put, remains

OWNERS = ((ACME, None), (LEASED, KEY))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["folder", "bucket", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> FileStore:
    if request.param == "bucket":
        s3: S3Server = request.getfixturevalue("s3")
        return ObjectFiles(s3.url(random_id("test")), 20.0, clock)
    return LocalFiles(tmp_path / "files", clock) if request.param == "folder" else InMemoryFiles(clock)


class TestWriting:
    def test_a_committed_file_is_read_back_with_what_is_known_of_it(self, store: FileStore, clock: Clock) -> None:
        data = secrets.token_bytes(300_000)
        with store.create(ACME, "image/png", 60.0, name="holiday.png") as writer:
            for start in range(0, len(data), 1000):
                assert writer.write(data[start : start + 1000]) == 1000
            stored = writer.commit(width=30, height=20)
        assert stored == store.stat(stored.id)
        assert stored == StoredFile(
            id=writer.id,
            owner=ACME,
            media_type="image/png",
            bytes=300_000,
            sha256=hashlib.sha256(data).hexdigest(),
            width=30,
            height=20,
            name="holiday.png",
            created_at=clock.now,
            expires_at=clock.now + 60.0,
        )
        with store.open(stored.id) as reader:
            assert reader.read() == data

    def test_a_file_of_several_parts_is_one_file(self, store: FileStore) -> None:
        data = secrets.token_bytes(2 * PART_BYTES + 12_345)
        for owner, key in OWNERS:
            with store.open(put(store, data, owner=owner).id, key=key) as reader:
                assert reader.read() == data

    def test_leaving_after_several_parts_leaves_nothing(self, store: FileStore) -> None:
        with store.create(ACME, "image/png", 60.0) as writer:
            writer.write(bytes(PART_BYTES + 1))
        with pytest.raises(StoredFileNotFound):
            store.stat(writer.id)
        assert remains(store) == []

    def test_a_deleted_file_leaves_nothing(self, store: FileStore) -> None:
        stored = put(store)
        store.delete(stored.id)
        store.delete(stored.id)
        with pytest.raises(StoredFileNotFound):
            store.open(stored.id)
        assert remains(store) == []

    def test_a_store_that_works_says_so_and_keeps_nothing_of_the_question(self, store: FileStore) -> None:
        store.check()
        assert remains(store) == []

    def test_a_reader_seeks(self, store: FileStore) -> None:
        for owner, key in OWNERS:
            stored = put(store, bytes(range(256)) * 1000, owner=owner)
            with store.open(stored.id, key=key) as reader:
                assert reader.seek(-3, io.SEEK_END) == 255_997
                assert reader.read() == b"\xfd\xfe\xff"
                reader.seek(130_000)
                assert reader.read(2) == bytes([130_000 % 256, 130_001 % 256])

    def test_an_empty_file_is_a_file(self, store: FileStore) -> None:
        for owner, key in OWNERS:
            with store.open(put(store, b"", owner=owner).id, key=key) as reader:
                assert reader.read() == b""

    def test_leaving_without_commit_leaves_nothing(self, store: FileStore) -> None:
        with store.create(ACME, "image/png", 60.0) as writer:
            writer.write(b"half")
        with pytest.raises(StoredFileNotFound):
            store.stat(writer.id)
        assert remains(store) == []

    def test_an_error_inside_leaves_nothing(self, store: FileStore) -> None:
        with pytest.raises(RuntimeError), store.create(LEASED, "image/png", 60.0, key=KEY) as writer:  # noqa: PT012
            writer.write(b"half")
            raise RuntimeError
        with pytest.raises(StoredFileNotFound):
            store.stat(writer.id)
        assert remains(store) == []

    def test_it_does_not_exist_before_its_commit(self, store: FileStore) -> None:
        with store.create(ACME, "image/png", 60.0) as writer:
            writer.write(b"whole")
            with pytest.raises(StoredFileNotFound):
                store.open(writer.id)
            writer.commit()
            store.open(writer.id).close()

    def test_a_closed_writer_takes_nothing_more(self, store: FileStore) -> None:
        with store.create(ACME, "image/png", 60.0) as writer:
            writer.commit()
            with pytest.raises(ValueError, match="closed"):
                writer.write(b"more")
            with pytest.raises(ValueError, match="closed"):
                writer.commit()

    def test_the_name_loses_its_folders_and_what_cannot_be_printed(self, store: FileStore) -> None:
        with store.create(ACME, "image/png", 60.0, name="..\\a/b\r\nc: é.png") as writer:
            assert writer.commit().name == "bc: é.png"
        with store.create(ACME, "image/png", 60.0, name="x" * 300 + ".png") as writer:
            name = writer.commit().name
        assert name is not None
        assert len(name) == 255
        assert name.endswith(".png")

    @pytest.mark.parametrize(
        "media_type", ["", "png", "image/png\r\nx: y", "Image/PNG", "image/png; q=1", "a/" + "b" * 99]
    )
    def test_what_is_no_media_type_is_refused(self, store: FileStore, media_type: str) -> None:
        with pytest.raises(UnsupportedMediaType):
            store.create(ACME, media_type, 60.0)

    def test_a_file_without_time_is_refused(self, store: FileStore) -> None:
        with pytest.raises(ValueError, match="some time"):
            store.create(ACME, "image/png", 0.0)


LONG = bytes(i * i % 251 for i in range(1000)) * 900


class TestReading:
    """A seekable stream is one where seeks and reads in any order give what a buffer of the same bytes gives."""

    @pytest.mark.parametrize(("owner", "key"), OWNERS, ids=["plain", "encrypted"])
    def test_any_ranges_in_any_order_are_those_of_the_whole(
        self, store: FileStore, owner: Owner, key: bytes | None
    ) -> None:
        stored = put(store, LONG, owner=owner)

        @settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(st.tuples(st.integers(0, len(LONG) + 10), st.integers(0, 400_000)), min_size=1, max_size=4))
        def check(ranges: list[tuple[int, int]]) -> None:
            with store.open(stored.id, key=key) as reader:
                for start, count in ranges:
                    assert reader.seek(start) == start
                    assert reader.read(count) == LONG[start : start + count]
                    assert reader.tell() == start + len(LONG[start : start + count])

        check()

    @pytest.mark.parametrize("chunk", [1 << 12, 100_001, 1 << 18, len(LONG)])
    def test_pieces_of_any_size_make_the_whole(self, store: FileStore, chunk: int) -> None:
        with store.open(put(store, LONG).id) as reader:
            assert b"".join(iter(lambda: reader.read(chunk), b"")) == LONG


class TestDamage:
    @pytest.mark.parametrize(
        "read",
        [
            lambda stream: stream.read(),
            lambda stream: list(iter(lambda: stream.read(1000), b"")),
            lambda stream: (stream.read(10), stream.seek(0), stream.read()),
        ],
        ids=["at once", "in pieces", "after a look at its head"],
    )
    def test_one_wrong_bit_is_noticed_by_whoever_reads_the_whole(
        self, store: FileStore, read: Callable[[BinaryIO], object]
    ) -> None:
        for owner, key in OWNERS:
            stored = put(store, LONG, owner=owner)
            data = bytearray(lying(store, stored.id))
            data[450_000] ^= 1
            overwrite(store, stored.id, bytes(data))
            with pytest.raises(FileDamaged), store.open(stored.id, key=key) as reader:
                read(reader)

    def test_a_truncated_file_is_noticed(self, store: FileStore) -> None:
        for owner, key in OWNERS:
            stored = put(store, b"x" * 1000, owner=owner)
            overwrite(store, stored.id, lying(store, stored.id)[:500])
            with pytest.raises(FileDamaged):
                store.open(stored.id, key=key)

    def test_the_bytes_of_one_file_under_the_name_of_another_are_noticed(self, store: FileStore) -> None:
        for owner, key in OWNERS:
            one, two = put(store, b"one", owner=owner), put(store, b"two", owner=owner)
            overwrite(store, two.id, lying(store, one.id))
            with pytest.raises(FileDamaged):
                store.open(two.id, key=key).read()

    def test_a_damaged_description_is_noticed(self, store: FileStore) -> None:
        stored = put(store)
        for text in ("", "{", "[]", json.dumps({"id": stored.id}), json.dumps({"owner": None})):
            if isinstance(store, InMemoryFiles):
                return  # describes with objects
            describe(store, stored.id, text)
            with pytest.raises(FileDamaged):
                store.stat(stored.id)
        store.delete(stored.id)
        assert stored.id not in "".join(name for name in remains(store) if "due/" not in name)


class TestEncryption:
    def test_no_plain_byte_reaches_the_store_and_no_name(self, store: FileStore) -> None:
        face = b"FACE" * 100_000
        with store.create(LEASED, "image/png", 60.0, key=KEY, name="Jane Doe.png") as writer:
            writer.write(face)
            stored = writer.commit()
        assert stored.name is None
        sealed = lying(store, stored.id)
        assert len(sealed) > len(face)
        assert b"FACEFACE" not in sealed

    def test_key_and_lease_go_together(self, store: FileStore) -> None:
        with pytest.raises(ValueError, match="go together"):
            store.create(LEASED, "image/png", 60.0)
        with pytest.raises(ValueError, match="go together"):
            store.create(ACME, "image/png", 60.0, key=KEY)
        with pytest.raises(ValueError, match="is encrypted"):
            store.open(put(store, owner=LEASED).id)
        with pytest.raises(ValueError, match="is not encrypted"):
            store.open(put(store).id, key=KEY)

    def test_the_description_is_of_the_plain_bytes(self, store: FileStore) -> None:
        stored = put(store, b"a face", owner=LEASED)
        assert (stored.bytes, stored.sha256) == (6, hashlib.sha256(b"a face").hexdigest())
        with store.open(stored.id, key=bytearray(KEY)) as reader:
            assert reader.read() == b"a face"

    def test_another_lease_opens_nothing(self, store: FileStore) -> None:
        stored = put(store, owner=LEASED)
        with pytest.raises(FileDamaged):
            store.open(stored.id, key=bytes(32))


class TestNames:
    @pytest.mark.parametrize(
        "file_id",
        [
            "",
            "file_",
            "../../etc/passwd",
            "file_../../../../../../etc/passwd",
            "/etc/passwd",
            "job_01k9z6w3m8q4t5v7x2y0r1s3d4",
            "file_01k9z6w3m8q4t5v7x2y0r1s3d4.json",
            "file_01k9z6w3m8q4t5v7x2y0r1s3d4\n",
            "file_01K9Z6W3M8Q4T5V7X2Y0R1S3D4",
            "file_\0",
            "file_01k9z6w3m8q4t5v7x2y0r1s3d4",
        ],
    )
    def test_what_is_not_there_is_not_found(self, store: FileStore, file_id: str) -> None:
        put(store)
        with pytest.raises(StoredFileNotFound):
            store.open(file_id)
        with pytest.raises(StoredFileNotFound):
            store.stat(file_id)
        with pytest.raises(StoredFileNotFound):
            store.extend(file_id, 60.0)
        store.delete(file_id)


class TestTime:
    def test_a_file_is_gone_when_its_time_is_over_swept_or_not(self, store: FileStore, clock: Clock) -> None:
        stored = put(store, ttl_s=60.0)
        clock.now += 59.9
        store.stat(stored.id)
        clock.now = stored.expires_at
        for ask in (store.stat, store.open, lambda name: store.extend(name, 60.0)):
            with pytest.raises(StoredFileNotFound):
                ask(stored.id)

    def test_extend_counts_from_now_and_never_shortens(self, store: FileStore, clock: Clock) -> None:
        stored = put(store, ttl_s=60.0)
        clock.now += 30.0
        store.extend(stored.id, 10.0)
        assert store.stat(stored.id) == stored
        store.extend(stored.id, 100.123)
        assert store.stat(stored.id).expires_at == pytest.approx(stored.expires_at + 70.123, abs=1e-3)
        clock.now += 99.0
        with store.open(stored.id) as reader:
            assert reader.read() == b"bytes"

    def test_a_sweep_takes_what_is_over_and_nothing_else(self, store: FileStore, clock: Clock) -> None:
        short, long, extended = put(store, ttl_s=10.0), put(store, ttl_s=7200.0), put(store, ttl_s=10.0)
        store.extend(extended.id, 4000.0)
        assert store.sweep() == 0
        assert store.sweep(clock.now + 10.0 + SWEEP_GRACE_S) == 1
        assert short.id not in str(remains(store))
        for stored in (long, extended):
            with store.open(stored.id) as reader:
                assert reader.read() == b"bytes"
        clock.now += 7200.0 + SWEEP_GRACE_S
        assert store.sweep() == 2
        assert remains(store) == []

    def test_a_census_counts_files_and_all_that_they_take(self, store: FileStore, tmp_path: Path) -> None:
        if isinstance(store, ObjectFiles):
            assert store.census() is None, "counting would mean to list the bucket"
            return
        assert store.census() == FileCensus(0, 0)
        stored = [put(store, bytes(size)) for size in (1000, 2000)]
        held = store.census()
        assert held is not None
        on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        assert held == FileCensus(2, on_disk or 3000)
        store.delete(stored[0].id)
        assert (store.census() or held).count == 1

    def test_a_sweep_before_the_first_file_finds_nothing(self, store: FileStore) -> None:
        assert store.sweep() == 0


class TestOwners:
    def test_a_file_is_seen_by_its_tenant_only(self) -> None:
        stored = put(InMemoryFiles())
        assert stored.visible_to("acme", "prn_a", ())
        assert not stored.visible_to("other", "prn_a", ("use", "recover"))

    def test_a_sensitive_file_is_seen_by_its_principal_while_it_holds_the_scope(self) -> None:
        stored = put(InMemoryFiles(), owner=LEASED)
        assert stored.visible_to("acme", "prn_a", {"recover", "audit"})
        assert not stored.visible_to("acme", "prn_a", {"audit"})
        assert not stored.visible_to("acme", "prn_b", {"recover"})
        assert not stored.visible_to("other", "prn_a", {"recover"})

    def test_results_show_a_size_only_where_there_is_one(self) -> None:
        stored = put(InMemoryFiles())
        public = {
            "file": stored.id,
            "url": f"/v1/files/{stored.id}",
            "media_type": "image/png",
            "bytes": 5,
            "sha256": hashlib.sha256(b"bytes").hexdigest(),
        }
        assert stored.public() == public
        with InMemoryFiles().create(ACME, "image/png", 60.0) as writer:
            assert writer.commit(3, 2).public().items() >= {"width": 3, "height": 2}.items()


def test_writers_readers_and_sweeps_at_once_harm_each_other_nowhere(store: FileStore, clock: Clock) -> None:
    failures: list[BaseException] = []

    def work(step: Callable[[], object]) -> None:
        try:
            for _ in range(5):
                step()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    def write_and_read() -> None:
        stored = put(store, secrets.token_bytes(100), ttl_s=300.0)
        store.extend(stored.id, 600.0)
        with store.open(stored.id) as reader:
            assert hashlib.sha256(reader.read()).hexdigest() == stored.sha256
        store.delete(stored.id)

    steps = (write_and_read, write_and_read, store.sweep, lambda: store.sweep(clock.now + 1))
    threads = [threading.Thread(target=work, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    store.sweep(clock.now + 700.0)
    assert failures == []
    assert remains(store) == []
