"""Sample photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from deploy.local import samples


def test_the_photographs_are_real_pictures_and_stay_as_the_user_left_them(tmp_path: Path) -> None:
    samples.lay(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "astronaut.png",
        "cameraman.png",
        "cat.png",
        "coffee.png",
    ]
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert min(picture.size) >= 256
    (tmp_path / "cat.png").write_text("mine")
    samples.lay(tmp_path)
    assert (tmp_path / "cat.png").read_text() == "mine"


def test_without_scikit_image_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(samples.SamplesMissing, match="pip install scikit-image"):
        samples.lay(tmp_path)
