"""What is true of the folder only: names and times on disk, full disks, killed writers."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.ids import ordered_id
from shared.localfiles import ABANDONED_AFTER_S, LocalFiles
from shared.problems import ServiceUnavailable, StoredFileNotFound
from tests.shared.stores import ACME, KEY, LEASED, Clock, put


def remains(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_no_plain_byte_reaches_the_disk_and_no_name(tmp_path: Path) -> None:
    store = LocalFiles(tmp_path)
    face = b"FACE" * 100_000
    with store.create(LEASED, "image/png", 60.0, key=KEY, name="Jane Doe.png") as writer:
        writer.write(face)
        unfinished = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert writer.commit().name is None
    finished = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert len(unfinished) > 300_000
    assert b"FACEFACE" not in unfinished + finished
    assert b"Jane" not in finished


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "file_secret.json"
    outside.write_text("{}")
    LocalFiles(tmp_path / "files").delete("../file_secret")
    assert outside.exists()


def test_a_sweep_takes_half_written_files_without_a_writer(tmp_path: Path) -> None:
    store = LocalFiles(tmp_path)
    kept = put(store, ttl_s=1e9)
    abandoned = store.create(ACME, "image/png", 60.0)
    abandoned.write(b"half")
    orphan = put(store, ttl_s=1e9)  # as after a crash between the two renames
    next(tmp_path.rglob(f"{orphan.id}.json")).unlink()
    assert store.sweep() == 0
    assert store.sweep(time.time() + ABANDONED_AFTER_S + 10) == 2
    assert remains(tmp_path) == [kept.id, f"{kept.id}.json"]
    with pytest.raises(ServiceUnavailable):
        abandoned.commit()


def test_a_sweep_of_ten_thousand_files_opens_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tmp_path / "description"
    one.touch()
    os.utime(one, (4e9, 4e9))
    for _ in range(10_000):
        name = ordered_id("file")
        folder = tmp_path / name[-2:]
        folder.mkdir(exist_ok=True)
        for path in (folder / name, folder / f"{name}.json"):
            os.link(one, path)
    store = LocalFiles(tmp_path)
    opened: list[object] = []
    monkeypatch.setattr(os, "open", lambda *args, **_: opened.append(args))
    monkeypatch.setattr(Path, "open", lambda *args, **_: opened.append(args))
    started = time.process_time()
    assert store.sweep() == 0
    assert time.process_time() - started < 2.0  # measured: 0.1 s
    assert opened == []


WRITE_FOREVER = """
import sys
from pathlib import Path
from shared.files import Owner
from shared.localfiles import LocalFiles

store = LocalFiles(Path(sys.argv[1]))
while True:
    with store.create(Owner("acme"), "image/png", 1e9) as writer:
        for _ in range(8):
            writer.write(writer.id.encode() * 500)
        sys.stdout.write(writer.commit().id + chr(10))
        sys.stdout.flush()
"""

FILL_THE_DISK = """
import resource, sys
from pathlib import Path
from shared.files import Owner
from shared.localfiles import LocalFiles
from shared.problems import ServiceUnavailable

limit, pieces, leased = (int(arg) for arg in sys.argv[2:])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
store = LocalFiles(Path(sys.argv[1]))
owner = Owner("acme", lease="lease_1") if leased else Owner("acme")
try:
    with store.create(owner, "image/png", 1e9, key=bytes(32) if leased else None) as writer:
        for _ in range(pieces):
            writer.write(bytes(100_000))
        writer.commit()
except ServiceUnavailable as problem:
    sys.stdout.write(f"{problem.status}: {problem.detail}")
"""

COMMIT_AFTER_A_FAILURE = """
import contextlib, resource, sys
from pathlib import Path
from shared.files import Owner
from shared.localfiles import LocalFiles
from shared.problems import ServiceUnavailable

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with LocalFiles(Path(sys.argv[1])).create(Owner("acme"), "image/png", 1e9) as writer:
    with contextlib.suppress(ServiceUnavailable):
        writer.write(bytes(1500))
    try:
        writer.commit()
    except ValueError as error:
        sys.stdout.write(str(error))
"""


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from shared.files import Owner
from shared.localfiles import LocalFiles
from shared.problems import ServiceUnavailable, StorageFull

folder = Path(sys.argv[1])
store = LocalFiles(folder)

def put(count):
    with store.create(Owner("acme"), "image/png", 1e9) as writer:
        for _ in range(count):
            writer.write(bytes(100_000))
        return writer.commit()

def lying():
    return sorted(path.name for path in folder.rglob("*") if path.is_file())

first = put(8)
before = lying()
for _ in range(3):
    try:
        put(8)
    except StorageFull as problem:
        assert problem.status == 507 and problem.retry_after_s, problem.body()
        assert "No space left on device" in problem.detail
    else:
        raise SystemExit("eight more fit")
    assert lying() == before
small = []
try:
    while True:
        small.append(put(1))
except StorageFull:
    pass
(folder / "filler").write_bytes(bytes(0))
try:
    with (folder / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
except OSError:
    pass
try:
    store.check()
except StorageFull:
    sys.stdout.write("not ready, ")
with store.open(first.id) as reader:
    assert reader.read() == bytes(800_000)
store.delete(first.id)
for stored in small:
    store.delete(stored.id)
store.check()
put(8)
sys.stdout.write("works again")
"""


def script(code: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


class TestFaults:
    def test_a_killed_writer_leaves_whole_files_and_nothing_that_looks_like_one(self, tmp_path: Path) -> None:
        store = LocalFiles(tmp_path)
        announced: list[str] = []
        for delay_s in (0.0, 0.0037, 0.0071, 0.0113):
            process = script(WRITE_FOREVER, tmp_path)
            assert process.stdout is not None
            announced += [process.stdout.readline().strip() for _ in range(5)]
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
            announced += process.stdout.read().split()
            process.stdout.close()
            process.wait()
        described = {path.stem for path in tmp_path.rglob("*.json")}
        assert described >= set(announced)
        for name in described:
            with store.open(name) as reader:
                assert reader.read() == name.encode() * 4000
        store.sweep(time.time() + ABANDONED_AFTER_S + 10)
        assert set(remains(tmp_path)) == described | {f"{name}.json" for name in described}

    def test_a_full_disk_keeps_what_it_has_and_takes_more_once_there_is_room(self, tmp_path: Path) -> None:
        unshare = ["unshare", "--user", "--map-root-user", "--mount"]
        if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
            pytest.skip("this system lets nobody mount a small disk")
        mounted = 'mount -t tmpfs -o size=1m none "$0" && exec "$1" -c "$2" "$0"'
        done = subprocess.run(
            [*unshare, "sh", "-c", mounted, tmp_path, sys.executable, ON_A_SMALL_DISK],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert (done.stdout, done.stderr) == ("not ready, works again", "")

    @pytest.mark.parametrize("leased", [0, 1])
    def test_a_full_disk_is_a_problem_of_the_service_and_leaves_nothing(self, tmp_path: Path, leased: int) -> None:
        process = script(FILL_THE_DISK, tmp_path, 250_000, 4, leased)
        said, _ = process.communicate(timeout=60)
        assert "507: The file store cannot be written: File too large" in said
        assert remains(tmp_path) == []

    def test_a_disk_that_fills_up_at_the_description_leaves_nothing(self, tmp_path: Path) -> None:
        process = script(FILL_THE_DISK, tmp_path, 50, 0, 0)
        said, _ = process.communicate(timeout=60)
        assert "507: The file store cannot be written: File too large" in said
        assert remains(tmp_path) == []

    def test_a_writer_that_failed_cannot_commit_what_is_left(self, tmp_path: Path) -> None:
        process = script(COMMIT_AFTER_A_FAILURE, tmp_path)
        said, _ = process.communicate(timeout=60)
        assert said.endswith("is closed")
        assert remains(tmp_path) == []

    def test_a_folder_that_cannot_be_made_is_a_problem_of_the_service(self, tmp_path: Path) -> None:
        (tmp_path / "files").write_text("in the way")
        store = LocalFiles(tmp_path / "files")
        with pytest.raises(ServiceUnavailable):
            store.create(ACME, "image/png", 60.0)
        with pytest.raises(ServiceUnavailable):
            store.stat(ordered_id("file"))

    def test_a_file_deleted_while_it_is_extended_does_not_come_back(self, tmp_path: Path, clock: Clock) -> None:
        store = LocalFiles(tmp_path, clock)
        stored = put(store)
        (path,) = tmp_path.rglob(stored.id)
        path.unlink()  # the second half of a delete, whose first half came just after extend had read
        with pytest.raises(StoredFileNotFound):
            store.extend(stored.id, 600.0)
        assert remains(tmp_path) == []

    def test_writers_readers_and_sweeps_at_once_harm_each_other_nowhere(self, tmp_path: Path) -> None:
        store = LocalFiles(tmp_path)
        failures: list[BaseException] = []

        def work(step: Callable[[], object]) -> None:
            try:
                for _ in range(25):
                    step()
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        def write_and_read() -> None:
            stored = put(store, secrets.token_bytes(100), ttl_s=30.0)
            store.extend(stored.id, 60.0)
            store.open(stored.id).close()
            store.delete(stored.id)

        steps = (write_and_read, write_and_read, store.sweep, lambda: store.sweep(time.time() + 1))
        threads = [threading.Thread(target=work, args=(step,)) for step in steps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert remains(tmp_path) == []


def test_others_on_the_machine_cannot_read_the_folder(tmp_path: Path) -> None:
    store = LocalFiles(tmp_path / "files")
    put(store)
    for path in (tmp_path / "files").rglob("*"):
        assert path.stat().st_mode & 0o007 == 0
