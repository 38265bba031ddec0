"""Published checkpoints into a model folder: names, and what is refused."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from services.dlsr import convert
from services.dlsr.convert import WeightsRefused, lfdn
from services.dlsr.detector import Detector, read_config
from services.dlsr.encoder import network_of
from services.dlsr.lfdn import LFDN, LFDNConfig
from services.dlsr.resnet import ResNet50
from services.dlsr.schedule import PAPER
from shared.nn.efficientnet import B4, EfficientNet

KEYS = json.loads((Path(__file__).parents[2] / "golden" / "dlsr" / "paper_keys.json").read_text())
INFO = KEYS["_info"]
TINY = LFDNConfig(720, 24, 16, 8, 2)


def published(config: LFDNConfig, seed: int) -> dict[str, Tensor]:
    """A checkpoint's state dict for a network of some size, as the reference writes it."""
    with torch.device("meta"):
        names = LFDN(config).state_dict()
    rng = torch.Generator().manual_seed(seed)
    state = {"betas": torch.from_numpy(PAPER.betas).float(), "model_ema.decay": torch.tensor(0.9999)}
    state["model_ema.num_updates"] = torch.tensor(7, dtype=torch.int32)
    for name, value in names.items():
        state[f"model.diffusion_model.{name}"] = torch.randn(value.shape, generator=rng)
        state["model_ema.diffusion_model" + name.replace(".", "")] = torch.randn(value.shape, generator=rng)
    state["cond_stage_model.embedding.weight"] = torch.zeros(1, 720)
    return state


def backbone(shapes: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(3) if name.endswith("_tracked") else torch.rand(tuple(shape), generator=rng) + 0.1
        for name, shape in shapes.items()
    }


B4_SHAPES = {name.removeprefix("pretrained_encoder.backbone."): shape for name, shape in KEYS["encoder"].items()}


def write(folder: Path, name: str, state: Mapping[str, Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    args = argparse.Namespace(lr=1e-5, batch_size=256)
    torch.save({"model": dict(state), "model_ema": None, "epoch": 149, "args": args, "optimizer": {}}, folder / name)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny network, both checkpoints, and B4's own file of the right names."""
    folder = tmp_path_factory.mktemp("published")
    write(folder, "checkpoint-last.pth", published(TINY, 1))
    write(folder, "checkpoint-0.pth", published(TINY, 2))
    torch.save(backbone(B4_SHAPES, 3), folder / "efficientnet-b4-6ed6700e.pth")
    return folder


class TestNames:
    def test_the_network_of_the_paper_has_exactly_the_published_names(self) -> None:
        with torch.device("meta"):
            network = LFDN(LFDNConfig(720, 1440, 1440, 720, 16))
        own = {f"model.diffusion_model.{name}": list(value.shape) for name, value in network.state_dict().items()}
        assert own == {name: shape for name, shape in KEYS["lfdn"].items() if name.startswith("model.")}
        averaged = {f"model_ema.{name.removeprefix('model.').replace('.', '')}": shape for name, shape in own.items()}
        stored = {name: shape for name, shape in KEYS["lfdn"].items() if name.startswith("model_ema.diffusion")}
        assert averaged == stored
        assert sum(value.numel() for value in network.state_dict().values()) == INFO["n_params_lfdn"]

    def test_the_resnet_variant_differs_where_the_paper_says(self) -> None:
        with torch.device("meta"):
            network = LFDN(LFDNConfig(1792, 1440, 1440, 720, 16)).state_dict()
        for name, shape in INFO["resnet50_variant_lfdn_if_widths_unchanged"]["keys_that_differ"].items():
            assert list(network[name].shape) == shape

    def test_the_encoder_has_the_published_names_but_for_the_head(self) -> None:
        with torch.device("meta"):
            own = {name: list(value.shape) for name, value in EfficientNet(B4).state_dict().items()}
        head = {name for name in B4_SHAPES if name.startswith(("_conv_head.", "_bn1.", "_fc."))}
        assert own == {name: shape for name, shape in B4_SHAPES.items() if name not in head}
        assert sum(torch.Size(shape).numel() for shape in B4_SHAPES.values()) == INFO["encoder_n_params"]


class TestConverting:
    def test_the_averages_are_taken_and_the_encoder_comes_along(self, files: Path, tmp_path: Path) -> None:
        convert.convert([files], tmp_path / "model")
        detector = Detector.load(tmp_path / "model", "cpu")
        end, first = published(TINY, 1), published(TINY, 2)
        name = "model_ema.diffusion_modelres_blocks1in_layers2weight"
        block = detector.end.get_parameter("res_blocks.1.in_layers.2.weight")
        assert torch.equal(block, end[name])
        assert detector.first is not None
        assert torch.equal(detector.first.get_parameter("res_blocks.1.in_layers.2.weight"), first[name])
        assert detector.encoder.dimension == 720
        assert detector.kinds == ("mse", "mfsim", "mfsim_all", "lr")
        assert detector.calibration == {}

    def test_the_encoder_may_come_out_of_the_checkpoint(self, tmp_path: Path) -> None:
        own = backbone(B4_SHAPES, 3)
        inside = {f"pretrained_encoder.backbone.{name}": value for name, value in own.items()}
        write(tmp_path / "in", "checkpoint-last.pth", published(TINY, 1) | inside)
        convert.convert([tmp_path / "in"], tmp_path / "model")
        assert read_config(tmp_path / "model").encoder.name == "efficientnet-b4"
        kept = load_file(tmp_path / "model" / "encoder.safetensors")
        assert [name for name, value in kept.items() if not torch.equal(value, own[name])] == []
        assert not (tmp_path / "model" / "lfdn_first.safetensors").exists()

    def test_a_wider_network_means_resnet(self, tmp_path: Path) -> None:
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in ResNet50().state_dict().items()}
        write(tmp_path / "in", "checkpoint-last.pth", published(LFDNConfig(1792, 16, 16, 8, 1), 1))
        state = backbone(shapes, 4) | {"fc.bias": torch.zeros(1000), "layer4.0.bn1.bias": torch.zeros(512)}
        torch.save(state, tmp_path / "in" / "resnet50-19c8e357.pth")
        convert.convert([tmp_path / "in"], tmp_path / "model")
        detector = Detector.load(tmp_path / "model", "cpu")
        assert detector.encoder.boundaries == (256, 768, 1792)


class TestRefusing:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("model_ema.diffusion_modelout2bias"), "model_ema.diffusion_modelout2bias is missing"),
            (lambda s: s.pop("model.diffusion_model.input_proj.1.weight"), r"input_proj\.1\.weight is missing"),
            (lambda s: s.update({"model_ema.diffusion_modelmore": torch.zeros(1)}), "modelmore is unknown"),
            (lambda s: s.update({"model_ema.diffusion_modelout2bias": torch.zeros(7)}), r"out.2.bias is \(7,\)"),
            (lambda s: s["model_ema.diffusion_modelout2bias"].fill_(torch.nan), "not finite"),
            (lambda s: s["betas"].mul_(2), "betas are not those"),
        ],
    )
    def test_a_checkpoint_that_does_not_fit_is_named(self, change: Any, message: str) -> None:
        state = published(TINY, 1)
        change(state)
        with pytest.raises(WeightsRefused, match=message):
            lfdn(state, "checkpoint-last.pth")

    def test_two_names_for_one_checkpoint_are_refused(self, files: Path, tmp_path: Path) -> None:
        for name in ("checkpoint-last.pth", "checkpoint-0.pth"):
            write(tmp_path / "in", name, published(TINY, 1))
        with pytest.raises(WeightsRefused, match="hold the same numbers"):
            convert.convert([tmp_path / "in", files / "efficientnet-b4-6ed6700e.pth"], tmp_path / "model")
        assert not (tmp_path / "model").exists()

    def test_a_missing_encoder_or_checkpoint_is_asked_for(self, files: Path, tmp_path: Path) -> None:
        with pytest.raises(WeightsRefused, match=r"efficientnet-b4-\*.pth is needed"):
            convert.convert([files / "checkpoint-last.pth"], tmp_path / "model")
        with pytest.raises(WeightsRefused, match=r"checkpoint-last\.pth is needed"):
            convert.convert([files / "checkpoint-0.pth"], tmp_path / "model")

    def test_a_pickle_with_code_is_not_opened(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (tmp_path / "sprung",))

        torch.save({"model": Trap()}, tmp_path / "checkpoint-last.pth")
        with pytest.raises(WeightsRefused, match="not opened"):
            convert.convert([tmp_path], tmp_path / "model")
        assert not (tmp_path / "sprung").exists()

    def test_half_an_encoder_is_no_encoder(self) -> None:
        state = backbone(B4_SHAPES, 3)
        del state["_blocks.7._bn1.weight"]
        with pytest.raises(Exception, match=r"_blocks\.7\._bn1\.weight is missing"):
            network_of("efficientnet-b4", state, "file")
