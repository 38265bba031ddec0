"""Sample photographs for the first requests: those that the package scikit-image brings."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

_FILES = {
    "astronaut.png": "astronaut.png",  # a face; NASA, public domain
    "cameraman.png": "camera.png",  # grey, a person from the side; CC0
    "cat.png": "chelsea.png",  # no human face; CC0
    "coffee.png": "coffee.png",  # a cup on a table; CC0
}


class SamplesMissing(Exception):
    """The package that brings the pictures is not installed."""


def lay(folder: Path) -> None:
    """Copy the pictures that are not in `folder` yet. Raises `SamplesMissing`."""
    package = importlib.util.find_spec("skimage")  # located, not imported: only its files are of interest
    places = (package.submodule_search_locations or []) if package else []
    folder.mkdir(parents=True, exist_ok=True)
    for name, original in _FILES.items():
        if (folder / name).exists():
            continue
        found = next((path for place in places if (path := Path(place, "data", original)).is_file()), None)
        if found is None:
            raise SamplesMissing(
                f"The sample photograph {original} comes with scikit-image: `pip install scikit-image`."
            )
        part = folder / f"{name}.part"
        shutil.copyfile(found, part)
        part.replace(folder / name)
