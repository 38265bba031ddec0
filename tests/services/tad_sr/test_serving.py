"""Over HTTP, with real processes and a small model of random weights: every odd input has its documented answer."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from shared.models import ModelStore
from tests.fleet import Fleet
from tests.services.tad_sr.tiny import tiny_faces, tiny_pipeline

METHODS = {"tad-sr": "services.tad_sr.service:service"}
MODEL, FACES = "tad-sr/paper-tiny", "tad-sr/paper-faces"


class Site:
    """One installation that serves `tad-sr`, with two imported models."""

    def __init__(self, fleet: Fleet) -> None:
        self.http = httpx.Client(base_url=fleet.url, headers=fleet.headers(), timeout=120)

    def post(self, operation: str, picture: bytes, headers: Mapping[str, str] | None = None, **fields: Any) -> Any:
        data = {"model": MODEL, "seed": "5"} | fields
        files = {"image": ("p", picture)}
        return self.http.post(f"/v1/tad-sr/{operation}", files=files, data=data, headers=dict(headers or {}))

    def made(self, operation: str, picture: bytes, **fields: Any) -> Image.Image:
        """The picture that comes back."""
        response = self.post(operation, picture, **fields)
        assert response.status_code == 200, response.text
        return self.opened(response.json()["result"]["image"])

    def opened(self, file: dict[str, Any]) -> Image.Image:
        return Image.open(io.BytesIO(self.http.get(file["url"]).content))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tad-sr")
    with Fleet(folder / "fleet", METHODS) as fleet:
        store = ModelStore({}, fleet.home.folder / "models")
        faces = tiny_faces()
        for model, pipeline in ((MODEL, tiny_pipeline()), (FACES, faces)):
            name = model.partition("/")[2]
            pipeline.save(folder / name, torch.float16)
            store.import_("tad-sr", name, folder / name)
        site = Site(fleet)
        with contextlib.closing(site.http):
            yield site


def saved(pixels: np.ndarray[Any, Any], kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, channels)[: 2 if channels == 1 else 3], dtype=np.uint8)


def rotated() -> bytes:
    """17 wide, 5 high once it is upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(noise(17, 5), "JPEG", exif=exif)


def animated() -> bytes:
    stream = io.BytesIO()
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (0, 255)]
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:])
    return stream.getvalue()


TAKEN: dict[str, tuple[Callable[[], bytes], tuple[int, int], str]] = {
    "one pixel": (lambda: saved(noise(1, 1)), (4, 4), "RGB"),
    "17 x 5": (lambda: saved(noise(5, 17)), (68, 20), "RGB"),
    "RGBA": (lambda: saved(noise(9, 12, 4)), (48, 36), "RGBA"),
    "gray": (lambda: saved(noise(9, 12, 1)), (48, 36), "L"),
    "gray with alpha": (lambda: saved(noise(9, 12, 4), mode="LA"), (48, 36), "LA"),
    "16 bit": (lambda: saved(noise(9, 12, 1).astype(np.uint16) * 257), (48, 36), "L"),
    "CMYK": (lambda: saved(noise(9, 12), "JPEG", "CMYK"), (48, 36), "RGB"),
    "palette": (lambda: saved(noise(9, 12), mode="P"), (48, 36), "RGB"),
    "EXIF-rotated": (rotated, (68, 20), "RGB"),
    "three tiles by two": (lambda: saved(noise(40, 70)), (280, 160), "RGB"),
}

REFUSED: dict[str, tuple[Callable[[], bytes], dict[str, Any], int, str]] = {
    "animated": (animated, {}, 422, "image_animated"),
    "40 megapixels": (lambda: saved(np.zeros((5000, 8000), np.uint8)), {}, 413, "image_too_large"),
    "more than 40 megapixels": (lambda: saved(np.zeros((5001, 8000), np.uint8)), {}, 413, "image_too_large"),
    "2.5 megapixels and a line": (lambda: saved(np.zeros((1001, 2500), np.uint8)), {}, 413, "image_too_large"),
    "a side of 5001": (lambda: saved(np.zeros((1, 5001), np.uint8)), {}, 413, "image_too_large"),
    "too wide for WebP": (
        lambda: saved(np.zeros((1, 4096), np.uint8)),
        {"output_format": "webp"},
        413,
        "image_too_large",
    ),
    "no picture": (lambda: b"text", {}, 422, "image_unreadable"),
    "a PDF": (lambda: b"%PDF-1.7\n" + bytes(200), {}, 415, "unsupported_media_type"),
    "cut off": (lambda: saved(noise(60, 60))[:5000], {}, 422, "image_unreadable"),
    "a seed below zero": (lambda: saved(noise(9, 9)), {"seed": "-1"}, 422, "invalid_request"),
    "a model for faces": (lambda: saved(noise(9, 9)), {"model": FACES}, 422, "model_unsuitable"),
    "no such model": (lambda: saved(noise(9, 9)), {"model": "tad-sr/sharp"}, 404, "model_not_found"),
    "a model that was not imported": (
        lambda: saved(noise(9, 9)),
        {"model": "tad-sr/paper"},
        409,
        "weights_missing",
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_an_odd_picture_is_enlarged_with_its_colours(site: Site, name: str) -> None:
    make, size, mode = TAKEN[name]
    picture = site.made("upscale", make())
    assert (picture.size, picture.mode) == (size, mode)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_enlarged_gets_its_problem(site: Site, name: str) -> None:
    make, fields, status, code = REFUSED[name]
    response = site.post("upscale", make(), **fields)
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, response.json()["code"]) == (status, code), response.text


def test_the_answer_says_what_it_takes_to_get_it_again(site: Site) -> None:
    result = site.post("upscale", saved(noise(20, 40))).json()["result"]
    assert {name: result[name] for name in ("model", "seed", "steps", "tiles", "archive")} == {
        "model": f"{MODEL}@1",
        "seed": 5,
        "steps": 1,
        "tiles": 2,
        "archive": None,
    }
    again = site.post("upscale", saved(noise(20, 40))).json()["result"]
    assert again["image"]["sha256"] == result["image"]["sha256"]
    other = site.post("upscale", saved(noise(20, 40)), seed="6").json()["result"]
    assert other["image"]["sha256"] != result["image"]["sha256"]


@pytest.mark.parametrize(("output_format", "media_type"), [("webp", "image/webp"), ("jpeg", "image/jpeg")])
def test_the_picture_itself_can_be_asked_for(site: Site, output_format: str, media_type: str) -> None:
    response = site.post("upscale", saved(noise(5, 6)), headers={"Accept": media_type}, output_format=output_format)
    assert response.headers["content-type"] == media_type
    assert Image.open(io.BytesIO(response.content)).size == (24, 20)


@pytest.mark.parametrize("model", [MODEL, FACES])
def test_a_portrait_is_restored_at_its_size(site: Site, model: str) -> None:
    assert site.made("restore", saved(noise(43, 21, 4)), model=model).size == (21, 43)


def test_an_archive_comes_back_enlarged_and_a_bad_file_is_its_own_problem(site: Site) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.png", saved(noise(5, 7)))
        archive.writestr("b.png", b"no picture")
        archive.writestr("c.png", saved(noise(9, 6, 4)))
        archive.writestr("d.png", saved(np.zeros((1, 5001), np.uint8)))
    response = site.http.post(
        "/v1/tad-sr/upscale", files={"archive": ("p.zip", stream.getvalue())}, data={"model": MODEL, "seed": "5"}
    )
    assert response.status_code == 200, response.text
    made = site.http.get(response.json()["result"]["archive"]["url"]).content
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        lines = [json.loads(line) for line in archive.read("results.jsonl").splitlines()]
        assert [line.get("error", {}).get("code") for line in lines] == [
            None,
            "image_unreadable",
            None,
            "image_too_large",
        ]
        sizes = [Image.open(io.BytesIO(archive.read(name))).size for name in archive.namelist() if "image" in name]
    assert sizes == [(28, 20), (24, 36)]


def test_an_archive_is_no_picture_to_be_asked_for(site: Site) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.png", saved(noise(5, 7)))
    response = site.http.post(
        "/v1/tad-sr/upscale",
        files={"archive": ("p.zip", stream.getvalue())},
        data={"model": MODEL},
        headers={"Accept": "image/png"},
    )
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")


def test_a_cancelled_job_ends_between_its_tiles(site: Site) -> None:
    picture = saved(noise(1000, 2400))
    response = site.post("upscale", picture, headers={"Prefer": "respond-async"})
    assert response.status_code == 202
    job = response.json()["id"]
    with site.http.stream("GET", f"/v1/jobs/{job}/events") as events:
        for line in events.iter_lines():
            if line.startswith("data:") and json.loads(line[5:]).get("of"):
                break
    site.http.post(f"/v1/jobs/{job}/cancel")
    with site.http.stream("GET", f"/v1/jobs/{job}/events") as events:
        assert any('"cancelled"' in line for line in events.iter_lines())
    assert site.made("upscale", saved(noise(5, 5))).size == (20, 20)
