from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.ifadit import checkpoint
from services.ifadit.anonymizer import IdentityTransformUnstable, Ifadit
from services.ifadit.configuration import PAPER, IfaditConfig
from services.ifadit.flow import CouplingBlock
from services.ifadit.masks import compose
from shared.problems import WeightsDamaged
from tests.services.ifadit.tiny import TINY, tiny_model

RNG = torch.Generator().manual_seed(7)
X = torch.rand(4, 3, 16, 16, generator=RNG)
K = torch.randn(4, 12, generator=RNG)
WRONG = torch.randn(4, 12, generator=RNG)


@pytest.fixture(scope="module")
def model() -> Ifadit:
    return tiny_model()


class TestDirections:
    def test_faces_of_a_batch_with_keys_of_their_own_come_out_as_alone(self, model: Ifadit) -> None:
        together, back = model.anonymize(X, K), model.recover(X, K)
        for i in range(len(X)):
            alone = model.anonymize(X[i : i + 1], K[i : i + 1])
            torch.testing.assert_close(together.composite[i : i + 1], alone.composite, atol=1e-4, rtol=0)
            alone = model.recover(X[i : i + 1], K[i : i + 1])
            torch.testing.assert_close(back.composite[i : i + 1], alone.composite, atol=1e-4, rtol=0)

    def test_each_face_gets_its_own_key(self, model: Ifadit) -> None:
        face = X[:1].expand(4, -1, -1, -1)
        identities = model.anonymize(face, K).identity
        assert torch.pdist(identities).min() > 1e-3

    def test_anonymizing_follows_the_equations(self, model: Ifadit) -> None:
        drawn = model.anonymize(X, K)
        z, c = model.E_id(X), model.G.style(K)
        moved = model.T(z.double(), c.double())[0].float()
        unit = moved / moved.norm(dim=1, keepdim=True)
        rows = torch.cat([8 * unit[:, None].expand(-1, 6, -1), model.E_attr(X)], dim=2)
        picture = (model.G(model.M.model(rows)) + 1) / 2
        torch.testing.assert_close(drawn.identity, moved)
        torch.testing.assert_close(drawn.picture, picture)
        torch.testing.assert_close(drawn.composite, compose(picture.clamp(0, 1), X, model.mean_face_mask()))

    def test_recovering_follows_the_equations(self, model: Ifadit) -> None:
        drawn = model.recover(X, K)
        e = model.E_id(X)
        u = e + model.ICL.model(e)
        back = model.T.inverse(u.double(), model.G.style(K).double())[0].float()
        torch.testing.assert_close(drawn.start, u)
        torch.testing.assert_close(drawn.identity, back)
        assert not torch.allclose(model.recover(X, WRONG).identity, back, atol=1e-2)

    def test_outside_the_mask_every_pixel_stays(self, model: Ifadit) -> None:
        mask = torch.zeros(1, 1, 16, 16)
        mask[..., 4:12, 4:12] = 1
        composite = model.anonymize(X, K, mask).composite
        assert torch.equal(torch.where(mask == 0, composite, 0), torch.where(mask == 0, X, 0))
        assert composite.min() >= 0
        assert composite.max() <= 1

    def test_health_names_the_worst_of_each_face(self, model: Ifadit) -> None:
        health = model.anonymize(X, K).health
        assert health.round_trip.shape == health.max_log_scale.shape == health.norm.shape == (4,)
        assert health.round_trip.max() < 1e-10
        assert 0 < health.max_log_scale.min() <= health.max_log_scale.max() <= TINY.flow.clamp

    def test_autocast_leaves_the_identity_alone(self, model: Ifadit) -> None:
        exact = model.anonymize(X, K).identity
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model.anonymize(X, K).identity, exact)

    def test_a_transform_that_cannot_be_undone_is_an_error_not_a_picture(self) -> None:
        model = tiny_model()
        for block in model.T.module_list:
            cast(CouplingBlock, block).w_perm_inv.copy_(torch.eye(10))
        with pytest.raises(IdentityTransformUnstable, match="4 of 4 faces"):
            model.anonymize(X, K)
        with pytest.raises(IdentityTransformUnstable):
            model.recover(X, K)

    def test_a_key_for_all_faces_is_refused(self, model: Ifadit) -> None:
        with pytest.raises(ValueError, match="one a face"):
            model.anonymize(X, K[:1])
        with pytest.raises(ValueError, match="one a face"):
            model.recover(X, K[:, :5])
        with pytest.raises(ValueError, match="faces must be"):
            model.anonymize(X[:, :, :8], K)

    def test_what_was_drawn_does_not_print_identities(self, model: Ifadit) -> None:
        assert "tensor" not in repr(model.anonymize(X, K))

    def test_the_transform_runs_in_float64(self, model: Ifadit) -> None:
        assert {tensor.dtype for tensor in model.T.state_dict().values()} == {torch.float64}


class TestFolder:
    def test_a_model_survives_its_folder(self, model: Ifadit, tmp_path: Path) -> None:
        model.save(tmp_path)
        loaded = Ifadit.load(tmp_path)
        assert loaded.config == TINY
        assert torch.equal(loaded.anonymize(X, K).composite, model.anonymize(X, K).composite)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())

    def test_half_precision_halves_the_files_and_hardly_changes_the_faces(self, model: Ifadit, tmp_path: Path) -> None:
        model.save(tmp_path / "full")
        model.save(tmp_path / "half", torch.float16)
        loaded = Ifadit.load(tmp_path / "half")
        assert loaded.G.input.input.dtype == torch.float32
        assert {tensor.dtype for tensor in loaded.T.state_dict().values()} == {torch.float64}
        assert (loaded.recover(X, K).composite - model.recover(X, K).composite).abs().mean() < 0.01
        stored = load_file(tmp_path / "half" / "G.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
        assert load_file(tmp_path / "half" / "T.safetensors")["module_list.0.w_perm"].dtype == torch.uint8

    def test_a_number_too_large_for_half_precision_is_named(self, tmp_path: Path) -> None:
        model = tiny_model()
        model.G.conv1.activate.bias[3] = 1e6
        with pytest.raises(ValueError, match=r"conv1\.activate\.bias"):
            model.save(tmp_path, torch.float16)

    def test_another_process_draws_the_same_bits(self, model: Ifadit, tmp_path: Path) -> None:
        model.save(tmp_path / "model")
        save_file({"x": X, "k": K}, tmp_path / "in.safetensors")
        program = (
            "import sys, pathlib, hashlib, torch; from safetensors.torch import load_file;"
            "from services.ifadit.anonymizer import Ifadit; torch.set_num_threads(int(sys.argv[2]));"
            "folder = pathlib.Path(sys.argv[1]); stored = load_file(folder / 'in.safetensors');"
            "t = {name: tensor.clone() for name, tensor in stored.items()};"
            "m = Ifadit.load(folder / 'model'); a = (m.anonymize(t['x'], t['k']).composite * 255).round() / 255;"
            "b = m.recover(a, t['k']).composite;"
            "print(hashlib.sha256(a.numpy().tobytes() + b.numpy().tobytes()).hexdigest())"
        )
        command = [sys.executable, "-c", program, str(tmp_path), str(torch.get_num_threads())]
        there = subprocess.run(command, cwd=Path(__file__).parents[3], check=True, capture_output=True, text=True)
        a = (model.anonymize(X, K).composite * 255).round() / 255
        b = model.recover(a, K).composite
        assert there.stdout.strip() == hashlib.sha256(a.numpy().tobytes() + b.numpy().tobytes()).hexdigest()

    def test_the_digest_covers_every_file_and_the_noise_maps(self, model: Ifadit, tmp_path: Path) -> None:
        model.save(tmp_path)
        first = checkpoint.digest(tmp_path)
        assert first == checkpoint.digest(tmp_path)
        assert len(bytes.fromhex(first)) == hashlib.sha256().digest_size
        tensors = load_file(tmp_path / "G.safetensors")
        tensors["noises.noise_1"][0, 0, 0, 0] += 1
        save_file(tensors, tmp_path / "G.safetensors")
        second = checkpoint.digest(tmp_path)
        (tmp_path / "config.json").write_text(
            dataclasses.replace(TINY, face=dataclasses.replace(TINY.face, center=(0.5, 0.5))).to_json()
        )
        assert len({first, second, checkpoint.digest(tmp_path)}) == 3

    @pytest.mark.parametrize("damage", ["missing file", "truncated", "missing tensor", "unknown tensor", "shape"])
    def test_damage_is_found_and_named(self, model: Ifadit, tmp_path: Path, damage: str) -> None:
        model.save(tmp_path)
        path = tmp_path / "ICL.safetensors"
        tensors = load_file(path)
        match damage:
            case "missing file":
                path.unlink()
            case "truncated":
                path.write_bytes(path.read_bytes()[:-8])
            case "missing tensor":
                del tensors["model.0.bias"]
                save_file(tensors, path)
            case "unknown tensor":
                save_file(tensors | {"model.9.bias": torch.zeros(1)}, path)
            case "shape":
                save_file(tensors | {"model.0.bias": torch.zeros(3)}, path)
        expected = {"missing tensor": r"model\.0\.bias is missing", "unknown tensor": r"model\.9\.bias is unknown"}
        with pytest.raises(WeightsDamaged, match=expected.get(damage, r"ICL\.safetensors")):
            Ifadit.load(tmp_path)


class TestConfiguration:
    @pytest.mark.parametrize("config", [PAPER, TINY])
    def test_it_survives_its_text(self, config: IfaditConfig) -> None:
        assert IfaditConfig.from_json(config.to_json()) == config

    @pytest.mark.parametrize("damage", ["unknown", "missing", "type", "misfit", "scheme", "inner", "no json"])
    def test_another_text_is_refused(self, damage: str) -> None:
        plain = json.loads(TINY.to_json())
        match damage:
            case "unknown":
                plain["extra"] = 1
            case "missing":
                del plain["flow"]
            case "type":
                plain["flow"]["dim"] = "10"
            case "misfit":
                plain["flow"]["dim"] = 11
            case "scheme":
                plain["key_scheme"] = "v3"
            case "inner":
                plain["identity"]["trunk"]["extra"] = 1
        with pytest.raises(ValueError, match=r"not a configuration of iFADIT"):
            IfaditConfig.from_json("{" if damage == "no json" else json.dumps(plain))

    def test_a_folder_without_a_configuration_is_damaged(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsDamaged, match=r"config\.json"):
            Ifadit.load(tmp_path)
