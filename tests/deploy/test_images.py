"""The images without Docker: each install step of the Dockerfile in fresh environments, and the main job from them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.containers import ROOT, Containers, Programs
from tests.deploy.test_containers import keys as keys
from tests.deploy.test_containers import test_the_main_job as main_job

DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text()
INSTALLED = "/opt/tenfold"

pytestmark = pytest.mark.slow


def stages() -> dict[str, list[str]]:
    """The instructions of each stage, `FROM …` first."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for part in re.split(r"^(?=FROM )", text, flags=re.MULTILINE)[1:]:
        lines = [line for line in part.splitlines() if line]
        found[lines[0].split()[3]] = lines
    return found


def ignored(folder: str, names: list[str]) -> list[str]:
    """As .dockerignore has it: nothing but what it lets in."""
    here = Path(folder).relative_to(ROOT)
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [Path(line[1:]) for line in lines if line.startswith("!")]
    return [
        name
        for name in names
        if name == "__pycache__"
        or not any((here / name).is_relative_to(path) or path.is_relative_to(here / name) for path in let_in)
    ]


def build(stage: str, folder: Path, context: Path) -> Path:
    """Carry out a stage and those that it is made from. Returns its `/opt/tenfold`, built at `folder`."""
    first, *rest = stages()[stage]
    parent = first.split()[1]
    if parent in stages():
        build(parent, folder, context)
    source = folder / "src"
    source.mkdir(parents=True, exist_ok=True)
    for line in rest:
        instruction, _, words = line.partition(" ")
        if instruction == "COPY":
            *names, _ = words.split()
            if "--from" not in words:
                for name in names:
                    _copy(context / name, source)
        elif instruction == "RUN":
            command = words.replace(INSTALLED, shlex.quote(str(folder / "tenfold")))
            environment = os.environ | {"PATH": f"{folder / 'tenfold/bin'}:{Path(sys.executable).parent}:/usr/bin:/bin"}
            environment.pop("PYTHONPATH", None)
            done = subprocess.run(
                ["/bin/sh", "-c", command], cwd=source, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return folder / "tenfold"


def _copy(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
    else:
        shutil.copy(path, target)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="tenfold-images-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def images(folder: Path) -> dict[str, Path]:
    """The programs of each image."""
    context = folder / "context"
    shutil.copytree(ROOT, context, ignore=ignored)
    return {
        "tenfold-api": build("api-code", folder / "api", context) / "bin",
        "tenfold-worker": build("worker-code", folder / "worker", context) / "bin",
    }


@pytest.fixture(scope="module")
def containers(folder: Path, images: dict[str, Path]) -> Iterator[Containers]:
    place = folder / "project"
    place.mkdir()
    made = Containers(place, (ROOT / "docker-compose.yml").read_text(), Programs(images))
    try:
        made.set_up()
        made.up()
        yield made
    finally:
        made.kill()


def test_the_image_of_the_gateway_has_no_torch(images: dict[str, Path]) -> None:
    for image, expected in (("tenfold-api", 1), ("tenfold-worker", 0)):
        found = subprocess.run(
            [images[image] / "python", "-c", "import torch"], capture_output=True, check=False, cwd=images[image]
        )
        assert found.returncode == expected, image


def test_the_build_context_has_no_state_and_no_tests(images: dict[str, Path], folder: Path) -> None:
    names = {path.name for path in (folder / "context").iterdir()}
    assert names == {"pyproject.toml", "README.md", "LICENSE", "deploy", "gateway", "services", "shared", "tests"}
    assert [path.name for path in (folder / "context/tests").iterdir()] == ["golden"]


def test_the_main_job(containers: Containers, keys: dict[str, str]) -> None:
    main_job(containers, keys)
    assert set(containers.down().values()) == {0}


def test_golden_vectors_agree_in_the_workers_image(images: dict[str, Path], folder: Path) -> None:
    done = subprocess.run(
        [images["tenfold-worker"] / "tenfold-admin", "verify", "ifadit", "--quick"],
        cwd=folder / "context",  # where the image has tests/golden
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
