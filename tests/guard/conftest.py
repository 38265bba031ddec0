"""An installation with the diagnostic method and a detector that finds darkness strange."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest

from shared.models import ModelStore
from tests.fleet import DIAGNOSTIC, Fleet

METHODS = {**DIAGNOSTIC, "dlsr": "tests.diagnostic.detector:service"}
DETECTORS = ("darkness", "slow", "broken")


def png(left: int, right: int | None = None) -> bytes:
    """A picture of one gray value, or of two halves."""
    pixels = np.full((20, 40, 3), left, np.uint8)
    pixels[:, 20:] = left if right is None else right
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class Site:
    """A fleet, and calls as its principals."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.http = httpx.Client(base_url=fleet.url, timeout=60)

    def close(self) -> None:
        self.http.close()

    def call(self, operation: str, picture: bytes, role: str = "app", **fields: Any) -> httpx.Response:
        prefer = fields.pop("prefer", "wait=30")
        return self.http.post(
            f"/v1/diagnostic/{operation}",
            data=fields,
            files={"image": ("a.png", picture)},
            headers={**self.fleet.headers(role), "Prefer": prefer},
        )

    def submit(self, operation: str, picture: bytes, **fields: Any) -> str:
        response = self.call(operation, picture, prefer="respond-async", **fields)
        assert response.status_code == 202, response.text
        job_id: str = response.json()["id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}", headers=self.fleet.headers()).json()
        return found

    def until_parked(self, job_id: str) -> dict[str, Any]:
        self.fleet.until(lambda: self.job(job_id)["stage"] == "guard", 30)
        return self.job(job_id)

    def until_finished(self, job_id: str, within_s: float = 60) -> dict[str, Any]:
        self.fleet.until(lambda: self.job(job_id)["finished_at"] is not None, within_s)
        return self.job(job_id)

    def files(self) -> set[Path]:
        """What lies in the store, descriptions apart."""
        found = (self.fleet.home.folder / "files").rglob("file_*")
        return {path for path in found if path.is_file() and path.suffix != ".json"}


def site_of(folder: Path, **options: Any) -> Fleet:
    fleet = Fleet(folder, METHODS, **options)
    weights = folder / "weights"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    models = ModelStore({}, fleet.home.folder / "models")
    for name in DETECTORS:
        models.save("dlsr", name, "local", weights, figures={})
    models.save("dlsr", "theirs", "others", weights, figures={})
    return fleet


@pytest.fixture(scope="module", params=["embedded", "apart"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Shared: tests that use it leave everything alive."""
    with (
        site_of(tmp_path_factory.mktemp("site"), layout=request.param) as fleet,
        contextlib.closing(Site(fleet)) as site,
    ):
        yield site


@pytest.fixture(scope="module")
def own_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One whose processes a test may kill, if it starts them again."""
    with site_of(tmp_path_factory.mktemp("own")) as fleet, contextlib.closing(Site(fleet)) as site:
        yield site


@pytest.fixture(scope="session")
def gray() -> Callable[..., bytes]:
    return png
