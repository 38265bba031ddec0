from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor, nn

from services.ifadit import convert
from services.ifadit.anonymizer import Ifadit
from services.ifadit.configuration import PAPER
from services.ifadit.convert import PUBLISHED
from shared.publishedweights import WeightsRefused

KEYS = json.loads((Path(__file__).parents[2] / "golden" / "ifadit" / "paper_keys.json").read_text())
ENTRIES = {
    "E_id": "arcface",
    "E_attr": "psp",
    "M": "latent_mapper",
    "G": "stylegan2_generator",
    "T": "flow",
    "ICL": "icl",
}
FILES = {
    "E_id": "model_ir_se50.pth",
    "E_attr": "attr_best.pth",
    "M": "mlp_best.pth",
    "G": "550000.pt",
    "T": "G_net_ffhq15INN607_20_202528.pth",
    "ICL": "fuse_mlp_ffhq15INN607_20_202528.pth",
}
WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "G": lambda state: {
        "g": state,
        "g_ema": state,
        "args": argparse.Namespace(size=256, lr=0.002),
        "ada_aug_p": 0.0,
        "g_optim": {"state": {}, "param_groups": [{"lr": 0.002}]},
    }
}


def published_state(part: str, *, random: bool) -> dict[str, Tensor]:
    """A state dict of a published file: names and shapes of the reference. Without `random` it takes no memory."""
    rng = torch.Generator().manual_seed(1)
    integers = KEYS["_info"]["dtypes"].get(ENTRIES[part], {})
    state = {}
    for name, shape in KEYS[ENTRIES[part]].items():
        if name in integers:
            state[name] = torch.zeros(shape, dtype=torch.int64)
        elif name.endswith("w_perm"):
            state[name] = torch.eye(shape[0])[torch.randperm(shape[0], generator=rng)]
        elif name.endswith("w_perm_inv"):
            state[name] = state[name.removesuffix("_inv")].T.contiguous()
        elif random:
            state[name] = torch.rand(shape, generator=rng)
        else:
            state[name] = torch.ones(1).expand(shape)
    return state


def write(folder: Path, part: str, state: dict[str, Tensor]) -> Path:
    path = folder / FILES[part]
    torch.save(WRAPPED[part](state) if part in WRAPPED else state, path)
    return path


@pytest.fixture(scope="module")
def networks() -> Ifadit:
    with torch.device("meta"):
        return Ifadit(PAPER)


def load(path: Path, part: str, networks: Ifadit) -> dict[str, Tensor]:
    published = next(published for published in PUBLISHED if published.part == part)
    network: nn.Module = getattr(networks, part)
    return convert.match(convert.read(path, published), network, path.name)


@pytest.mark.parametrize("part", FILES)
def test_every_published_object_loads_by_exact_name(part: str, networks: Ifadit, tmp_path: Path) -> None:
    state = published_state(part, random=part in ("M", "ICL", "T"))
    taken = load(write(tmp_path, part, state), part, networks)
    prefix = "encoder." if part == "E_attr" else ""
    assert list(taken) == list(getattr(networks, part).state_dict())
    for name in list(taken)[:: max(1, len(taken) // 40)]:
        assert torch.equal(taken[name], state[prefix + name])


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize("damage", ["renamed", "reshaped", "missing", "unknown"])
def test_one_wrong_tensor_is_refused_by_name(part: str, damage: str, networks: Ifadit, tmp_path: Path) -> None:
    state = published_state(part, random=False)
    name = [name for name in state if name.endswith("weight") and not name.startswith("decoder.")][-2]
    complaint = name.removeprefix("encoder.").replace(".", r"\.")
    match damage:
        case "renamed":
            state = {("renamed." + n if n == name else n): tensor for n, tensor in state.items()}
        case "reshaped":
            state[name] = torch.ones(7, 3)
        case "missing":
            del state[name]
        case "unknown":
            state["extra.weight"] = torch.ones(1)
            complaint = r"extra\.weight"
    with pytest.raises(WeightsRefused, match=complaint):
        load(write(tmp_path, part, state), part, networks)


def test_the_decoder_of_the_psp_file_may_hold_anything(networks: Ifadit, tmp_path: Path) -> None:
    state = {n: t for n, t in published_state("E_attr", random=False).items() if not n.startswith("decoder.")}
    taken = load(write(tmp_path, "E_attr", state | {"decoder.whatever": torch.ones(3)}), "E_attr", networks)
    assert len(taken) == 565


def test_a_data_parallel_prefix_is_stripped(networks: Ifadit, tmp_path: Path) -> None:
    state = published_state("ICL", random=True)
    taken = load(write(tmp_path, "ICL", {f"module.{n}": t for n, t in state.items()}), "ICL", networks)
    assert all(torch.equal(taken[name], tensor) for name, tensor in state.items())


class TestOrder:
    def test_foreign_names_in_the_right_order_are_taken_and_logged(self, networks: Ifadit, tmp_path: Path) -> None:
        state = published_state("ICL", random=True)
        foreign = {f"layer{i}": tensor for i, tensor in enumerate(state.values())}
        with capture_logs() as logs:
            taken = load(write(tmp_path, "ICL", foreign), "ICL", networks)
        assert all(torch.equal(taken[name], tensor) for name, tensor in state.items())
        assert [(line["event"], line["tensors"]) for line in logs] == [("weights.taken_by_order", 8)]

    def test_foreign_names_in_another_order_are_refused(self, networks: Ifadit, tmp_path: Path) -> None:
        tensors = list(published_state("ICL", random=True).values())
        foreign = {f"layer{i}": tensor for i, tensor in enumerate(tensors[2:] + tensors[:2])}
        with pytest.raises(WeightsRefused, match=r"model\.0\.weight"):
            load(write(tmp_path, "ICL", foreign), "ICL", networks)

    def test_a_shorter_list_of_foreign_names_is_refused(self, networks: Ifadit, tmp_path: Path) -> None:
        foreign = {f"layer{i}": t for i, t in enumerate(list(published_state("ICL", random=True).values())[:-1])}
        with pytest.raises(WeightsRefused, match="7 of 8"):
            load(write(tmp_path, "ICL", foreign), "ICL", networks)


class TestContent:
    def test_a_permutation_whose_inverse_is_another_is_refused(self, networks: Ifadit, tmp_path: Path) -> None:
        state = published_state("T", random=True)
        state["module_list.2.w_perm"] = state["module_list.2.w_perm"].roll(1, 0)
        with pytest.raises(WeightsRefused, match=r"module_list\.2\.w_perm"):
            load(write(tmp_path, "T", state), "T", networks)

    def test_numbers_that_are_not_finite_are_refused(self, networks: Ifadit, tmp_path: Path) -> None:
        state = published_state("ICL", random=True)
        state["model.4.bias"][5] = float("nan")
        with pytest.raises(WeightsRefused, match=r"model\.4\.bias"):
            load(write(tmp_path, "ICL", state), "ICL", networks)

    def test_a_whole_pickled_module_is_never_opened(self, networks: Ifadit, tmp_path: Path) -> None:
        path = tmp_path / FILES["M"]
        torch.save(nn.Linear(2, 2), path)
        with pytest.raises(WeightsRefused, match="pickled"):
            load(path, "M", networks)

    @pytest.mark.parametrize("content", [[1, 2], {"model.0.weight": "text"}, {}])
    def test_what_is_no_state_dict_is_refused(self, content: Any, networks: Ifadit, tmp_path: Path) -> None:
        path = tmp_path / FILES["M"]
        torch.save(content, path)
        with pytest.raises(WeightsRefused, match=r"mlp_best"):
            load(path, "M", networks)

    def test_a_damaged_file_is_refused(self, networks: Ifadit, tmp_path: Path) -> None:
        path = write(tmp_path, "M", published_state("M", random=True))
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(WeightsRefused, match=r"mlp_best"):
            load(path, "M", networks)


class TestFiles:
    def test_all_six_are_needed_and_one_of_each(self, tmp_path: Path) -> None:
        for name in FILES.values():
            (tmp_path / name).touch()
        (tmp_path / "deghosting_weight_1_140.pth").touch()
        assert {part: path.name for part, path in convert.find([tmp_path]).items()} == FILES
        assert convert.find([tmp_path / name for name in FILES.values()]).keys() == FILES.keys()
        (tmp_path / "G_net_other.pth").touch()
        with pytest.raises(WeightsRefused, match="G_net_other"):
            convert.find([tmp_path])
        (tmp_path / "G_net_other.pth").unlink()
        (tmp_path / "550000.pt").unlink()
        with pytest.raises(WeightsRefused, match=r"550000\.pt is needed, found none"):
            convert.find([tmp_path])

    def test_nothing_is_written_when_a_file_is_refused(self, tmp_path: Path) -> None:
        for part in FILES:
            write(tmp_path, part, published_state(part, random=False))
        write(tmp_path, "ICL", {"model.0.weight": torch.ones(3)})
        with pytest.raises(WeightsRefused, match="fuse_mlp"):
            convert.convert([tmp_path], tmp_path / "model")
        assert not (tmp_path / "model").exists()

    @pytest.mark.slow
    def test_the_published_files_become_a_model(self, tmp_path: Path) -> None:
        states = {part: published_state(part, random=True) for part in FILES}
        for part, state in states.items():
            write(tmp_path, part, state)
        convert.convert([tmp_path], tmp_path / "model")
        model = Ifadit.load(tmp_path / "model")
        assert model.config == PAPER
        for part, state in states.items():
            prefix = "encoder." if part == "E_attr" else ""
            for name, tensor in getattr(model, part).state_dict().items():
                assert torch.equal(tensor, state[prefix + name].to(tensor.dtype)), (part, name)
