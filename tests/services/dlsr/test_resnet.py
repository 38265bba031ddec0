"""ResNet-50 up to its third stage, against its definition written out over the published names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from services.dlsr.encoder import PAPER_RESNET, Encoder
from services.dlsr.resnet import ResNet50, load_resnet50
from shared.problems import WeightsDamaged


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    found = {}
    for name, value in ResNet50().state_dict().items():
        drawn = torch.randn(value.shape, generator=rng)
        if value.ndim == 4:
            found[name] = drawn / value[0].numel() ** 0.5
        elif name.endswith("running_var"):
            found[name] = 0.5 + drawn.abs()
        elif value.ndim:
            found[name] = (1 if name.endswith("weight") else 0) + 0.2 * drawn
    return found


def written_out(w: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    def norm(y: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            w[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1e-5).sqrt() * weight + bias

    y = F.relu(norm(F.conv2d(x, w["conv1.weight"], stride=2, padding=3), "bn1"))
    y = F.max_pool2d(y, 3, 2, 1)
    maps = []
    for stage, blocks in ((1, 3), (2, 4), (3, 6)):
        for block in range(blocks):
            p = f"layer{stage}.{block}"
            stride = 2 if block == 0 and stage > 1 else 1
            z = F.relu(norm(F.conv2d(y, w[f"{p}.conv1.weight"]), f"{p}.bn1"))
            z = F.relu(norm(F.conv2d(z, w[f"{p}.conv2.weight"], stride=stride, padding=1), f"{p}.bn2"))
            z = norm(F.conv2d(z, w[f"{p}.conv3.weight"]), f"{p}.bn3")
            if block == 0:
                y = norm(F.conv2d(y, w[f"{p}.downsample.0.weight"], stride=stride), f"{p}.downsample.1")
            y = F.relu(z + y)
        maps.append(y)
    return maps


def test_the_stages_are_those_of_the_definition_folded_or_not(state: dict[str, Tensor]) -> None:
    network = load_resnet50(state | {"fc.weight": torch.zeros(1000, 2048)}, "file")
    x = torch.randn(1, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = written_out(state, x)
        for found in (network(x), network.folded()(x)):
            assert [tuple(map_.shape[1:]) for map_ in found] == [(256, 10, 12), (512, 5, 6), (1024, 3, 3)]
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_an_encoder_of_it_gives_1792_values(state: dict[str, Tensor]) -> None:
    encoder = Encoder(PAPER_RESNET, load_resnet50(state, "file"), "cpu")
    vectors = encoder(torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8))
    assert vectors.shape == (1, 1792)
    assert encoder.boundaries == (256, 768, 1792)


def test_a_file_that_lacks_a_tensor_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsDamaged, match=r"layer2\.1\.bn2\.bias is missing"):
        load_resnet50({name: value for name, value in state.items() if name != "layer2.1.bn2.bias"}, "file")
