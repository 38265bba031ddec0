"""Published files become models: which network, which chain, which way of walking it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from services.tad_sr import convert
from services.tad_sr.denoiser import UNetModelSwin
from services.tad_sr.pipeline import TadSrPipeline
from shared.publishedweights import WeightsRefused
from shared.resshift import checkpoint
from shared.resshift.autoencoder import VqAutoencoder
from shared.resshift.referenceconfig import published_buffers
from tests.services.tad_sr.tiny import TINY, tiny_denoiser
from tests.shared.resshift.tiny import F4

F8 = F4 | {"embed_dim": 8, "z_channels": 8, "ch_mult": [1, 1, 1, 1], "num_res_blocks": [1, 1, 1, 1]}
FACE = TINY | {"in_channels": 8, "out_channels": 8, "lq_size": 128}


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published networks, but for their sizes."""
    monkeypatch.setattr(convert, "PAPER", TINY)
    monkeypatch.setattr(convert, "PAPER_FACE", FACE)
    monkeypatch.setattr(checkpoint, "PAPER_F4", F4)
    monkeypatch.setattr(checkpoint, "PAPER_F8", F8)


def publish(folder: Path, name: str, network: UNetModelSwin | VqAutoencoder, **wrapper: Any) -> Path:
    state = network.state_dict()
    if isinstance(network, UNetModelSwin):
        state |= published_buffers(network)
    torch.save({"state_dict": state, **wrapper} if wrapper else state, folder / name)
    return folder / name


@pytest.fixture
def published(tmp_path: Path) -> Path:
    publish(tmp_path, "TAD-SR.pth", tiny_denoiser(3), iters_start=30_000)
    publish(tmp_path, "autoencoder_vq_f4.pth", VqAutoencoder(**F4))
    return tmp_path


def loaded(folder: Path) -> TadSrPipeline:
    return TadSrPipeline.load(folder, torch.device("cpu"))


def test_a_student_goes_in_one_step(published: Path, tmp_path: Path) -> None:
    convert.convert([published], tmp_path / "model")
    model = loaded(tmp_path / "model")
    expected = tiny_denoiser(3).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.denoiser.state_dict().items())
    assert len(model.chain) == 1
    assert model.schedule.sqrt_eta[[0, -1]].tolist() == pytest.approx([0.02, 0.99])
    assert (model.tiles.scale, model.tiles.tile, model.tiles.multiple) == (4, 256, 64)


def test_a_teacher_walks_its_whole_chain(published: Path, tmp_path: Path) -> None:
    (published / "TAD-SR.pth").rename(published / "resshift_realsrx4_s15_v1.pth")
    convert.convert([published], tmp_path / "model")
    assert len(loaded(tmp_path / "model").chain) == 15


def test_faces_keep_their_size_on_the_capped_chain(tmp_path: Path) -> None:
    files = [
        publish(tmp_path, "TAD-faceir.pth", tiny_denoiser(3, **FACE)),
        publish(tmp_path, "ffhq512_vq_f8_dim8_face.pth", VqAutoencoder(**F8)),
    ]
    convert.convert(files, tmp_path / "model")
    model = loaded(tmp_path / "model")
    assert (model.tiles.scale, model.tiles.tile, model.tiles.channels, model.tiles.factor) == (1, 512, 8, 8)
    assert model.schedule.sqrt_eta.tolist() == pytest.approx([0.001**0.5, 0.37644, 0.667323, 0.99], abs=1e-6)


def test_an_autoencoder_of_other_latents_is_refused(tmp_path: Path) -> None:
    files = [
        publish(tmp_path, "TAD-SR.pth", tiny_denoiser(3)),
        publish(tmp_path, "ffhq512_vq_f8_dim8_face.pth", VqAutoencoder(**F8)),
    ]
    with pytest.raises(WeightsRefused, match=r"8 channels.* of 3: they do not belong together"):
        convert.convert(files, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_network_of_another_size_is_refused_by_its_tensor(published: Path, tmp_path: Path) -> None:
    publish(published, "TAD-SR.pth", tiny_denoiser(3, model_channels=64))
    with pytest.raises(WeightsRefused, match=r"TAD-SR\.pth: time_embed\.0\.weight is"):
        convert.convert([published], tmp_path / "model")
    assert not (tmp_path / "model").exists()
