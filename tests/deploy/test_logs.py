"""Log files of child processes."""

from __future__ import annotations

from pathlib import Path

from deploy.local.logs import LogFile


def test_lines_come_whole_however_they_were_cut(tmp_path: Path) -> None:
    with LogFile(tmp_path / "x.log") as log:
        assert log.write(b"one\ntw") == ["one"]
        assert log.write(b"o") == []
        assert log.write(b"\r\n\nthr") == ["two", ""]
        assert log.write(b"ee") == []
    assert (tmp_path / "x.log").read_text() == "one\ntwo\n\nthree\n"
    assert list(log.tail) == ["one", "two", "", "three"]


def test_a_line_without_end_is_cut_and_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    with LogFile(tmp_path / "x.log") as log:
        assert log.write(b"y" * 70_000) == ["y" * 70_000]
        assert log.write(b"\xff\n") == ["\ufffd"]


def test_a_full_file_is_set_aside_and_the_one_before_dropped(tmp_path: Path) -> None:
    with LogFile(tmp_path / "x.log", limit_bytes=100) as log:
        for number in range(30):
            log.write(f"line {number:02d}\n".encode())
    kept = (tmp_path / "x.log.1").read_text() + (tmp_path / "x.log").read_text()
    assert kept.splitlines() == [f"line {number:02d}" for number in range(13, 30)]
    assert (tmp_path / "x.log.1").stat().st_size <= 108
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.log", "x.log.1"]


def test_it_goes_on_where_the_last_run_ended_and_is_private(tmp_path: Path) -> None:
    for text in (b"first\n", b"second\n"):
        with LogFile(tmp_path / "log/x.log") as log:
            log.write(text)
    assert (tmp_path / "log/x.log").read_text() == "first\nsecond\n"
    assert (tmp_path / "log/x.log").stat().st_mode & 0o777 == 0o600
