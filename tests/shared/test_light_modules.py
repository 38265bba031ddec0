from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ["torch", "numpy", "PIL", "diffusers", "transformers"]


@pytest.mark.parametrize(
    "module",
    [
        "files",
        "localfiles",
        "objectfiles",
        "filestores",
        "filecrypt",
        "imageheader",
        "models",
        "archives",
        "manifests",
        "resultarchives",
    ],
)
def test_an_api_process_loads_nothing_heavy_with_it(module: str) -> None:
    code = f"import sys, shared.{module}; sys.exit(' '.join(sys.modules.keys() & {HEAVY!r}) or None)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
