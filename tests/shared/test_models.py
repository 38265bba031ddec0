from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.modelfolder import digest_of
from shared.models import ModelStore
from shared.problems import (
    InvalidRequest,
    ModelNotFound,
    ModelProtected,
    Problem,
    ServiceUnavailable,
    WeightsDamaged,
    WeightsMissing,
)


def write(folder: Path, **files: str | bytes) -> Path:
    """A folder of files; `__` in a name stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The shipped weights of the method tad-sr."""
    weights = write(tmp_path / "shipped", LICENSE="\nresearch and evaluation, non-commercial\nMore text.\n")
    write(
        weights / "small",
        denoiser__safetensors=b"weights",
        config__json="{}",
        MODEL_CARD__md="# Small\n",
        evaluate__json='{"psnr": 27.5}',
    )
    write(weights / "small-swin", denoiser__safetensors=b"others", LICENSE="Apache-2.0")
    write(weights / "notes", readme__md="no model")
    return weights


@pytest.fixture
def store(weights: Path, tmp_path: Path) -> ModelStore:
    return ModelStore({"tad-sr": weights}, tmp_path / "models", now=lambda: 1_760_000_000.0)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """What a training made."""
    source = write(tmp_path / "made", model__safetensors=b"learned", config__json='{"width": 8}')
    write(source / "scheduler", scheduler_config__json="{}")
    write(source, __hidden="left out")
    return source


class TestShipped:
    def test_a_shipped_model_is_for_everyone_and_says_what_it_is(self, store: ModelStore, weights: Path) -> None:
        for tenant in ("acme", "other"):
            model = store.resolve("tad-sr/small", tenant)
            assert (model.id, model.kind, model.folder) == ("tad-sr/small@1", "shipped", weights / "small")
            assert model.licence == "research and evaluation, non-commercial"
            assert (model.card, model.figures, model.versions) == ("# Small\n", {"psnr": 27.5}, (1,))
        assert store.resolve("tad-sr/small-swin@1", "acme").licence == "Apache-2.0"

    def test_what_is_not_shipped_is_not_found(self, store: ModelStore) -> None:
        for ref in ("tad-sr/small@2", "tad-sr/small-er", "arm/small", "tad-sr/notes"):
            with pytest.raises(ModelNotFound):
                store.resolve(ref, "acme")

    def test_the_digest_is_over_what_computes(self, store: ModelStore, weights: Path) -> None:
        files = {"config.json": b"{}", "denoiser.safetensors": b"weights"}
        expected = hashlib.sha256()
        for name, content in files.items():
            expected.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
        assert store.resolve("tad-sr/small", "acme").digest == expected.hexdigest()
        write(weights / "small", MODEL_CARD__md="# Another card", evaluate__json="{}")
        assert store.resolve("tad-sr/small", "acme").digest == expected.hexdigest()

    def test_changed_weights_have_another_digest_at_once(self, store: ModelStore, weights: Path) -> None:
        before = store.resolve("tad-sr/small", "acme").digest
        write(weights / "small", denoiser__safetensors=b"weightier")
        assert store.resolve("tad-sr/small", "acme").digest not in (before, "")

    def test_the_path_is_part_of_the_digest(self, tmp_path: Path) -> None:
        one = write(tmp_path / "one", a=b"x", b=b"y")
        two = write(tmp_path / "two", a=b"y", b=b"x")
        assert digest_of(one) != digest_of(two)

    def test_hashing_happens_once(self, store: ModelStore, weights: Path) -> None:
        write(weights / "small", denoiser__safetensors=bytes(40_000_000))
        started = time.process_time()
        store.resolve("tad-sr/small", "acme")
        first_s, started = time.process_time() - started, time.process_time()
        for _ in range(10):
            store.resolve("tad-sr/small", "acme")
        assert time.process_time() - started < first_s * 5


class TestTrained:
    def test_a_saved_model_is_the_first_version_and_belongs_to_its_tenant(
        self, store: ModelStore, trained: Path
    ) -> None:
        saved = store.save("tad-sr", "faces", "acme", trained, figures={"psnr": 30.1})
        assert saved == store.resolve("tad-sr/faces", "acme") == store.resolve("tad-sr/faces@1", "acme")
        assert (saved.kind, saved.version, saved.created_at) == ("trained", 1, 1_760_000_000.0)
        assert (saved.figures, saved.licence, saved.card) == ({"psnr": 30.1}, None, None)
        assert saved.digest == digest_of(trained)
        copied = {path.relative_to(saved.folder).as_posix() for path in saved.folder.rglob("*") if path.is_file()}
        assert copied == {"model.safetensors", "config.json", "scheduler/scheduler_config.json", ".tenfold.json"}
        with pytest.raises(ModelNotFound):
            store.resolve("tad-sr/faces", "other")

    def test_the_next_version_is_current_until_a_rollback(self, store: ModelStore, trained: Path) -> None:
        for psnr in (1, 2, 3):
            store.save("tad-sr", "faces", "acme", trained, figures={"psnr": psnr})
        assert store.resolve("tad-sr/faces", "acme").figures == {"psnr": 3}
        assert store.rollback("tad-sr/faces@2", "acme").version == 2
        assert store.resolve("tad-sr/faces", "acme").version == 2
        assert store.resolve("tad-sr/faces@3", "acme").versions == (1, 2, 3)
        assert store.save("tad-sr", "faces", "acme", trained, figures={}).version == 4
        assert store.resolve("tad-sr/faces", "acme").version == 4

    def test_a_version_that_does_not_exist_cannot_be_rolled_back_to(self, store: ModelStore, trained: Path) -> None:
        store.save("tad-sr", "faces", "acme", trained, figures={})
        for ref in ("tad-sr/faces@2", "tad-sr/faces", "tad-sr/others@1"):
            with pytest.raises(ModelNotFound):
                store.rollback(ref, "acme")
        with pytest.raises(ModelNotFound):
            store.rollback("tad-sr/faces@1", "other")

    @pytest.mark.parametrize(
        "name", ["small", "small-faces", "paper", "paper-mine", "", "Faces", "../x", "a/b", "a" * 64]
    )
    def test_a_reserved_or_malformed_name_is_refused(self, store: ModelStore, trained: Path, name: str) -> None:
        with pytest.raises(InvalidRequest) as refusal:
            store.save("tad-sr", name, "acme", trained, figures={})
        assert refusal.value.extras["errors"][0]["place"] == "name"

    def test_a_tenant_is_no_path(self, store: ModelStore, trained: Path) -> None:
        for tenant in ("", "..", "a/b", "A"):
            with pytest.raises(ValueError, match="tenant"):
                store.save("tad-sr", "faces", tenant, trained, figures={})

    @pytest.mark.parametrize(
        "ref", ["", "tad-sr", "tad-sr/", "../../x", "tad-sr/faces@0", "tad-sr/faces@01", "a/b/c", "a/b@x", "a/b\n"]
    )
    def test_what_is_no_reference_is_not_found(self, store: ModelStore, ref: str) -> None:
        for ask in (store.resolve, store.delete, store.rollback):
            with pytest.raises(ModelNotFound):
                ask(ref, "acme")

    def test_an_empty_folder_is_no_model(self, store: ModelStore, tmp_path: Path) -> None:
        for source in (tmp_path / "nowhere", write(tmp_path / "empty")):
            with pytest.raises(ValueError, match="no files"):
                store.save("tad-sr", "faces", "acme", source, figures={})
        assert list((tmp_path / "models" / ".incoming").iterdir()) == []

    def test_damage_is_found_by_a_check(self, store: ModelStore, trained: Path) -> None:
        saved = store.save("tad-sr", "faces", "acme", trained, figures={})
        store.check(saved)
        (saved.folder / "model.safetensors").write_bytes(b"learneD")
        with pytest.raises(WeightsDamaged, match="tad-sr/faces@1"):
            store.check(saved)

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"digest": "x", "figures": 1, "created_at": "now"}'])
    def test_a_damaged_description_is_a_damaged_model(self, store: ModelStore, trained: Path, text: str) -> None:
        saved = store.save("tad-sr", "faces", "acme", trained, figures={})
        store.save("tad-sr", "intact", "acme", trained, figures={})
        (saved.folder / ".tenfold.json").write_text(text)
        with pytest.raises(WeightsDamaged):
            store.resolve("tad-sr/faces", "acme")
        assert [model.name for model in store.list("acme")] == ["intact", "small", "small-swin"]


class TestDelete:
    def test_one_version_or_all_of_them_go(self, store: ModelStore, trained: Path) -> None:
        for _ in range(3):
            store.save("tad-sr", "faces", "acme", trained, figures={})
        store.rollback("tad-sr/faces@2", "acme")
        store.delete("tad-sr/faces@2", "acme")
        assert store.resolve("tad-sr/faces", "acme").version == 3
        store.delete("tad-sr/faces", "acme")
        with pytest.raises(ModelNotFound):
            store.resolve("tad-sr/faces", "acme")
        with pytest.raises(ModelNotFound):
            store.delete("tad-sr/faces", "acme")

    def test_a_number_is_not_given_twice(self, store: ModelStore, trained: Path) -> None:
        store.save("tad-sr", "faces", "acme", trained, figures={})
        store.save("tad-sr", "faces", "acme", trained, figures={})
        store.delete("tad-sr/faces", "acme")
        assert store.save("tad-sr", "faces", "acme", trained, figures={}).id == "tad-sr/faces@3"

    def test_another_tenant_deletes_nothing(self, store: ModelStore, trained: Path) -> None:
        store.save("tad-sr", "faces", "acme", trained, figures={})
        with pytest.raises(ModelNotFound):
            store.delete("tad-sr/faces", "other")
        store.resolve("tad-sr/faces", "acme")

    def test_what_belongs_to_everyone_is_protected(self, store: ModelStore, trained: Path) -> None:
        store.import_("tad-sr", "paper", trained)
        for ref in ("tad-sr/small", "tad-sr/paper@1"):
            with pytest.raises(ModelProtected):
                store.delete(ref, "acme")
            with pytest.raises(ModelProtected):
                store.rollback(ref, "acme")


class TestImported:
    def test_an_imported_model_is_for_everyone(self, store: ModelStore, trained: Path) -> None:
        write(trained, evaluate__json='{"psnr": 28}', LICENSE="S-Lab License 1.0", MODEL_CARD__md="card")
        imported = store.import_("tad-sr", "paper", trained)
        assert (imported.kind, imported.id, imported.figures) == ("imported", "tad-sr/paper@1", {"psnr": 28})
        assert (imported.licence, imported.card) == ("S-Lab License 1.0", "card")
        assert store.resolve("tad-sr/paper", "other") == imported
        assert store.import_("tad-sr", "paper", trained).version == 2

    def test_one_that_was_not_imported_says_how_to(self, store: ModelStore) -> None:
        for name in ("paper", "paper-lite"):
            with pytest.raises(WeightsMissing) as missing:
                store.resolve(f"tad-sr/{name}", "acme")
            assert missing.value.extras["command"].startswith(f"tenfold-admin weights import tad-sr/{name} ")

    def test_a_version_that_was_not_imported_is_not_found(self, store: ModelStore, trained: Path) -> None:
        store.import_("tad-sr", "paper", trained)
        with pytest.raises(ModelNotFound):
            store.resolve("tad-sr/paper@2", "acme")

    @pytest.mark.parametrize("name", ["small", "faces", "paper/x", "paper_lite"])
    def test_only_reserved_names_are_imported(self, store: ModelStore, trained: Path, name: str) -> None:
        with pytest.raises(InvalidRequest):
            store.import_("tad-sr", name, trained)


class TestList:
    def test_it_shows_the_current_version_of_what_a_tenant_can_use(self, store: ModelStore, trained: Path) -> None:
        store.import_("tad-sr", "paper", trained)
        store.save("tad-sr", "faces", "acme", trained, figures={})
        store.save("tad-sr", "faces", "acme", trained, figures={})
        store.save("arm", "emotions", "acme", trained, figures={})
        store.save("arm", "gone", "acme", trained, figures={})
        store.delete("arm/gone", "acme")
        everyones = ["tad-sr/paper@1", "tad-sr/small@1", "tad-sr/small-swin@1"]
        assert [model.id for model in store.list("acme")] == ["arm/emotions@1", "tad-sr/faces@2", *everyones]
        assert [model.id for model in store.list("acme", "arm")] == ["arm/emotions@1"]
        assert [model.id for model in store.list("other")] == everyones

    def test_a_caller_sees_everything_but_the_folder(self, store: ModelStore, trained: Path) -> None:
        public = store.save("tad-sr", "faces", "acme", trained, figures={"psnr": 30}).public()
        assert public == {
            "model": "tad-sr/faces@1",
            "method": "tad-sr",
            "name": "faces",
            "version": 1,
            "versions": [1],
            "kind": "trained",
            "digest": digest_of(trained),
            "licence": None,
            "card": None,
            "figures": {"psnr": 30},
            "created_at": "2025-10-09T08:53:20Z",
        }
        json.dumps(public)


SAVE = """
import sys
from pathlib import Path
from shared.models import ModelStore

store = ModelStore({}, Path(sys.argv[1]))
for _ in range(int(sys.argv[3])):
    store.save("tad-sr", "faces", "acme", Path(sys.argv[2]), figures={})
    sys.stderr.write("saved" + chr(10))
"""

FILL_THE_DISK = """
import resource, sys
from pathlib import Path
from shared.models import ModelStore
from shared.problems import ServiceUnavailable

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    ModelStore({}, Path(sys.argv[1])).save("tad-sr", "faces", "acme", Path(sys.argv[2]), figures={})
except ServiceUnavailable as problem:
    sys.stdout.write(problem.detail)
"""


def script(code: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


class TestFaults:
    def test_processes_that_save_at_once_get_different_versions(self, tmp_path: Path, trained: Path) -> None:
        processes = [script(SAVE, tmp_path / "models", trained, 5) for _ in range(3)]
        for process in processes:
            process.communicate(timeout=60)
            assert process.returncode == 0
        store = ModelStore({}, tmp_path / "models")
        assert store.resolve("tad-sr/faces", "acme").versions == tuple(range(1, 16))
        for version in range(1, 16):
            store.check(store.resolve(f"tad-sr/faces@{version}", "acme"))

    def test_a_killed_save_leaves_whole_versions_and_no_lock(self, tmp_path: Path, trained: Path) -> None:
        write(trained, big__safetensors=os.urandom(2_000_000))
        for delay_s in (0.0, 0.002, 0.004):
            process = script(SAVE, tmp_path / "models", trained, 1000)
            assert process.stderr is not None
            process.stderr.readline()
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        store = ModelStore({}, tmp_path / "models", now=lambda: time.time() + 100_000)
        versions = store.resolve("tad-sr/faces", "acme").versions
        assert len(versions) >= 3
        for version in versions:
            store.check(store.resolve(f"tad-sr/faces@{version}", "acme"))
        assert store.save("tad-sr", "faces", "acme", trained, figures={}).version > versions[-1]
        assert list((tmp_path / "models" / ".incoming").iterdir()) == []

    def test_a_full_disk_is_a_problem_of_the_service_and_leaves_nothing(self, tmp_path: Path, trained: Path) -> None:
        write(trained, big__safetensors=bytes(5000))
        said, _ = script(FILL_THE_DISK, tmp_path / "models", trained).communicate(timeout=60)
        assert "File too large" in said
        assert [path for path in (tmp_path / "models").rglob("*") if path.is_file()] == []

    def test_a_store_that_cannot_be_written_is_a_problem_of_the_service(self, tmp_path: Path, trained: Path) -> None:
        (tmp_path / "models").write_text("in the way")
        store = ModelStore({}, tmp_path / "models")
        with pytest.raises(ServiceUnavailable):
            store.save("tad-sr", "faces", "acme", trained, figures={})
        assert store.list("acme") == []


def test_every_problem_of_the_store_can_be_shown() -> None:
    for problem in (WeightsMissing("x", command="y"), ModelProtected(), WeightsDamaged()):
        assert Problem.from_body(problem.body()).body() == problem.body()
