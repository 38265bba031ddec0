"""The plain distances against their definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from services.dlsr.baselines import Baselines, ledoit_wolf
from services.dlsr.metrics import aupr, auroc, fpr95, paired_interval

BOUNDARIES = (4, 9)


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(60, 3, generator=rng) @ torch.randn(3, 9, generator=rng) + 0.2 * torch.randn(
        60, 9, generator=rng
    )


@pytest.fixture(scope="module")
def baselines(vectors: torch.Tensor) -> Baselines:
    return Baselines.fit(vectors, 0, "cpu", bank=60)


def test_the_shrinkage_is_the_one_of_the_definition(vectors: torch.Tensor) -> None:
    x = vectors.double().numpy()
    x = x - x.mean(0)
    n, p = x.shape
    s = x.T @ x / n
    target = np.trace(s) / p * np.eye(p)
    away = ((s - target) ** 2).sum()
    noise = sum(((np.outer(row, row) - s) ** 2).sum() for row in x) / n**2
    covariance, shrinkage = ledoit_wolf(x)
    np.testing.assert_allclose(covariance, s)
    assert shrinkage == pytest.approx(min(noise, away) / away)
    assert 0 < shrinkage < 1


def test_distances_are_those_of_their_definitions(vectors: torch.Tensor, baselines: Baselines) -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=(5, 9))
    x = vectors.double().numpy()
    mean = x.mean(0)
    s = baselines.covariance.double().numpy()
    np.testing.assert_allclose(s, (x - mean).T @ (x - mean) / len(x), rtol=2**-11, err_msg="rounded to half precision")
    shrunk = (1 - baselines.shrinkage) * s + baselines.shrinkage * np.trace(s) / 9 * np.eye(9)
    _, axes = np.linalg.eigh(s)
    share = np.cumsum(np.linalg.eigvalsh(s)[::-1]) / np.trace(s)
    kept = axes[:, ::-1][:, : int((share < 0.95).sum()) + 1]
    bank = (baselines.bank * baselines.scales[:, None]).double().numpy()
    assert np.abs(np.sort(bank, axis=0) - np.sort(x, axis=0)).max() < 0.02 * np.abs(x).max()
    expected = {
        "distance_to_mean": [((row - mean) ** 2).sum() for row in z],
        "mahalanobis": [(row - mean) @ np.linalg.inv(shrunk) @ (row - mean) for row in z],
        "pca": [((row - mean - kept @ (kept.T @ (row - mean))) ** 2).sum() for row in z],
        "knn": [np.sort(((row - bank) ** 2).sum(1))[:10].mean() for row in z],
    }
    for name, values in expected.items():
        parts = getattr(baselines, name)(torch.from_numpy(z).float(), BOUNDARIES)
        assert parts.shape == (5, 2)
        np.testing.assert_allclose(parts.sum(1).numpy(), values, rtol=2e-4)


class TestMetrics:
    def test_they_are_those_of_the_definitions(self) -> None:
        rng = np.random.default_rng(2)
        ind, ood = rng.integers(0, 30, 80).astype(np.float64), rng.integers(10, 40, 50).astype(np.float64)
        pairs = (ood[:, None] > ind) + 0.5 * (ood[:, None] == ind)
        assert auroc(ind, ood) == pytest.approx(pairs.mean())
        accepted = np.sort(ind)[int(np.ceil(0.95 * 79))]
        assert fpr95(ind, ood) == pytest.approx((ood <= accepted).mean())
        points = [((ood >= t).sum(), (ood >= t).sum() + (ind >= t).sum()) for t in sorted({*ind, *ood}, reverse=True)]
        found = 0
        area = 0.0
        for hits, called in points:
            area += (hits - found) / len(ood) * hits / called
            found = hits
        assert aupr(ind, ood) == pytest.approx(area)

    def test_an_interval_holds_the_difference_and_is_the_same_again(self) -> None:
        rng = np.random.default_rng(3)
        ind = rng.normal(size=200)
        ood = rng.normal(1, size=100)
        better = (ind, ind + rng.normal(size=200)), [(ood, ood + rng.normal(size=100))]
        difference, low, high = paired_interval(*better, 100, 0)
        assert low <= difference <= high
        assert low > 0, "noise on the scores makes them worse"
        assert paired_interval(*better, 100, 0) == (difference, low, high)


def test_at_most_so_many_neighbours_are_kept_as_are_asked_for(vectors: torch.Tensor) -> None:
    few = Baselines.fit(vectors, 0, "cpu", bank=20)
    assert len(few.bank) == len(few.scales) == 20
    assert few.knn(vectors[:3], BOUNDARIES).shape == (3, 2)


def test_the_statistics_survive_the_disk(baselines: Baselines, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from services.dlsr.detector import _packed, _unpacked

    save_file(_packed(baselines), tmp_path / "baselines.safetensors")
    read = _unpacked(tmp_path / "baselines.safetensors", "cpu")
    z = torch.randn(4, 9)
    for name in ("distance_to_mean", "mahalanobis", "pca", "knn"):
        assert torch.equal(getattr(read, name)(z, BOUNDARIES), getattr(baselines, name)(z, BOUNDARIES)), name
