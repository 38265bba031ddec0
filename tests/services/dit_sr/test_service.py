"""Pictures through a whole installation, by HTTP: what comes back for what is sent."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
import torch

from shared.models import ModelStore
from tests.fleet import Fleet
from tests.services.dit_sr.tiny import pipeline

MODEL = "dit-sr/paper-tiny"
FACES = "dit-sr/paper-tiny-face"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("dit-sr")
    models = ModelStore({}, folder / "home" / "models")
    for name, made in (("paper-tiny", pipeline()), ("paper-tiny-face", pipeline(faces=True))):
        made.save(folder / name, torch.float32)
        models.import_("dit-sr", name, folder / name)
    with (
        Fleet(folder, {"dit-sr": "services.dit_sr.service:service"}) as fleet,
        httpx.Client(base_url=fleet.url, headers=fleet.headers(), timeout=120) as client,
    ):
        yield client


def photograph(width: int, height: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def written(image: PIL.Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def rgba() -> bytes:
    image = photograph(20, 12)
    image.putalpha(PIL.Image.linear_gradient("L").resize(image.size))
    return written(image)


def sixteen_bits() -> bytes:
    values = np.random.default_rng(1).integers(0, 65536, (12, 20), dtype=np.uint16)
    return written(PIL.Image.fromarray(values))


def turned() -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return written(photograph(20, 12), "JPEG", exif=exif.tobytes())


def animated() -> bytes:
    frames = [photograph(8, 8), photograph(9, 8).resize((8, 8))]
    return written(frames[0], "PNG", save_all=True, append_images=frames[1:])


def post(
    http: httpx.Client, image: bytes, operation: str = "upscale", model: str = MODEL, **fields: Any
) -> httpx.Response:
    return http.post(f"/v1/dit-sr/{operation}", files={"image": ("p", image)}, data={"model": model, **fields})


def result_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()["result"]
    return result


def picture(http: httpx.Client, file: dict[str, Any]) -> PIL.Image.Image:
    response = http.get(file["url"])
    assert response.status_code == 200
    return PIL.Image.open(io.BytesIO(response.content))


ODD = {
    "one pixel": (written(photograph(1, 1)), (4, 4), "RGB"),
    "17 x 5": (written(photograph(17, 5)), (68, 20), "RGB"),
    "larger than a tile": (written(photograph(70, 40)), (280, 160), "RGB"),
    "with alpha": (rgba(), (80, 48), "RGBA"),
    "gray": (written(photograph(20, 12).convert("L")), (80, 48), "L"),
    "gray, 16 bits": (sixteen_bits(), (80, 48), "L"),
    "CMYK": (written(photograph(20, 12).convert("CMYK"), "JPEG"), (80, 48), "RGB"),
    "turned by EXIF": (turned(), (48, 80), "RGB"),
    "palette": (written(photograph(20, 12).quantize(16)), (80, 48), "RGB"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_picture_comes_back_four_times_as_large_in_its_kind(http: httpx.Client, name: str) -> None:
    image, size, mode = ODD[name]
    result = result_of(post(http, image))
    enlarged = picture(http, result["image"])
    assert enlarged.size == size
    assert enlarged.mode == mode
    assert (result["image"]["width"], result["image"]["height"]) == size
    assert result["archive"] is None


@pytest.mark.parametrize(
    ("image", "fields", "status", "code"),
    [
        (animated(), {}, 422, "image_animated"),
        (written(PIL.Image.new("L", (8000, 5000))), {}, 413, "image_too_large"),
        (written(photograph(8, 8))[:-40], {}, 422, "image_unreadable"),
        (b"no picture", {}, 422, "image_unreadable"),
        (written(photograph(8, 8)), {"steps": "16"}, 422, "invalid_request"),
        (written(photograph(8, 8)), {"model": FACES}, 422, "model_unsuitable"),
        (written(photograph(8, 8)), {"model": "dit-sr/paper"}, 409, "weights_missing"),
        (written(PIL.Image.new("L", (5000, 1))), {"output_format": "webp"}, 413, "image_too_large"),
    ],
    ids=["animated", "40 megapixels", "cut off", "text", "steps", "face model", "no weights", "too wide for WebP"],
)
def test_what_cannot_be_enlarged_is_refused_with_its_reason(
    http: httpx.Client, image: bytes, fields: dict[str, str], status: int, code: str
) -> None:
    response = post(http, image, **fields)
    assert (response.status_code, response.json()["code"]) == (status, code), response.text


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(http: httpx.Client) -> None:
    image = written(photograph(24, 24))
    first = result_of(post(http, image, seed=7, steps=3))
    assert (first["seed"], first["steps"], first["tiles"]) == (7, 3, 1)
    assert result_of(post(http, image, seed=7, steps=3))["image"]["sha256"] == first["image"]["sha256"]
    assert result_of(post(http, image, seed=8, steps=3))["image"]["sha256"] != first["image"]["sha256"]


def test_a_request_without_seed_and_steps_says_what_it_got(http: httpx.Client) -> None:
    image = written(photograph(24, 24))
    drawn = result_of(post(http, image))
    assert drawn["steps"] == 2, "the model's own number"
    again = result_of(post(http, image, seed=drawn["seed"]))
    assert again["image"]["sha256"] == drawn["image"]["sha256"]


@pytest.mark.parametrize("model", [MODEL, FACES])
def test_a_portrait_is_restored_at_its_size(http: httpx.Client, model: str) -> None:
    result = result_of(post(http, written(photograph(70, 33)), "restore", model))
    assert picture(http, result["image"]).size == (70, 33)


def test_a_model_of_four_steps_walks_no_more(http: httpx.Client) -> None:
    response = post(http, written(photograph(8, 8)), "restore", FACES, steps=5)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert response.json()["errors"][0]["place"] == "steps"


def test_every_picture_of_an_archive_has_its_line(http: httpx.Client) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a/one.png", written(photograph(17, 5)))
        archive.writestr("a/two.png", written(photograph(17, 5)))
        archive.writestr("b/notes.txt", b"no picture")
        archive.writestr("c/large.png", written(PIL.Image.new("L", (6000, 8))))
    answer = http.post(
        "/v1/dit-sr/upscale",
        files={"archive": ("p.zip", packed.getvalue())},
        data={"model": MODEL, "seed": 5},
        headers={"Prefer": "wait=100"},
    )
    result = result_of(answer)
    assert result["image"] is None
    with zipfile.ZipFile(io.BytesIO(http.get(result["archive"]["url"]).content)) as results:
        lines = [json.loads(line) for line in results.read("results.jsonl").splitlines()]
        pictures = [PIL.Image.open(io.BytesIO(results.read(line["result"]["image"]))) for line in lines[:2]]
    assert [line.get("error", {}).get("code") for line in lines] == [None, None, "image_unreadable", "image_too_large"]
    assert [each.size for each in pictures] == [(68, 20)] * 2
    assert lines[0]["result"]["seed"] != lines[1]["result"]["seed"]
    seed = lines[1]["result"]["seed"]
    alone = result_of(post(http, written(photograph(17, 5)), seed=seed))
    assert np.array_equal(np.asarray(picture(http, alone["image"])), np.asarray(pictures[1]))


@pytest.mark.parametrize("parts", [[], ["image", "archive"]], ids=["neither", "both"])
def test_a_picture_or_an_archive_and_not_both(http: httpx.Client, parts: list[str]) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("one.png", written(photograph(4, 4)))
    files = {"image": written(photograph(4, 4)), "archive": packed.getvalue()}
    answer = http.post(
        "/v1/dit-sr/upscale",
        files={part: (part, files[part]) for part in parts} or {"model": (None, MODEL.encode())},
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text


def test_a_running_job_tells_its_step_and_is_cancelled_between_two(http: httpx.Client) -> None:
    answer = http.post(
        "/v1/dit-sr/upscale",
        files={"image": ("p.png", written(photograph(600, 600)))},  # 625 tiles of 15 steps: minutes
        data={"model": MODEL, "steps": 15},
        headers={"Prefer": "respond-async"},
    )
    assert answer.status_code == 202, answer.text
    place = answer.headers["Location"]
    seen: set[int] = set()
    deadline = time.monotonic() + 60
    while len(seen) < 3:
        assert time.monotonic() < deadline
        job = http.get(place).json()
        assert job["state"] in ("queued", "running"), job
        if progress := job.get("progress"):
            seen.add(progress["step"])
        time.sleep(0.05)
    assert http.post(f"{place}/cancel").json()["state"] in ("cancelling", "cancelled")
    while (state := http.get(place).json()["state"]) == "cancelling" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert state == "cancelled"
    result_of(post(http, written(photograph(8, 8))))  # and the next request is served


def test_the_description_is_given_without_torch() -> None:
    code = "import sys, services.dit_sr.service; sys.exit(bool({'torch', 'numpy', 'diffusers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path.cwd(), check=False).returncode == 0
