"""Published files, as training programs leave them, become networks; anything else is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.publishedweights import WeightsRefused
from shared.resshift.autoencoder import VqAutoencoder
from shared.resshift.checkpoint import build, build_autoencoder, find, read
from tests.shared.resshift.tiny import F4, tiny

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    return dict(tiny().autoencoder.state_dict())


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "written",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "iters_start": 3, "amp_scaler": {"scale": 1.0}},
        lambda state: prefixed(state, "module."),
        lambda state: {"state_dict": prefixed(state, "module._orig_mod.")},
        lambda state: state | {"loss.discriminator.weight": torch.zeros(3)},
        lambda state: {name: tensor.double() for name, tensor in state.items()},
    ],
)
def test_every_form_that_training_leaves_is_read(
    state: State, written: Callable[[State], dict[str, Any]], tmp_path: Path
) -> None:
    torch.save(written(state), tmp_path / "ae.pth")
    network = build(VqAutoencoder, F4, read(tmp_path / "ae.pth"))
    loaded = network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert all(tensor.dtype == torch.float32 for tensor in loaded.values())


def without(state: State, name: str) -> State:
    return {other: tensor for other, tensor in state.items() if other != name}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (lambda state: without(state, "quant_conv.bias"), r"ae\.pth: quant_conv\.bias is missing"),
        (lambda state: state | {"quant_conv.bias": torch.zeros(7)}, r"quant_conv\.bias is \(7,\), not \(3,\)"),
        (lambda state: state | {"quant_conv.bias": torch.full((3,), torch.inf)}, r"quant_conv\.bias has numbers"),
        (lambda state: {"state_dict": 3}, "state_dict is int"),
        (lambda state: {"quant_conv.bias": "text"}, r"quant_conv\.bias is str"),
        (lambda state: [1, 2], "holds list"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    state: State, written: Callable[[State], Any], said: str, tmp_path: Path
) -> None:
    torch.save(written(state), tmp_path / "ae.pth")
    with pytest.raises(WeightsRefused, match=said):
        build(VqAutoencoder, F4, read(tmp_path / "ae.pth"))


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("opened",)


def test_a_pickle_with_code_is_not_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"quant_conv.bias": Trap()}, tmp_path / "ae.pth")
    with pytest.raises(WeightsRefused, match="more than numbers"):
        read(tmp_path / "ae.pth")
    assert "opened" not in capsys.readouterr().out


def test_files_are_known_by_what_they_hold(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "a.pth")
    torch.save({"time_embed.0.weight": torch.zeros(1)}, tmp_path / "b.pth")
    torch.save({"something.else": torch.zeros(1)}, tmp_path / "c.pth")
    (tmp_path / "notes.txt").write_text("nothing")
    found = find([tmp_path])
    assert (found.denoiser.name, found.autoencoder.name) == ("b.pth", "a.pth")
    with pytest.raises(WeightsRefused, match=r"quantize.*autoencoder.*found none"):
        find([tmp_path / "b.pth"])
    torch.save(state, tmp_path / "again.pth")
    with pytest.raises(WeightsRefused, match=r"found a\.pth, again\.pth|found again\.pth, a\.pth"):
        find([tmp_path])


def test_an_autoencoder_of_another_size_is_no_published_one(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "ae.pth")
    with pytest.raises(WeightsRefused, match=r"\(16, 3\), of no published"):
        build_autoencoder(read(tmp_path / "ae.pth"))
