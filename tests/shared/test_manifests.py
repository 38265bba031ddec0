from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.archives import open_archive
from shared.files import InMemoryFiles, Owner
from shared.manifests import Entry, entries_of
from shared.problems import ArchiveUnsafe, BodyTooLarge, ImageUnreadable, InvalidRequest
from shared.resultarchives import MEDIA_TYPE, ResultArchive

PICTURES = ("cat/1.png", "cat/2.png", "dog/1.png")


def entries(manifest: str | bytes | None, paths: tuple[str, ...] = PICTURES, place: str = "") -> list[Entry]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in paths:
            archive.writestr(path, b"x")
        if manifest is not None:
            archive.writestr(place + "manifest.jsonl", manifest)
    with open_archive(out) as opened:
        return entries_of(opened)


def row(**fields: Any) -> str:
    return json.dumps(fields, ensure_ascii=False)


class TestFolders:
    def test_without_a_manifest_the_folder_is_the_label(self) -> None:
        assert entries(None) == [
            Entry(0, "cat/1.png", {"path": "cat/1.png"}, label="cat"),
            Entry(1, "cat/2.png", {"path": "cat/2.png"}, label="cat"),
            Entry(2, "dog/1.png", {"path": "dog/1.png"}, label="dog"),
        ]

    def test_it_is_the_nearest_folder_and_at_the_top_there_is_none(self) -> None:
        found = entries(None, ("set/train/cat/1.png", "2.png"))
        assert [entry.label for entry in found] == ["cat", None]


class TestManifest:
    def test_a_line_says_what_a_sample_is(self) -> None:
        fields = {"label": "cat", "split": "train", "group": "A", "approach": "real", "id": "s-1"}
        (entry,) = entries(row(path="cat/1.png", **fields))
        assert entry == Entry(0, "s-1", {"path": "cat/1.png"}, "cat", "train", "A", "real")
        assert entry.path == "cat/1.png"

    def test_the_order_is_that_of_the_lines_and_a_file_may_come_again_or_not_at_all(self) -> None:
        found = entries("\n".join((row(path="dog/1.png"), "", row(path="cat/1.png"), row(path="dog/1.png"))))
        assert [(entry.index, entry.id, entry.path) for entry in found] == [
            (0, "dog/1.png", "dog/1.png"),
            (1, "cat/1.png", "cat/1.png"),
            (2, "dog/1.png", "dog/1.png"),
        ]

    def test_one_path_a_modality(self) -> None:
        (whole, half) = entries(
            f"{row(audio='cat/1.png', visual='cat/2.png', label=3)}\n{row(audio=None, visual='dog/1.png')}"
        )
        assert whole.paths == {"audio": "cat/1.png", "visual": "cat/2.png"}
        assert (whole.label, whole.id) == ("3", "cat/1.png")
        assert half.paths == {"audio": None, "visual": "dog/1.png"}
        assert half.id == "dog/1.png"
        with pytest.raises(InvalidRequest, match="audio, visual"):
            _ = whole.path

    def test_paths_start_where_the_manifest_lies(self) -> None:
        paths = ("set/cat/1.png", "set/cat/2.png")
        (entry,) = entries(row(path="./cat/2.png"), paths, place="set/")
        assert entry.path == "set/cat/2.png"
        found = entries(row(path="cat/2.png"), (*paths, "other/1.png"), place="set/")
        assert [entry.id for entry in found] == [*paths, "other/1.png", "set/manifest.jsonl"]

    def test_a_mark_at_the_start_and_ends_of_lines_from_elsewhere_do_not_matter(self) -> None:
        found = entries(
            b"\xef\xbb\xbf" + row(path="cat/1.png").encode() + b"\r\n" + row(path="cat/2.png").encode() + b"\r\n"
        )
        assert [entry.path for entry in found] == ["cat/1.png", "cat/2.png"]

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("{", "Expecting"),
            ("[]", "not a JSON object"),
            ("7", "not a JSON object"),
            ("[" * 100_000, "recursion"),
            (b"\xff\xfe", "decode"),
            (row(label="cat"), "names no file"),
            (row(path=None), "names no file"),
            (row(path="cat/9.png"), "no file 'cat/9.png'"),
            (row(path="../../etc/passwd"), "not accepted"),
            (row(path="/cat/1.png"), "not accepted"),
            (row(path=7), "not a path"),
            (row(path=["cat/1.png"]), "not a path"),
            (row(path="cat/1.png", lable="cat"), "also lable"),
            (row(path="cat/1.png", label=1.5), "label is 1.5"),
            (row(path="cat/1.png", label=True), "label is true"),
            (row(path="cat/1.png", split=["train"]), "split is"),
        ],
    )
    def test_a_wrong_line_is_its_own_problem(self, line: str | bytes, says: str) -> None:
        line = line if isinstance(line, bytes) else line.encode()
        before, wrong, after = entries(
            b"\n".join((row(path="cat/1.png").encode(), line, row(path="cat/2.png").encode()))
        )
        assert (before.error, after.error) == (None, None)
        assert (wrong.index, wrong.paths) == (1, {})
        assert isinstance(wrong.error, InvalidRequest)
        assert says in wrong.error.detail
        assert "Line 2 " in wrong.error.detail
        assert wrong.error.extras["errors"][0]["place"] == "manifest.jsonl:2"

    def test_a_wrong_line_with_an_id_is_found_by_it(self) -> None:
        (wrong,) = entries(row(id="s-7", path="nowhere.png"))
        assert wrong.id == "s-7"
        (wrong,) = entries("{")
        assert wrong.id == "line 1"

    def test_a_manifest_of_nothing_or_of_too_much_is_refused(self) -> None:
        with pytest.raises(ArchiveUnsafe, match="0 lines"):
            entries("\n\n")
        with pytest.raises(ArchiveUnsafe, match="20001 lines"):
            entries((row(path="cat/1.png") + "\n") * 20_001)
        with pytest.raises(BodyTooLarge):
            entries(b" " * (32 * 2**20 + 1))

    @settings(max_examples=60, deadline=None)
    @given(
        line=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(("path", "id", "label", "x")), inner)
            ),
            max_leaves=5,
        )
    )
    def test_any_json_is_an_entry_or_its_problem(self, line: Any) -> None:
        (entry,) = entries(json.dumps(line) + "\n ")
        assert (entry.error is None) == (isinstance(line, dict) and entry.paths != {})


class TestResults:
    def test_lines_come_in_the_order_of_the_input_whatever_was_finished_first(self) -> None:
        found = entries(
            "\n".join((row(path="cat/1.png", id="a"), row(audio="cat/2.png", visual=None), row(path="dog/1.png")))
        )
        out = io.BytesIO()
        with ResultArchive(out, 3) as results:
            results.add(found[2], {"label": "dog", "p": 0.5}, {"out/dog.png": b"picture"})
            results.fail(found[0], ImageUnreadable("It is cut off."))
            results.add(found[1], {})
        with zipfile.ZipFile(out) as archive:
            assert archive.testzip() is None
            assert archive.namelist() == ["out/dog.png", "results.jsonl"]
            assert archive.read("out/dog.png") == b"picture"
            lines = [json.loads(line) for line in archive.read("results.jsonl").splitlines()]
        assert lines == [
            {"id": "a", "path": "cat/1.png", "error": ImageUnreadable("It is cut off.").body()},
            {"id": "cat/2.png", "paths": {"audio": "cat/2.png", "visual": None}, "result": {}},
            {"id": "dog/1.png", "path": "dog/1.png", "result": {"label": "dog", "p": 0.5}},
        ]

    def test_it_streams_into_a_stored_file(self) -> None:
        files = InMemoryFiles()
        found = entries(None)
        with files.create(Owner("acme"), MEDIA_TYPE, 60.0) as writer:
            with ResultArchive(writer, 3) as results:
                for entry in found:
                    results.add(entry, {}, {f"out/{entry.index}.png": bytes(1000)})
            stored = writer.commit()
        with files.open(stored.id) as reader, open_archive(reader) as archive:
            assert archive.paths == ("out/0.png", "out/1.png", "out/2.png", "results.jsonl")
            assert archive.read("out/1.png") == bytes(1000)

    def test_the_same_results_are_the_same_bytes(self) -> None:
        def written() -> bytes:
            out = io.BytesIO()
            with ResultArchive(out, 1) as results:
                results.add(entries(None)[0], {"x": "ü"}, {"a.txt": b"text" * 100})
            return out.getvalue()

        assert written() == written()

    def test_files_do_not_pile_up_in_memory(self) -> None:
        class Nowhere:
            def write(self, data: bytes, /) -> int:
                return len(data)

            def flush(self) -> None: ...

        tracemalloc.start()
        try:
            with ResultArchive(Nowhere(), 100) as results:
                for index in range(100):
                    entry = Entry(index, str(index), {"path": str(index)})
                    results.add(entry, {}, {f"{index}.png": bytes(1_000_000)})
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("path", ["../x.png", "/x.png", "./x.png", "a//b", "results.jsonl", "", "taken.png"])
    def test_a_file_that_could_not_be_read_back_is_not_written(self, path: str) -> None:
        found = entries(None)
        with pytest.raises(ValueError, match="no path"), ResultArchive(io.BytesIO(), 3) as results:  # noqa: PT012
            results.add(found[0], {}, {"taken.png": b""})
            results.add(found[1], {}, {path: b""})

    def test_an_entry_has_one_result(self) -> None:
        found = entries(None)
        with pytest.raises(ValueError, match="already"), ResultArchive(io.BytesIO(), 2) as results:  # noqa: PT012
            results.add(found[0], {})
            results.fail(found[0], ImageUnreadable())
        with pytest.raises(ValueError, match="does not exist"), ResultArchive(io.BytesIO(), 2) as results:
            results.add(found[2], {})
        with (
            pytest.raises(ValueError, match="2 entries have no result, the first is 0"),
            ResultArchive(io.BytesIO(), 2),
        ):
            pass

    def test_an_unfinished_one_does_not_look_finished(self) -> None:
        out = io.BytesIO()
        with pytest.raises(RuntimeError), ResultArchive(out, 3) as results:  # noqa: PT012
            results.add(entries(None)[0], {}, {"1.png": b"x" * 100})
            raise RuntimeError
        assert not zipfile.is_zipfile(out)
