"""Published files become a model that is served; what does not belong together is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from services.dit_sr import convert, denoiser
from services.dit_sr.pipeline import DitSrPipeline
from shared.publishedweights import WeightsRefused
from shared.resshift.autoencoder import PAPER_F4, PAPER_F8, VqAutoencoder

KEYS = json.loads((Path(__file__).parents[2] / "golden" / "dit-sr" / "paper_keys.json").read_text())
CODEBOOKS = {"f4": (8192, 3), "f8": (4096, 8)}
CPU = torch.device("cpu")


def denoiser_file(folder: Path, configuration: str) -> Path:
    """A file with the published names and shapes. It takes no memory: every tensor is one number."""
    integers = KEYS["_info"]["dtypes"][configuration]
    state = {
        name: torch.zeros(1, dtype=torch.int64 if name in integers else torch.float32).expand(shape)
        for name, shape in KEYS[configuration].items()
    }
    torch.save({"state_dict": {f"module._orig_mod.{name}": t for name, t in state.items()}}, folder / "denoiser.pth")
    return folder / "denoiser.pth"


def autoencoder_file(folder: Path, kind: str, *, whole: bool = False) -> Path:
    state: dict[str, Tensor] = {"quantize.embedding.weight": torch.zeros(1).expand(CODEBOOKS[kind])}
    if whole:
        with torch.device("meta"):
            network = VqAutoencoder(**{"f4": PAPER_F4, "f8": PAPER_F8}[kind])
        state = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in network.state_dict().items()}
    torch.save(state, folder / "autoencoder.pth")
    return folder / "autoencoder.pth"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("configuration", "kind", "config", "options"),
    [
        ("realsr_DiT", "f4", denoiser.PAPER, (4, 15)),
        ("realsr_DiT_Lite", "f4", denoiser.PAPER_LITE, (4, 15)),
        ("faceir_DiT", "f8", denoiser.PAPER_FACE, (1, 4)),
    ],
)
def test_every_published_model_is_converted_and_loads(
    configuration: str, kind: str, config: dict[str, object], options: tuple[int, int], tmp_path: Path
) -> None:
    denoiser_file(tmp_path, configuration)
    autoencoder_file(tmp_path, kind, whole=True)
    (tmp_path / "readme.txt").write_text("not a file of weights")
    convert.convert([tmp_path], tmp_path / "model")
    loaded = DitSrPipeline.load(tmp_path / "model", CPU)
    found = dict(cast("Mapping[str, object]", loaded.denoiser.config))
    assert {name: found[name] for name in config} == config
    assert (loaded.config["scale"], len(loaded.schedule)) == options
    assert loaded.schedule.sqrt_eta[0] == pytest.approx({15: 0.02, 4: 0.1}[options[1]])


@pytest.mark.parametrize(
    ("configuration", "kind"), [("realsr_DiT", "f8"), ("faceir_DiT", "f4")], ids=["photographs", "faces"]
)
def test_an_autoencoder_of_another_model_is_refused(configuration: str, kind: str, tmp_path: Path) -> None:
    files = [denoiser_file(tmp_path, configuration), autoencoder_file(tmp_path, kind)]
    with pytest.raises(WeightsRefused, match="do not belong together"):
        convert.convert(files, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_another_denoiser_is_refused_with_what_tells_it_apart(tmp_path: Path) -> None:
    state = {"time_embed.0.weight": torch.zeros(64, 16), "input_blocks.0.0.weight": torch.zeros(16, 6, 3, 3)}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WeightsRefused, match=r"other\.pth is no published denoiser.*\(64, 16\)"):
        convert.convert([tmp_path / "other.pth", autoencoder_file(tmp_path, "f4")], tmp_path / "model")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = denoiser_file(tmp_path, "realsr_DiT_Lite")
    state = torch.load(path, weights_only=True)["state_dict"]
    del state["module._orig_mod.middle_block.0.blocks.1.norm2.bias"]
    torch.save(state, path)
    with pytest.raises(WeightsRefused, match=r"denoiser\.pth: middle_block\.0\.blocks\.1\.norm2\.bias is missing"):
        convert.convert([path, autoencoder_file(tmp_path, "f4")], tmp_path / "model")
