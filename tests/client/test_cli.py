"""`tenfold`, the command."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from tenfold.cli import main
from tenfold.cli.methods import commands_of
from tests.client.contract import API_KEY, Call, Contract
from tests.client.faults import answers

OPERATION = "POST /v1/ifadit"


@pytest.fixture(autouse=True)
def _environment(contract: Contract, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TENFOLD_URL", contract.url)
    monkeypatch.setenv("TENFOLD_API_KEY", API_KEY)
    monkeypatch.chdir(tmp_path)


class Ran:
    """One run: its exit status and what it said where."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> Ran:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
        said = capsys.readouterr()
        return Ran(status, said.out, said.err)

    return run


def started(arguments: Sequence[object], **streams: Any) -> subprocess.Popen[bytes]:
    """The command as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-m", "tenfold.cli", *map(str, arguments)]
    # a test run in the background of a script is deaf to SIGINT, and would hand that on
    return subprocess.Popen(command, env=environment, preexec_fn=_hear_interrupts, **streams)


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class TestPictures:
    def test_one_picture_to_one_file(self, run: Any, contract: Contract, photo: Path) -> None:
        ran = run("ifadit", "anonymize", photo, "-o", "out.png", "--linkage", "per_key", "--key", "key_1")
        assert (ran.status, ran.out, ran.err) == (0, "out.png\n", "")
        assert Path("out.png").read_bytes() == photo.read_bytes()
        assert Path("out.record.json").read_bytes() == b'{"v":1}'
        (call,) = contract.called(OPERATION)
        assert call.query == {"key": "key_1"}
        named = {"linkage": "per_key", "output_format": "png", "mode": "parametric", "model": "ifadit/small"}
        assert call.fields == named

    def test_originals_are_kept_beside_the_picture_and_sent_back_with_it(
        self, run: Any, contract: Contract, photo: Path
    ) -> None:
        assert run("ifadit", "anonymize", photo, "-o", "out.png", "--mode", "forensic").status == 0
        assert Path("out.sidecar.ifx").read_bytes() == b"IFX1"
        sidecar = ["--sidecar", "out.sidecar.ifx"]
        assert run("ifadit", "recover", "out.png", "-o", "back.png", "--purpose", "a test", *sidecar).status == 0
        assert contract.called("/v1/ifadit/recover")[-1].files["sidecar"] == [b"IFX1"]

    def test_several_pictures_to_a_folder(self, run: Any, photo: Path) -> None:
        PIL.Image.new("RGB", (2, 2)).save("other.png")
        ran = run("ifadit", "anonymize", photo, "other.png", "-o", "new/folder", "--output-format", "webp")
        assert ran.status == 0
        assert ran.out.splitlines() == ["new/folder/photo.webp", "new/folder/other.webp"]
        assert sorted(os.listdir("new/folder")) == [
            "other.record.json",
            "other.webp",
            "photo.record.json",
            "photo.webp",
        ]

    @pytest.mark.parametrize("folder", ["new/", "."])
    def test_one_picture_to_a_folder(self, run: Any, photo: Path, folder: str) -> None:
        assert run("ifadit", "anonymize", photo, "-o", folder).out == f"{Path(folder) / 'photo.png'}\n"

    def test_one_that_fails_does_not_stop_the_rest(self, run: Any, contract: Contract, photo: Path) -> None:
        contract.fail(OPERATION, answers(422, "no_face"))
        PIL.Image.new("RGB", (2, 2)).save("other.png")
        ran = run("ifadit", "anonymize", "other.png", "nowhere.png", photo, "-o", "out")
        assert ran.status == 1
        assert ran.out == "out/photo.png\n"
        first, second = ran.err.splitlines()
        assert first == "other.png: Not this time. (no_face, request req_fault)"
        assert second.startswith("nowhere.png: ")
        assert "No such file" in second

    def test_the_name_of_the_output_says_its_format(self, run: Any, contract: Contract, photo: Path) -> None:
        assert run("ifadit", "anonymize", photo, "-o", "out.JPG").status == 0
        assert contract.called(OPERATION)[0].fields["output_format"] == "jpeg"

    @pytest.mark.parametrize(
        "arguments", [["-o", "out.gif"], ["-o", "out"], ["-o", "out.png", "--output-format", "webp"]]
    )
    def test_a_name_that_belies_its_format_is_refused(
        self, run: Any, contract: Contract, photo: Path, arguments: list[str]
    ) -> None:
        ran = run("ifadit", "anonymize", photo, *arguments)
        assert ran.status == 1
        assert "no name for a picture" in ran.err
        assert contract.calls == []

    def test_two_results_do_not_go_to_one_place(self, run: Any, contract: Contract, photo: Path) -> None:
        PIL.Image.new("RGB", (2, 2)).save("photo.png")
        ran = run("ifadit", "anonymize", photo, "photo.png", "-o", "out")
        assert ran.status == 1
        assert "two of the pictures" in ran.err
        assert contract.calls == []

    @pytest.mark.parametrize("out", [".", "photo.png", "./photo.png"])
    def test_no_original_is_overwritten(self, run: Any, contract: Contract, out: str) -> None:
        PIL.Image.new("RGB", (2, 2)).save("photo.png")
        ran = run("ifadit", "anonymize", "photo.png", "-o", out)
        assert ran.status == 1
        assert "overwritten by its own result" in ran.err
        assert contract.calls == []

    def test_boxes_are_json(self, run: Any, contract: Contract, photo: Path) -> None:
        boxes = '[{"x":1,"y":2,"width":3,"height":4}]'
        assert run("ifadit", "anonymize", photo, "-o", "out.png", "--faces", boxes).status == 0
        assert contract.called(OPERATION)[0].fields["faces"] == boxes

    def test_recovery_needs_a_purpose(self, run: Any, contract: Contract, photo: Path) -> None:
        ran = run("ifadit", "recover", photo, "-o", "out.png")
        assert ran.status == 2
        assert "--purpose" in ran.err
        ran = run("ifadit", "recover", photo, "-o", "out.png", "--purpose", "court order 17", "--allow-modified")
        assert ran.out == "out.png\n"
        (call,) = contract.called(OPERATION)
        assert call.fields == {"purpose": "court order 17", "allow_modified": "true", "output_format": "png"}

    def test_a_record_belongs_to_one_picture(self, run: Any, contract: Contract, photo: Path) -> None:
        Path("record.json").write_text("{}")
        recover = ["ifadit", "recover", "--purpose", "why", "--record", "record.json", "-o", "out/"]
        assert run(*recover, photo).status == 0
        assert contract.called(OPERATION)[0].files["record"] == [b"{}"]
        ran = run(*recover, photo, photo)
        assert ran.status == 1
        assert "--record belongs to one picture" in ran.err

    def test_verification_is_a_line_of_json_a_picture(self, run: Any, photo: Path) -> None:
        ran = run("ifadit", "verify", photo, photo)
        lines = [json.loads(line) for line in ran.out.splitlines()]
        assert [line["picture"] for line in lines] == [str(photo)] * 2
        assert lines[0]["record_valid"] is True


class TestLists:
    def test_methods(self, run: Any) -> None:
        assert run("methods").out == "ifadit\tanonymize\tReversible face anonymization\n"

    def test_jobs(self, run: Any, contract: Contract) -> None:
        for n in range(30):
            contract.start("ifadit", "anonymize", Call("POST", "/", {}, {"idempotency-key": str(n)}))
        newest = max(contract.jobs)
        lines = run("jobs", "list").out.splitlines()
        assert len(lines) == 20
        assert lines[0] == f"{newest}\tifadit/anonymize\tqueued\t2026-03-01T12:00:00+00:00"
        assert len(run("jobs", "list", "-n", 3).out.splitlines()) == 3
        assert json.loads(run("jobs", "show", newest).out)["id"] == newest

    def test_one_job_that_is_not_there_does_not_stop_the_rest(self, run: Any, contract: Contract) -> None:
        job = contract.start("ifadit", "anonymize", Call("POST", "/", {}, {"idempotency-key": "1"}))
        ran = run("jobs", "cancel", "job_x", job.record["id"])
        assert (ran.status, ran.out) == (1, f"{job.record['id']}\tcancelled\n")
        assert ran.err == "job_x: It is job_not_found. (job_not_found, request req_1)\n"

    def test_a_key_allows_exact_recovery_only_where_that_is_said(self, run: Any) -> None:
        purposes = [json.loads(run("keys", "create", *said).out)["purposes"] for said in ([], ["--forensic"])]
        assert purposes == [["anonymize", "recover"], ["anonymize", "recover", "forensic"]]

    def test_keys(self, run: Any, contract: Contract) -> None:
        key = json.loads(run("keys", "create", "--label", "court", "--default").out)
        name = key["key_id"]
        assert (key["label"], key["default"]) == ("court", True)
        assert run("keys", "list").out == f"{name}\t1\tactive\tcourt\n"
        assert run("keys", "rotate", name).out == f"{name}\t2\tactive\n"
        assert run("keys", "disable", name).out == f"{name}\t2\tdisabled\n"
        assert run("keys", "enable", name).out == f"{name}\t2\tactive\n"
        assert run("keys", "destroy", name).status == 2
        assert run("keys", "destroy", name, "--reason", "asked for").out == f"{name}\t2\tpending_destroy\n"
        assert run("keys", "cancel-destroy", name).out == f"{name}\t2\tdisabled\n"
        assert json.loads(run("keys", "show", name).out)["state"] == "disabled"
        assert run("keys", "rotate", "key_x").status == 1


class TestRunning:
    def test_every_option_of_every_operation_is_explained(self) -> None:
        commands = [*commands_of("ifadit")]
        assert [command.name for command in commands] == ["anonymize", "recover", "verify"]
        assert [f"{c.name} {o.name}" for c in commands for o in c.options if not o.text] == []

    def test_help_names_the_operations(self, run: Any) -> None:
        assert "anonymize" in run("ifadit", "--help").out

    def test_an_api_key_may_stand_in_a_file(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TENFOLD_API_KEY")
        assert run("jobs", "list").err == "tenfold: It is api_key_invalid. (api_key_invalid, request req_1)\n"
        Path("app").write_text(API_KEY + "\n")
        assert run("--api-key-file", "app", "jobs", "list").status == 0

    @pytest.mark.parametrize("options", [["--url", "nowhere"], ["--api-key-file", "nowhere"]])
    def test_what_cannot_start_says_so(self, run: Any, options: list[str]) -> None:
        ran = run(*options, "jobs", "list")
        assert ran.status == 2
        assert ran.err.startswith("tenfold: ")
        assert "nowhere" in ran.err

    def test_an_address_where_nobody_listens(self, run: Any) -> None:
        ran = run("--url", "http://127.0.0.1:1", "jobs", "show", "job_1")
        assert ran.status == 1
        assert "connection_failed" in ran.err

    def test_names_that_look_like_markup_are_shown_as_they_are(self, run: Any) -> None:
        assert "[bold]x[/bold].png" in run("ifadit", "anonymize", "[bold]x[/bold].png", "-o", "out.png").err

    def test_a_bar_is_drawn_on_a_terminal_and_results_stay_clean(self, photo: Path) -> None:
        terminal, end = pty.openpty()
        process = started(["ifadit", "anonymize", photo, "-o", "out.png"], stdout=subprocess.PIPE, stderr=end)
        os.close(end)
        drawn = b""
        try:
            while piece := os.read(terminal, 65536):
                drawn += piece
        except OSError:  # the other end is closed
            pass
        os.close(terminal)
        out, _ = process.communicate(timeout=30)
        assert out == b"out.png\n"
        assert b"anonymize" in drawn
        assert b"1/1" in drawn

    def test_a_reader_that_has_seen_enough_is_no_failure_to_report(self, contract: Contract) -> None:
        for n in range(199):
            contract.start("ifadit", "anonymize", Call("POST", "/", {}, {"idempotency-key": str(n)}))
        process = started(["jobs", "list", "-n", "199"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(timeout=30)
        assert err == b""

    def test_an_interrupt_ends_it_and_the_job_goes_on(self, contract: Contract, photo: Path) -> None:
        contract.takes_s = 20
        process = started(["ifadit", "anonymize", photo, "-o", "out.png"], stderr=subprocess.PIPE)
        contract.wait_for(OPERATION)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert err == b"tenfold: interrupted; jobs that were started go on\n"
        assert not Path("out.png").exists()
