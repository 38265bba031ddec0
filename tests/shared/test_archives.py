from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.archives import Archive, open_archive, safe_path
from shared.problems import ArchiveUnsafe, BodyTooLarge

FILES = {"cat/1.png": b"first", "cat/2.png": b"", "dog/1.png": bytes(range(256)) * 500}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, **fields: Any) -> bytes:
    """A zip; `fields` are set on every entry."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.writestr(info, data, method)
    return out.getvalue()


def tarred(files: dict[str, bytes], format: int = tarfile.PAX_FORMAT, **fields: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tar_gz(files: dict[str, bytes]) -> bytes:
    return gzip.compress(tarred(files))


PACKERS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "zip": zipped,
    "zip-stored": lambda files: zipped(files, zipfile.ZIP_STORED),
    "tar": tarred,
    "tar-gnu": lambda files: tarred(files, tarfile.GNU_FORMAT),
    "tar.gz": tar_gz,
}


@pytest.fixture(params=PACKERS)
def pack(request: pytest.FixtureRequest) -> Callable[[dict[str, bytes]], bytes]:
    return PACKERS[request.param]


def opened(data: bytes, **limits: Any) -> Archive:
    return open_archive(io.BytesIO(data), **limits)


class TestReading:
    def test_files_are_read_in_any_order_and_again(self, pack: Callable[[dict[str, bytes]], bytes]) -> None:
        with opened(pack(FILES)) as archive:
            assert archive.paths == tuple(FILES)
            for path in (*reversed(FILES), *FILES):
                assert archive.read(path) == FILES[path]
                assert archive.size(path) == len(FILES[path])

    @settings(max_examples=25, deadline=None)
    @given(
        kind=st.sampled_from(sorted(PACKERS)),
        files=st.dictionaries(
            st.from_regex(r"[a-zé医 ]{1,20}(/[a-z0-9_-]{1,120}){0,3}\.png", fullmatch=True),
            st.binary(max_size=3000),
            min_size=1,
            max_size=8,
        ),
    )
    def test_whatever_is_packed_is_read(self, kind: str, files: dict[str, bytes]) -> None:
        with opened(PACKERS[kind](files)) as archive:
            assert {path: archive.read(path) for path in archive.paths} == {safe_path(n): d for n, d in files.items()}

    def test_folders_and_hidden_files_are_left_out(self, pack: Callable[[dict[str, bytes]], bytes]) -> None:
        files = {".DS_Store": b"x", "__MACOSX/cat/._1.png": b"x", "cat/.hidden/1.png": b"x", "./cat/1.png": b"y"}
        with opened(pack(files)) as archive:
            assert archive.paths == ("cat/1.png",)
            with pytest.raises(KeyError):
                archive.read(".DS_Store")

    def test_entries_of_folders_are_no_files(self) -> None:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.mkdir("cat")
            archive.writestr("cat/1.png", b"x")
        assert opened(out.getvalue()).paths == ("cat/1.png",)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            folder = tarfile.TarInfo(".")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            tar.addfile(tarfile.TarInfo("./1.png"))
        assert opened(out.getvalue()).paths == ("1.png",)

    def test_names_come_in_one_form_of_unicode(self, pack: Callable[[dict[str, bytes]], bytes]) -> None:
        assert opened(pack({"caf\u0065\u0301.png": b"x"})).paths == ("caf\u00e9.png",)

    def test_a_file_larger_than_asked_for_is_that_files_problem(
        self, pack: Callable[[dict[str, bytes]], bytes]
    ) -> None:
        with opened(pack(FILES)) as archive:
            with pytest.raises(BodyTooLarge) as refusal:
                archive.read("dog/1.png", limit_bytes=127_999)
            assert refusal.value.extras == {"limit_bytes": 127_999}
            assert archive.read("dog/1.png", limit_bytes=128_000) == FILES["dog/1.png"]

    def test_threads_read_at_once(self, pack: Callable[[dict[str, bytes]], bytes]) -> None:
        files = {f"{i}.png": os.urandom(50_000) for i in range(20)}
        wrong: list[str] = []
        with opened(pack(files)) as archive:

            def work() -> None:
                wrong.extend(path for path in archive.paths if archive.read(path) != files[path])

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert wrong == []

    def test_closing_it_leaves_the_stream_open(self, pack: Callable[[dict[str, bytes]], bytes]) -> None:
        stream = io.BytesIO(pack(FILES))
        open_archive(stream).close()
        assert not stream.closed

    def test_an_unpacked_archive_is_never_plain_on_the_disk(self, tmp_path: Path) -> None:
        files = {"1.png": b"FACE" * 5_000_000}
        code = (
            "import sys; from pathlib import Path; from shared.archives import open_archive\n"
            "archive = open_archive(open(sys.argv[1], 'rb'), scratch=Path(sys.argv[2]))\n"
            "places = [p for p in map(Path('/proc/self/fd').joinpath, '3456789') if p.is_symlink()]\n"
            "places = [p for p in places if str(p.readlink()).startswith(sys.argv[2])]\n"
            "plain = b'FACEFACE' in b''.join(place.read_bytes() for place in places)\n"
            "whole = archive.read('1.png') == b'FACE' * 5_000_000\n"
            "print(len(places), plain, whole, list(Path(sys.argv[2]).iterdir()))"
        )
        source, scratch = tmp_path / "a.tar.gz", tmp_path / "scratch"
        source.write_bytes(tar_gz(files))
        scratch.mkdir()
        assert script(code, source, scratch) == "1 False True []\n"


class TestRefusals:
    @pytest.mark.parametrize(
        "name",
        [
            "../1.png",
            "a/../../1.png",
            "/etc/passwd",
            "a//b.png",
            "a/./b.png",
            "C:/1.png",
            "c:1.png",
            "a\\..\\b.png",
            "a\n.png",
            "a/" * 600 + "b",
        ],
    )
    def test_a_path_that_leads_elsewhere(self, name: str) -> None:
        for packer in (zipped, tarred, tar_gz):
            with pytest.raises(ArchiveUnsafe, match=r"path|entries"):
                opened(packer({"1.png": b"x", name: b"x"}))

    def test_a_name_that_hides_another_behind_a_zero(self) -> None:
        data = zipped({"a.png_../../b": b"x"}).replace(b"a.png_", b"a.png\0")
        with pytest.raises(ArchiveUnsafe, match="path"):
            opened(data)

    def test_a_name_that_is_no_text(self) -> None:
        with pytest.raises(ArchiveUnsafe, match="path"):
            opened(tarred({"a\udcff.png": b"x"}))

    def test_a_name_that_comes_twice(self) -> None:
        twice = zipped({"1.png": b"x", "2.png": b"y"}).replace(b"2.png", b"1.png")
        for data in (twice, zipped({"1.png": b"x", "./1.png": b"y"}), tarred({"é": b"x", "e\u0301": b"y"})):
            with pytest.raises(ArchiveUnsafe, match="twice"):
                opened(data)

    @pytest.mark.parametrize(
        "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    )
    def test_links_and_devices_in_a_tar(self, kind: bytes) -> None:
        data = tarred({"link": b""}, type=kind, linkname="/etc/passwd")
        for packed in (data, gzip.compress(data)):
            with pytest.raises(ArchiveUnsafe, match="no plain file"):
                opened(packed)

    @pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
    def test_links_and_devices_in_a_zip(self, kind: int) -> None:
        with pytest.raises(ArchiveUnsafe, match="no plain file"):
            opened(zipped({"link": b"/etc/passwd"}, external_attr=(kind | 0o777) << 16))

    def test_holes_in_a_tar(self) -> None:
        with pytest.raises(ArchiveUnsafe):
            opened(tarred({"sparse": b""}, type=tarfile.GNUTYPE_SPARSE))
        holes = {"GNU.sparse.map": "0,1,4294967295,1", "GNU.sparse.size": "4294967296"}
        with pytest.raises(ArchiveUnsafe, match="no plain file"):
            opened(tarred({"sparse": b"xx"}, pax_headers=holes))

    def test_encryption(self) -> None:
        data = bytearray(zipped({"1.png": b"x"}))
        data[data.index(b"PK\1\2") + 8] |= 1
        with pytest.raises(ArchiveUnsafe, match="encrypted"):
            opened(bytes(data))

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_other_methods_of_packing(self, method: int) -> None:
        with pytest.raises(ArchiveUnsafe, match="packed by method"):
            opened(zipped({"1.png": b"x"}, method))

    def test_too_many_files(self, pack: Callable[[dict[str, bytes]], bytes]) -> None:
        data = pack({f"{i}.png": b"" for i in range(11)})
        assert len(opened(data, file_limit=11).paths) == 11
        with pytest.raises(ArchiveUnsafe, match="more than 10 files"):
            opened(data, file_limit=10)

    def test_too_many_bytes(self, pack: Callable[[dict[str, bytes]], bytes]) -> None:
        data = pack({"1.png": bytes(5000), ".hidden": bytes(5000)})
        assert opened(data, bytes_limit=10_000).paths == ("1.png",)
        with pytest.raises(ArchiveUnsafe, match="more than 9999 bytes"):
            opened(data, bytes_limit=9_999)

    def test_too_many_folders(self) -> None:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for i in range(21):
                folder = tarfile.TarInfo(f"d{i}")
                folder.type = tarfile.DIRTYPE
                archive.addfile(folder)
        with pytest.raises(ArchiveUnsafe, match="more than 20 entries"):
            opened(out.getvalue(), file_limit=10)

    @pytest.mark.parametrize(
        "data", [b"", b"x", b"hello" * 200, bytes(10_240), b"7z\xbc\xaf\x27\x1c" + bytes(600), b"PK\5\6" + bytes(18)]
    )
    def test_what_is_no_archive_or_empty(self, data: bytes) -> None:
        with pytest.raises(ArchiveUnsafe):
            opened(data)
        with pytest.raises(ArchiveUnsafe):
            opened(gzip.compress(data))

    def test_only_hidden_files(self, pack: Callable[[dict[str, bytes]], bytes]) -> None:
        with pytest.raises(ArchiveUnsafe, match="no files"):
            opened(pack({".DS_Store": b"x"}))


class TestBombs:
    def test_a_gzip_bomb_stops_at_the_limit(self) -> None:
        bomb = gzip.compress(bytes(50_000_000), 9)
        tracemalloc.start()
        try:
            with pytest.raises(ArchiveUnsafe, match="unpacked"):
                opened(bomb, bytes_limit=5_000_000, file_limit=10)
            assert tracemalloc.get_traced_memory()[1] < 25_000_000
        finally:
            tracemalloc.stop()

    def test_a_zip_entry_that_lies_about_its_size_does_not_fill_memory(self) -> None:
        data = bytearray(zipped({"1.png": bytes(100_000_000)}))
        place = data.index(b"PK\1\2")
        data[place + 24 : place + 28] = struct.pack("<I", 1000)
        tracemalloc.start()
        try:
            archive = opened(bytes(data))
            with pytest.raises(ArchiveUnsafe):
                archive.read("1.png")
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()

    def test_a_zip_that_lies_about_all_sizes_is_refused_at_once(self) -> None:
        data = bytearray(zipped({"1.png": b"x"}))
        place = data.index(b"PK\1\2")
        data[place + 24 : place + 28] = struct.pack("<I", 2**32 - 2)
        with pytest.raises(ArchiveUnsafe, match="bytes unpacked"):
            opened(bytes(data), bytes_limit=2**32 - 3)

    def test_a_directory_of_endless_entries_is_not_read_into_memory(self) -> None:
        entry = zipped({"a": b""})
        start = entry.index(b"PK\1\2")
        central = entry[start : entry.index(b"PK\5\6")]
        directory = central * (34 * 2**20 // len(central))
        end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 65_535, 65_535, len(directory), start, 0)
        data = entry[:start] + directory + end
        tracemalloc.start()
        try:
            with pytest.raises(ArchiveUnsafe, match="a part of it has"):
                opened(data)
            assert tracemalloc.get_traced_memory()[1] < 2 * len(data)
        finally:
            tracemalloc.stop()

    def test_a_tar_header_that_announces_gigabytes_is_not_read_into_memory(self) -> None:
        data = bytearray(tarred({"1.png": b"x"}, pax_headers={"comment": "x" * 1000}))
        data[124:136] = b"%011o\0" % (2**32 - 1)
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
        with pytest.raises(ArchiveUnsafe, match="a part of it has"):
            opened(bytes(data))

    def test_headers_upon_headers_end(self) -> None:
        long_name = tarfile.TarInfo("././@LongLink")
        long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 512
        block = long_name.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")
        with pytest.raises(ArchiveUnsafe):
            opened(block * 5000 + tarred({"1.png": b"x"}))


class TestDamage:
    def test_a_damaged_file_in_a_sound_zip_is_that_files_problem(self) -> None:
        data = bytearray(zipped({"1.png": b"first" * 100, "2.png": b"second"}, zipfile.ZIP_STORED))
        data[data.index(b"firstfirst") + 7] ^= 1
        with opened(bytes(data)) as archive:
            with pytest.raises(ArchiveUnsafe, match=r"1\.png"):
                archive.read("1.png")
            assert archive.read("2.png") == b"second"

    def test_no_cut_goes_unnoticed(self, pack: Callable[[dict[str, bytes]], bytes]) -> None:
        data = pack({"1.png": b"first" * 300, "2.png": b"second" * 300})
        end = len(data.rstrip(b"\0")) + 512 if data.endswith(bytes(1024)) else len(data)
        for length in range(0, min(end, len(data)) - 1, 7):
            with pytest.raises(ArchiveUnsafe):
                opened(data[:length])

    def test_damage_between_the_files_of_a_tar_is_not_its_end(self) -> None:
        data = bytearray(tarred({"1.png": b"x", "2.png": b"y", "3.png": b"z"}))
        data[1024 + 150] ^= 0xFF
        with pytest.raises(ArchiveUnsafe, match="damaged or cut off behind 1"):
            opened(bytes(data))

    @settings(max_examples=250, deadline=None)
    @given(kind=st.sampled_from(sorted(PACKERS)), data=st.data())
    def test_whatever_is_damaged_the_answer_is_an_archive_or_a_problem(self, kind: str, data: st.DataObject) -> None:
        damaged = bytearray(PACKERS[kind]({"cat/1.png": b"first" * 30, "dog/2.png": b"second"}))
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(damaged) - 1))
            damaged[place] = data.draw(st.sampled_from((0, 1, 0x2F, 0x7F, 0x80, 0xFF, damaged[place] ^ 1)))
        with contextlib.suppress(ArchiveUnsafe), opened(bytes(damaged)) as archive:
            for path in archive.paths:
                with contextlib.suppress(ArchiveUnsafe, BodyTooLarge):
                    archive.read(path)


def test_no_room_to_unpack_is_a_problem_of_the_service(tmp_path: Path) -> None:
    source = tmp_path / "a.tar.gz"
    source.write_bytes(tar_gz({"1.png": os.urandom(20_000_000)}))
    code = (
        "import resource, sys; from pathlib import Path; from shared.archives import open_archive\n"
        "from shared.problems import ServiceUnavailable\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000))\n"
        "try:\n    open_archive(open(sys.argv[1], 'rb'), scratch=Path(sys.argv[2]))\n"
        "except ServiceUnavailable as problem:\n    print(problem.detail)"
    )
    assert script(code, source, tmp_path) == "There is no room to unpack the archive: File too large.\n"
    assert list(tmp_path.iterdir()) == [source]


def script(code: str, *args: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return done.stdout
