from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import multiprocessing
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.custody import audit as audit_module
from gateway.custody import trail
from gateway.custody.audit import AuditTrail
from gateway.custody.trail import Checkpoint, verify
from shared.problems import AuditUnavailable
from shared.secretbytes import SecretBytes
from tests.gateway.custody.support import Clock

pytestmark = pytest.mark.anyio
KEY = bytes(range(32))
VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "ifadit" / "key_custody_vectors.json").read_text()
)


def key() -> SecretBytes:
    return SecretBytes(KEY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def audit(folder: Path, clock: Clock) -> AuditTrail:
    return AuditTrail(folder, key(), now=clock)


async def written(audit: AuditTrail, count: int) -> None:
    for number in range(count):
        await audit.append("key.create", tenant="acme", key_id=f"key_{number}", decision="done")


def only_file(folder: Path) -> Path:
    [path] = trail.day_files(folder)
    return path


def inode(path: Path) -> int:
    return path.stat().st_ino


def lines_of(folder: Path) -> list[bytes]:
    return only_file(folder).read_bytes().splitlines(keepends=True)


class TestTheChain:
    def test_the_published_vectors_verify(self, folder: Path) -> None:
        folder.mkdir()
        chain = [(entry["event"], entry["mac_hex"]) for entry in VECTORS["audit_chain"]]
        (folder / "2025-01-01.jsonl").write_text("".join(f"{event}\t{mac}\n" for event, mac in chain))
        verdict = verify(folder, SecretBytes(bytes.fromhex(VECTORS["audit_key_hex"])))
        assert (verdict.count, verdict.first_bad) == (len(chain), None)

    async def test_entries_are_numbered_from_zero_and_verify(self, audit: AuditTrail, folder: Path) -> None:
        assert [await audit.append("key.rotate", tenant="acme") for _ in range(3)] == [0, 1, 2]
        assert verify(folder, key()).first_bad is None

    async def test_it_goes_on_over_days_and_restarts(self, audit: AuditTrail, folder: Path, clock: Clock) -> None:
        await written(audit, 2)
        clock.advance(24 * 3600)
        await written(audit, 2)
        clock.advance(24 * 3600)
        await written(AuditTrail(folder, key(), now=clock), 2)
        assert len(trail.day_files(folder)) == 3
        assert (verify(folder, key()).count, verify(folder, key()).first_bad) == (6, None)

    async def test_a_clock_that_goes_back_does_not_break_it(
        self, audit: AuditTrail, folder: Path, clock: Clock
    ) -> None:
        await written(audit, 2)
        clock.advance(-48 * 3600)
        await written(audit, 2)
        assert verify(folder, key()).first_bad is None

    def test_several_processes_write_one_chain(self, folder: Path) -> None:
        context = multiprocessing.get_context("fork")  # nothing of this process runs yet that a fork could break
        processes = [context.Process(target=write_in_a_process, args=(folder, 20)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert (verify(folder, key()).count, verify(folder, key()).first_bad) == (60, None)

    async def test_concurrent_writers_of_one_process_write_one_chain(self, audit: AuditTrail, folder: Path) -> None:
        numbers = await asyncio.gather(*(audit.append("key.create", tenant="acme") for _ in range(40)))
        assert sorted(numbers) == list(range(40))
        assert verify(folder, key()).first_bad is None

    async def test_an_entry_says_only_what_is_on_the_list(self, audit: AuditTrail, folder: Path) -> None:
        with pytest.raises(TypeError, match="octets"):
            await audit.append("key.create", octets="00")
        assert trail.day_files(folder) == []


class TestBeforeActing:
    async def test_it_is_on_disk_when_append_returns(
        self, audit: AuditTrail, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[int] = []
        real = os.fsync

        def fsync(descriptor: int) -> None:
            real(descriptor)
            synced.append(os.fstat(descriptor).st_ino)

        monkeypatch.setattr(os, "fsync", fsync)
        await audit.append("key.create", tenant="acme")
        assert inode(only_file(folder)) in synced
        assert inode(folder) in synced, "the folder's entry of a new file is synced too"
        synced.clear()
        await audit.append("key.create", tenant="acme")
        assert inode(only_file(folder)) in synced

    async def test_where_it_cannot_be_written_it_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(AuditUnavailable):
            await AuditTrail(tmp_path / "file", key()).append("key.create", tenant="acme")

    async def test_a_failed_fsync_is_a_failure(self, audit: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        def fsync(descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(AuditUnavailable):
            await audit.append("key.create", tenant="acme")

    async def test_a_lock_that_is_never_given_back_is_a_failure(
        self, audit: AuditTrail, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(audit_module, "_LOCK_WITHIN_S", 0.05)
        await written(audit, 1)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(AuditUnavailable):
                await audit.append("key.create", tenant="acme")


class TestTampering:
    @pytest.mark.parametrize("bad", [0, 3, 6])
    async def test_an_edited_entry_is_named(self, audit: AuditTrail, folder: Path, bad: int) -> None:
        await written(audit, 7)
        lines = lines_of(folder)
        lines[bad] = lines[bad].replace(f"key_{bad}".encode(), b"key_9")
        only_file(folder).write_bytes(b"".join(lines))
        assert verify(folder, key()).first_bad == bad

    @pytest.mark.parametrize("bad", [0, 3, 5])
    async def test_two_swapped_entries_are_named_by_the_first(self, audit: AuditTrail, folder: Path, bad: int) -> None:
        await written(audit, 7)
        lines = lines_of(folder)
        lines[bad], lines[bad + 1] = lines[bad + 1], lines[bad]
        only_file(folder).write_bytes(b"".join(lines))
        assert verify(folder, key()).first_bad == bad

    @pytest.mark.parametrize("bad", [0, 3, 5])
    async def test_a_missing_entry_is_named(self, audit: AuditTrail, folder: Path, bad: int) -> None:
        await written(audit, 7)
        lines = lines_of(folder)
        del lines[bad]
        only_file(folder).write_bytes(b"".join(lines))
        assert verify(folder, key()).first_bad == bad

    async def test_an_entry_made_with_another_key_is_named(self, audit: AuditTrail, folder: Path, clock: Clock) -> None:
        await written(audit, 3)
        head = await audit.head()
        forger = AuditTrail(folder, SecretBytes(bytes(32)), now=clock)
        forger._head = head
        await written(forger, 1)
        assert verify(folder, key()).first_bad == 3

    async def test_garbage_between_entries_is_named(self, audit: AuditTrail, folder: Path) -> None:
        await written(audit, 4)
        lines = lines_of(folder)
        only_file(folder).write_bytes(b"".join([*lines[:2], b"garbage\n", *lines[2:]]))
        assert verify(folder, key()).first_bad == 2

    async def test_a_tail_that_was_cut_off_is_found_by_a_checkpoint(self, audit: AuditTrail, folder: Path) -> None:
        await written(audit, 5)
        head = await audit.head()
        only_file(folder).write_bytes(b"".join(lines_of(folder)[:-2]))
        assert verify(folder, key()).first_bad is None, "the chain alone cannot know"
        assert verify(folder, key(), [Checkpoint(head.seq, head.mac.hex())]).first_bad == 3

    async def test_a_chain_written_anew_by_whoever_has_its_key_is_found_by_a_checkpoint(
        self, audit: AuditTrail, folder: Path, clock: Clock
    ) -> None:
        await written(audit, 3)
        head = await audit.head()
        only_file(folder).unlink()
        forger = AuditTrail(folder, key(), now=clock)
        for _ in range(3):
            await forger.append("key.create", tenant="acme", key_id="another")
        assert verify(folder, key(), [Checkpoint(head.seq, head.mac.hex())]).first_bad == 2

    async def test_nothing_is_written_after_an_entry_that_does_not_verify(
        self, audit: AuditTrail, folder: Path, clock: Clock
    ) -> None:
        await written(audit, 3)
        only_file(folder).write_bytes(only_file(folder).read_bytes().replace(b"key_2", b"key_1"))
        with pytest.raises(AuditUnavailable):
            await AuditTrail(folder, key(), now=clock).append("key.create", tenant="acme")

    @pytest.mark.parametrize("what", ["cut", "emptied", "removed"])
    async def test_a_running_process_notices_that_its_trail_got_shorter(
        self, audit: AuditTrail, folder: Path, what: str
    ) -> None:
        await written(audit, 3)
        path = only_file(folder)
        if what == "removed":
            path.unlink()
        else:
            path.write_bytes(b"".join(lines_of(folder)[:-1]) if what == "cut" else b"")
        with pytest.raises(AuditUnavailable):
            await audit.append("key.create", tenant="acme")


class TestADyingWriter:
    @pytest.mark.parametrize("kept", [1, 40, -66, -2])
    async def test_what_it_left_is_closed_and_told_of(
        self, audit: AuditTrail, folder: Path, clock: Clock, kept: int
    ) -> None:
        await written(audit, 3)
        lines = lines_of(folder)
        torn = lines[2][:kept]
        only_file(folder).write_bytes(b"".join(lines[:2]) + torn)
        await written(AuditTrail(folder, key(), now=clock), 2)
        assert (verify(folder, key()).count, verify(folder, key()).first_bad) == (5, None)
        told = json.loads(lines_of(folder)[3].partition(b"\t")[0])
        assert (told["action"], told["digest"]) == ("audit.torn", hashlib.sha256(torn).hexdigest())

    async def test_a_line_that_lacks_only_its_end_counts(self, audit: AuditTrail, folder: Path, clock: Clock) -> None:
        await written(audit, 3)
        only_file(folder).write_bytes(only_file(folder).read_bytes()[:-1])
        assert await AuditTrail(folder, key(), now=clock).append("key.create", tenant="acme") == 3
        assert (verify(folder, key()).count, verify(folder, key()).first_bad) == (4, None)

    @pytest.mark.parametrize("kept", [-1, -20])
    async def test_a_file_of_the_next_day_may_be_empty(
        self, audit: AuditTrail, folder: Path, clock: Clock, kept: int
    ) -> None:
        await written(audit, 3)
        only_file(folder).write_bytes(only_file(folder).read_bytes()[:kept])
        clock.advance(24 * 3600)
        tomorrow = datetime.fromtimestamp(clock(), UTC)
        (folder / f"{tomorrow:%Y-%m-%d}.jsonl").touch()
        await written(AuditTrail(folder, key(), now=clock), 2)
        assert (verify(folder, key()).count, verify(folder, key()).first_bad) == (5, None)

    async def test_the_very_first_line_may_be_torn(self, audit: AuditTrail, folder: Path, clock: Clock) -> None:
        await written(audit, 1)
        only_file(folder).write_bytes(only_file(folder).read_bytes()[:30])
        await written(AuditTrail(folder, key(), now=clock), 1)
        assert verify(folder, key()).first_bad is None

    async def test_a_torn_line_whose_notice_is_gone_is_named(
        self, audit: AuditTrail, folder: Path, clock: Clock
    ) -> None:
        await written(audit, 3)
        only_file(folder).write_bytes(only_file(folder).read_bytes()[:-20])
        await written(AuditTrail(folder, key(), now=clock), 1)
        lines = lines_of(folder)
        only_file(folder).write_bytes(b"".join([*lines[:2], b"{}\n", *lines[3:]]))
        assert verify(folder, key()).first_bad == 2


class TestReading:
    async def test_pages_hold_one_tenants_entries(self, audit: AuditTrail, folder: Path, clock: Clock) -> None:
        for number in range(12):
            await audit.append("key.create", tenant="acme" if number % 3 else "other")
            clock.advance(6 * 3600)
        first = trail.read(folder, -1, 5, "acme")
        rest = trail.read(folder, first[-1].seq, 100, "acme")
        assert [entry.seq for entry in [*first, *rest]] == [1, 2, 4, 5, 7, 8, 10, 11]
        assert trail.read(folder, 11, 5, "acme") == []

    def test_no_trail_has_no_entries(self, folder: Path) -> None:
        assert trail.read(folder, -1, 5, "acme") == []


def write_in_a_process(folder: Path, count: int) -> None:
    asyncio.run(written(AuditTrail(folder, key()), count))
