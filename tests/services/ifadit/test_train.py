"""Every stage of the training for some steps, on pictures made by code and teachers of random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from services.ifadit import train as command
from services.ifadit.anonymizer import Ifadit
from services.ifadit.disentangling import Material
from services.ifadit.teachers import FEATURE_LAYERS, MOBILEFACENET, IdentityTeacher
from shared.nn.mobilenetv2 import MobileNetV2Features
from shared.problems import WeightsDamaged
from shared.torchdevice import fast_dtype
from shared.training import Budget, Metrics, Rhythm, restored_average, train

SEED = 5


def normed(name: str, norm: str, shape: tuple[int, ...], rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """A convolution and its batch norm with random numbers."""
    fan_in = shape[1] * shape[2] * shape[3]
    yield f"{name}.weight", torch.randn(shape, generator=rng) * (2 / fan_in) ** 0.5
    for part, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        yield f"{norm}.{part}", torch.full((shape[0],), value)


def identity_weights() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    layers = [("conv1.0", "conv1.1", (64, 3, 3, 3)), ("dw_conv.depthwise", "dw_conv.bn1", (64, 1, 3, 3))]
    layers.append(("dw_conv.pointwise", "dw_conv.bn2", (64, 64, 1, 1)))
    index, width_in = 0, 64
    for expansion, width, repeats, _ in MOBILEFACENET:
        for _ in range(repeats):
            name, hidden = f"features.{index}.conv", width_in * expansion
            layers.append((f"{name}.0.0", f"{name}.0.1", (hidden, width_in, 1, 1)))
            layers.append((f"{name}.1.0", f"{name}.1.1", (hidden, 1, 3, 3)))
            layers.append((f"{name}.2", f"{name}.3", (width, hidden, 1, 1)))
            index, width_in = index + 1, width
    layers.append(("conv2.0", "conv2.1", (512, 128, 1, 1)))
    layers.append(("gdconv.depthwise", "gdconv.bn", (512, 1, 7, 7)))
    layers.append(("conv3", "bn", (128, 512, 1, 1)))
    return dict(pair for name, norm, shape in layers for pair in normed(name, norm, shape, rng))


def feature_weights() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(2)
    layers = [("conv_stem.first_conv", (32, 3, 3, 3)), ("conv_stem.conv_3x3", (32, 1, 3, 3))]
    layers.append(("conv_stem.reduce_1x1", (16, 32, 1, 1)))
    width_in = 16
    for index, width in enumerate((24, 24, 32, 32)[: max(FEATURE_LAYERS) + 1]):
        hidden = 6 * width_in
        layers.append((f"layer.{index}.expand_1x1", (hidden, width_in, 1, 1)))
        layers.append((f"layer.{index}.conv_3x3", (hidden, 1, 3, 3)))
        layers.append((f"layer.{index}.reduce_1x1", (width, hidden, 1, 1)))
        width_in = width
    names = [(f"mobilenet_v2.{name}", shape) for name, shape in layers]
    return dict(
        pair for name, shape in names for pair in normed(f"{name}.convolution", f"{name}.normalization", shape, rng)
    )


@pytest.fixture(scope="module")
def material() -> Material:
    """Forty ovals of other colours on grounds of other colours."""
    rng = torch.Generator().manual_seed(3)
    at = (torch.arange(64) - 31.5) / 32
    oval = torch.sigmoid(20 * (0.7 - (at**2 + at[:, None] ** 2 / 1.4)))
    skin, ground = torch.rand(2, 40, 3, 1, 1, generator=rng)
    blotches = F.interpolate(torch.randn(40, 3, 6, 6, generator=rng) * 0.2, size=64, mode="bicubic")
    pictures = ((skin + blotches) * oval + ground * (1 - oval)).clamp(0, 1)
    teacher = IdentityTeacher(identity_weights())
    with torch.no_grad():
        taught = teacher(pictures, mirror=True)
    features = MobileNetV2Features(feature_weights(), FEATURE_LAYERS).to(fast_dtype("cpu"))
    return Material((pictures * 255).to(torch.uint8), taught, teacher.to(fast_dtype("cpu")), features)


@pytest.fixture(scope="module")
def stages(material: Material, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Metrics]]]:
    """All stages for two steps each, one after the other, and what they reported."""
    out = tmp_path_factory.mktemp("run")
    said: dict[str, list[Metrics]] = {}
    for stage in ("encoder", "disentangle", "anonymize"):
        learner = command.learner(stage, out, material, SEED)
        said[stage] = []

        def note(step: int, of: int, metrics: Metrics, to: list[Metrics] = said[stage]) -> None:
            to.append(metrics)

        train(learner, out / stage, Budget(2), SEED, 0.9, note, Rhythm(1))
    return out, said


def test_every_term_of_every_stage_is_a_finite_number(stages: tuple[Path, dict[str, list[Metrics]]]) -> None:
    for lines in stages[1].values():
        assert len(lines) == 2
        for metrics in lines:
            assert metrics
            assert all(abs(value) < float("inf") for value in metrics.values())


def test_the_last_stage_changes_every_network_that_ships(stages: tuple[Path, dict[str, list[Metrics]]]) -> None:
    before, after = restored_average(stages[0] / "disentangle"), restored_average(stages[0] / "anonymize")
    for part in ("E_id", "E_attr", "M", "G", "T", "ICL"):
        names = [name for name in before if name.startswith(f"model.{part}.") and "perm" not in name]
        assert any(not torch.equal(before[name], after[name]) for name in names), part
    permutations = [name for name in before if "w_perm" in name]
    assert permutations
    assert all(torch.equal(before[name], after[name]) for name in permutations)


def test_the_export_is_a_model_that_fits_the_repository(
    stages: tuple[Path, dict[str, list[Metrics]]], material: Material, tmp_path: Path
) -> None:
    command.export(stages[0], tmp_path, SEED)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 12_000_000
    model = Ifadit.load(tmp_path)
    x = material.pictures[:2].float() / 255
    k = torch.randn(2, model.config.key_dim, generator=torch.Generator().manual_seed(1))
    drawn = model.anonymize(x, k).composite
    assert drawn.shape == x.shape
    assert bool(drawn.isfinite().all())


def test_a_stage_that_was_killed_goes_on_with_the_same_numbers(
    stages: tuple[Path, dict[str, list[Metrics]]], material: Material, tmp_path: Path
) -> None:
    (tmp_path / "encoder").symlink_to(stages[0] / "encoder")
    (tmp_path / "disentangle").symlink_to(stages[0] / "disentangle")

    class Killed(Exception):
        pass

    def kill(step: int, of: int, metrics: Metrics) -> None:
        raise Killed

    def silent(step: int, of: int, metrics: Metrics) -> None:
        return None

    with pytest.raises(Killed):
        train(
            command.learner("anonymize", tmp_path, material, SEED),
            tmp_path / "anonymize",
            Budget(2),
            SEED,
            0.9,
            lambda step, of, metrics: kill(step, of, metrics) if step == 2 else None,
            Rhythm(1, 0.0),
        )
    train(command.learner("anonymize", tmp_path, material, SEED), tmp_path / "anonymize", Budget(2), SEED, 0.9, silent)
    whole, resumed = restored_average(stages[0] / "anonymize"), restored_average(tmp_path / "anonymize")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def folder(stages: tuple[Path, dict[str, list[Metrics]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages above made, as a model folder in half precision."""
    folder = tmp_path_factory.mktemp("start") / "small"
    command.export(stages[0], folder, SEED)
    return folder


class TestStart:
    """`--start`: training that goes on from the networks of a model folder."""

    def test_it_begins_with_the_folders_numbers_and_a_new_discriminator(self, folder: Path) -> None:
        model, discriminator = command.fresh(SEED, folder)
        for name, value in Ifadit.load(folder).state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
        for name, value in command.fresh(SEED)[1].state_dict().items():
            assert torch.equal(discriminator.state_dict()[name], value), name

    def test_a_stage_goes_on_from_the_folder_and_changes_it(
        self, folder: Path, material: Material, tmp_path: Path
    ) -> None:
        out = tmp_path / "further"
        trained = command.run("disentangle", out, material, Budget(1), SEED, Rhythm(1), folder)
        assert trained.step == 1
        before = Ifadit.load(folder).state_dict()
        after = {
            name.removeprefix("model."): value
            for name, value in restored_average(out / "disentangle").items()
            if name.startswith("model.")
        }
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("E_id."))
        learned = [name for name in before if name.startswith("E_attr.") and before[name].is_floating_point()]
        assert any(not torch.equal(after[name], before[name]) for name in learned)
        for name in learned:  # one step away, not another draw of random numbers
            torch.testing.assert_close(after[name], before[name], atol=0.05, rtol=0.2)

    def test_an_encoder_that_was_trained_further_counts_more_than_the_folders(
        self, folder: Path, stages: tuple[Path, dict[str, list[Metrics]]], material: Material, tmp_path: Path
    ) -> None:
        out = tmp_path / "further"
        out.mkdir()
        (out / "encoder").symlink_to(stages[0] / "encoder")
        networks = command.learner("disentangle", out, material, SEED, folder).networks.state_dict()
        kept = Ifadit.load(folder).state_dict()
        trained = {f"E_id.{name}": value for name, value in restored_average(stages[0] / "encoder").items()}
        assert all(torch.equal(networks[f"model.{name}"], value) for name, value in trained.items())
        assert any(not torch.equal(kept[name], value) for name, value in trained.items())  # the folder's is rounded

    def test_a_folder_that_holds_another_model_is_refused(self, folder: Path, tmp_path: Path) -> None:
        for file in folder.iterdir():
            (tmp_path / file.name).symlink_to(folder / file.name.replace("G.safetensors", "M.safetensors"))
        with pytest.raises(WeightsDamaged):
            command.fresh(SEED, tmp_path)
