from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from shared import golden
from shared.golden import Case, GoldenUnreadable, Observed, compare_tensors, criteria_for
from shared.goldenweights import recipe_weights

ONE = torch.tensor([1.0, 2.0, -4.0])


class TestRecipes:
    """The check values of the format's description."""

    LIKE: ClassVar = {"conv.weight": torch.empty(2, 3, 1, 1)}

    def test_unit_fan_in(self, tmp_path: Path) -> None:
        made = recipe_weights({"recipe": "unit-fan-in", "seed": 11}, self.LIKE, tmp_path)["conv.weight"]
        expected = [0.27116546, -0.64212596, 0.06189952, 1.20962644, -0.24831232, -0.44433242]
        np.testing.assert_allclose(made.flatten().numpy(), expected, atol=5e-9)

    def test_crc_xor(self, tmp_path: Path) -> None:
        made = recipe_weights({"recipe": "crc-xor", "seed": 11, "gain": 2}, self.LIKE, tmp_path)["conv.weight"]
        expected = [-0.07743439, -1.12036014, 0.66498607, -0.33873260, 1.33750105, 0.27140009]
        np.testing.assert_allclose(made.flatten().numpy(), expected, atol=1e-7)

    def test_sine(self, tmp_path: Path) -> None:
        norm = {f"bn1.{leaf}": torch.empty(64) for leaf in ("weight", "bias", "running_mean", "running_var")}
        like = {"conv1.weight": torch.empty(64, 1, 7, 7), "layer1.0.bn1.bias": torch.empty(64)} | norm
        like["bn1.num_batches_tracked"] = torch.tensor(7)
        made = recipe_weights({"recipe": "sine", "phase": 0}, like, tmp_path)
        expected = [-0.21430519, -0.11953301, -0.00364776]
        np.testing.assert_allclose(made["conv1.weight"].flatten()[:3].numpy(), expected, atol=5e-9)
        assert made["bn1.num_batches_tracked"] == 7
        np.testing.assert_allclose(made["bn1.running_var"][0], 1 + 0.2 * np.sin(12.9898 + 3), rtol=1e-6)
        np.testing.assert_allclose(made["bn1.weight"][1], 1 + 0.1 * np.sin(2 * 12.9898 + 4), rtol=1e-6)

    def test_spec(self, tmp_path: Path) -> None:
        name = "module_list.0.global_scale"
        kernel = "convs.0.conv.blur.kernel"
        spec: dict[str, dict[str, Any]] = {
            name: {"shape": [1, 512], "kind": "normal", "mean": 9.986479, "std": 0.5},
            "v": {"shape": [3], "kind": "absnormal", "mean": 1.0, "std": 0.1},
            "n": {"shape": [], "kind": "zero"},
            kernel: {"shape": [2, 2], "kind": "keep"},
            "a.w_perm": {"shape": [9, 9], "kind": "perm"},
            "a.w_perm_inv": {"shape": [9, 9], "kind": "perm_inv"},
        }
        (tmp_path / "s.json").write_text(json.dumps({"e": {"seed": 2503, "spec": spec}}))
        like = {name: torch.empty(tuple(rule["shape"])) for name, rule in spec.items()}
        like |= {"n": torch.tensor(3), kernel: torch.full((2, 2), 0.25)}
        made = recipe_weights({"recipe": "spec", "file": "s.json", "entry": "e"}, like, tmp_path)
        np.testing.assert_allclose(made[name][0, :3].numpy(), [9.8339586, 9.8250380, 10.1083412], atol=1e-6)
        assert made["v"].min() >= 1
        assert made["n"].dtype == torch.int64
        assert made["n"] == 0
        assert torch.equal(made[kernel], like[kernel])
        assert torch.equal(made["a.w_perm"] @ made["a.w_perm_inv"], torch.eye(9))
        assert not torch.equal(made["a.w_perm"], torch.eye(9))

    def test_the_check_values_of_the_shipped_spec(self) -> None:
        folder = Path(__file__).parents[1] / "golden" / "ifadit"
        content = json.loads((folder / "weights_spec.json").read_text())
        for place, (*first, total) in content["_formula"]["check_first3_and_sum"].items():
            entry, _, name = place.partition("|")
            shape = content[entry]["spec"][name]["shape"]
            if np.prod(shape) > 300_000:
                continue
            source = {"recipe": "spec", "file": "weights_spec.json", "entry": entry}
            content_of_one = {entry: {"seed": content[entry]["seed"], "spec": {name: content[entry]["spec"][name]}}}
            made = self._one(source, content_of_one, name, shape)
            np.testing.assert_allclose(made.flatten()[:3].numpy(), first, rtol=1e-6)
            np.testing.assert_allclose(made.double().sum().item(), total, rtol=1e-6, atol=1e-4)

    @staticmethod
    def _one(source: dict[str, str], content: dict[str, Any], name: str, shape: list[int]) -> torch.Tensor:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / source["file"]).write_text(json.dumps(content))
            return recipe_weights(source, {name: torch.empty(shape)}, Path(folder))[name]

    @pytest.mark.parametrize(
        ("name", "rule"),
        [
            ("a.relative_position_bias_table", lambda z, n: 0.2 * z),
            ("embedding.weight", lambda z, n: z),
            ("norm.scale_in", lambda z, n: z / n**0.5),
            ("x.adaLN_scale_msa", lambda z, n: z / n**0.5),
        ],
    )
    def test_the_first_rule_of_recipe_1_that_fits_counts(self, name: str, rule: Any, tmp_path: Path) -> None:
        like = {name: torch.empty(4, 6)}
        made = recipe_weights({"recipe": "unit-fan-in", "seed": 0}, like, tmp_path)[name]
        z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal((4, 6))
        np.testing.assert_allclose(made.numpy(), rule(z, 6), rtol=1e-6)

    def test_what_a_recipe_leaves_alone_keeps_the_modules_values(self, tmp_path: Path) -> None:
        like = {"a.attn_mask": torch.full((2, 2), -100.0), "b.index": torch.tensor([3, 4])}
        made = recipe_weights({"recipe": "unit-fan-in", "seed": 0}, like, tmp_path)
        assert all(torch.equal(made[name], tensor) for name, tensor in like.items())
        constant = {"f.srm_conv1.kernel": torch.full((2, 2), 7.0)}
        made = recipe_weights({"recipe": "crc-xor", "seed": 0, "gain": 1}, constant, tmp_path)
        assert torch.equal(made["f.srm_conv1.kernel"], constant["f.srm_conv1.kernel"])

    def test_an_unknown_recipe_or_name_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="cosine"):
            recipe_weights({"recipe": "cosine"}, {}, tmp_path)
        spec = {"e": {"seed": 1, "spec": {"a": {"shape": [2], "kind": "zero"}}}}
        (tmp_path / "s.json").write_text(json.dumps(spec))
        with pytest.raises(ValueError, match="'a'"):
            recipe_weights({"recipe": "spec", "file": "s.json", "entry": "e"}, {}, tmp_path)
        with pytest.raises(ValueError, match="shape"):
            recipe_weights({"recipe": "spec", "file": "s.json", "entry": "e"}, {"a": torch.empty(3)}, tmp_path)


class TestTolerance:
    def test_the_longest_pattern_that_matches_counts(self) -> None:
        tolerance = {"*": {"atol": 1.0}, "grad.*": {"atol": 2.0}, "grad.*.bias": {"atol": 3.0}, "y": {"atol": 4.0}}
        found = [criteria_for(role, tolerance) for role in ("x", "grad.fc.weight", "grad.fc.bias", "y")]
        assert [criteria["atol"] for criteria in found if criteria] == [1.0, 2.0, 3.0, 4.0]
        assert criteria_for("x", {"y": {"atol": 1.0}}) is None
        assert criteria_for("a[0]", {"a[0]": {"atol": 1.0}}) is not None

    @pytest.mark.parametrize(
        ("criteria", "error", "passes"),
        [
            ({"atol": 0.1}, 0.09, True),
            ({"atol": 0.1}, 0.11, False),
            ({"rtol": 0.1}, 0.39, True),
            ({"rtol": 0.1}, 0.41, False),
            ({"atol": 0.1, "outside": 0.34}, 5.0, True),
            ({"atol": 0.1, "outside": 0.32}, 5.0, False),
            ({"mean_abs": 0.2}, 0.59, True),
            ({"mean_abs": 0.2}, 0.61, False),
            ({"rel_l2": 0.1}, 0.45, True),
            ({"rel_l2": 0.1}, 0.46, False),
            ({"rel_max": 0.1}, 0.39, True),
            ({"rel_max": 0.1}, 0.41, False),
            ({"atol": 1.0, "mean_abs": 0.2}, 0.61, False),
            ({"atol": 0}, 0.0, True),
            ({"atol": 0}, 1e-6, False),
        ],
    )
    def test_every_criterion_must_hold(self, criteria: dict[str, float], error: float, passes: bool) -> None:
        ours = ONE.double() + torch.tensor([0, 0, error], dtype=torch.float64)
        result = compare_tensors("y", ours, ONE, criteria)
        assert result.passed is passes
        assert result.error == pytest.approx(error)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_number_that_is_none_fails_unless_it_is_stored_so(self, value: float) -> None:
        bad = torch.tensor([1.0, 2.0, value])
        for criteria in ({"atol": 9.0}, {"mean_abs": 9.0}, {"rel_l2": 9.0}, {"rel_max": 9.0}):
            assert not compare_tensors("y", bad, ONE, criteria).passed
            assert compare_tensors("y", bad, bad, criteria).passed
        assert not compare_tensors("y", ONE, bad, {"atol": 9.0}).passed

    @pytest.mark.parametrize("criteria", [{}, {"absolute": 1.0}])
    def test_criteria_that_say_nothing_fail(self, criteria: dict[str, float]) -> None:
        assert not compare_tensors("y", ONE, ONE, criteria).passed

    def test_another_shape_fails(self) -> None:
        assert "shape" in compare_tensors("y", ONE[None], ONE, {"atol": 9.0}).detail

    @given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9), st.floats(0, 10))
    def test_an_error_is_found_wherever_it_is(self, numbers: list[float], bound: float) -> None:
        stored = torch.tensor(numbers, dtype=torch.float64)
        for i in range(len(numbers)):
            ours = stored.clone()
            ours[i] += bound + 1
            assert not compare_tensors("y", ours, stored, {"atol": bound}).passed


def write(folder: Path, **entry: Any) -> Case:
    """A folder of one case; tensors t.* are stored."""
    save_file({"x": ONE, "t.y": 2 * ONE, "t.z.a": ONE.clone(), "t.z.b": -ONE}, folder / "t.safetensors")
    made: dict[str, Any] = {"name": "n", "kind": "double", "config": {}, "weights": None, "slow": False}
    made["tolerance"] = {"*": {"atol": 0}}
    (folder / "index.json").write_text(json.dumps({"format": 1, "set": "s", "cases": [made | entry]}))
    return golden.cases(folder)[0]


def tensors(**groups: Any) -> dict[str, Any]:
    return {"file": "t.safetensors", "inputs": {"x": "x"}, "outputs": {"y": "t.y"}} | groups


def double(case: Case) -> Observed:
    return Observed({"y": 2 * case.input("x"), "z.a": case.input("x"), "z.b": -case.input("x")})


RUNNERS = {"double": double}


class TestCases:
    def test_a_right_answer_passes_and_a_wrong_one_says_where(self, tmp_path: Path) -> None:
        case = write(tmp_path, tensors=tensors(intermediates={"z.*": "t.z.*", "hidden": "t.y"}))
        result = golden.check(case, RUNNERS)
        assert result.outcome == "passed"
        assert [role.role for role in result.roles] == ["z.a", "z.b", "y"], "intermediates first, hidden ones not"
        result = golden.check(case, {"double": lambda case: Observed({"y": case.input("x"), "z.a": case.input("x")})})
        assert result.outcome == "failed"
        assert [(role.role, role.passed, role.error) for role in result.roles] == [("z.a", True, 0), ("y", False, 4)]

    def test_every_output_must_be_computed(self, tmp_path: Path) -> None:
        case = write(tmp_path, tensors=tensors(outputs={"y": "t.y", "more.*": "t.z.*"}))
        result = golden.check(case, RUNNERS)
        assert [role.role for role in result.roles if not role.passed] == ["more.a", "more.b"]

    def test_a_family_may_be_every_tensor_of_another_file(self, tmp_path: Path) -> None:
        save_file({"a": ONE, "b": ONE.clone()}, tmp_path / "u.safetensors")
        case = write(tmp_path, tensors={"outputs": {"*": "u.safetensors#*"}})
        assert golden.check(case, {"double": lambda _: Observed({"a": ONE, "b": ONE})}).outcome == "passed"
        assert golden.check(case, {"double": lambda _: Observed({"a": ONE})}).outcome == "failed"

    @pytest.mark.parametrize("random", ["standard_normal", "random_sample"])
    def test_an_input_may_be_drawn(self, random: str, tmp_path: Path) -> None:
        generator = {"random": random, "seed": 5, "shape": [2, 3]}
        case = write(tmp_path, tensors=tensors(inputs={"x": generator}))
        expected = getattr(np.random.RandomState(5), random)((2, 3)).astype(np.float32)
        assert np.array_equal(case.input("x").numpy(), expected)

    def test_an_unknown_kind_is_a_failure(self, tmp_path: Path) -> None:
        assert golden.check(write(tmp_path, kind="new", tensors=tensors()), RUNNERS).outcome == "failed"

    def test_a_case_that_needs_what_is_not_there_is_skipped(self, tmp_path: Path) -> None:
        case = write(tmp_path, needs=["clip-vocabulary"], tensors=tensors())
        assert golden.check(case, RUNNERS).outcome == "skipped"
        assert golden.check(case, RUNNERS, have=["clip-vocabulary"]).outcome == "passed"

    def test_a_case_without_anything_to_compare_fails(self, tmp_path: Path) -> None:
        case = write(tmp_path, tensors=tensors(outputs={}, intermediates={"hidden": "t.y"}))
        assert golden.check(case, RUNNERS).outcome == "failed"

    def test_a_role_without_tolerance_fails(self, tmp_path: Path) -> None:
        assert golden.check(write(tmp_path, tensors=tensors(), tolerance={}), RUNNERS).outcome == "failed"

    def test_a_runner_that_breaks_fails_its_case_only(self, tmp_path: Path) -> None:
        case = write(tmp_path, tensors=tensors())
        results = list(golden.run([case, case], {"double": lambda case: Observed({"y": case.input("absent")})}))
        assert [result.outcome for result in results] == ["failed", "failed"]
        assert "absent" in results[0].detail

    def test_recipe_first_then_the_stored_tensors(self, tmp_path: Path) -> None:
        save_file({"p.b": torch.full((2,), 3.0, dtype=torch.float16)}, tmp_path / "w.safetensors")
        source = {"recipe": "unit-fan-in", "seed": 1, "file": "w.safetensors", "prefix": "p."}
        case = write(tmp_path, tensors=tensors(), weights={"part": source})
        made = case.weights("part", {"a": torch.empty(2), "b": torch.empty(2)})
        assert made["b"].tolist() == [3.0, 3.0]
        assert made["b"].dtype == torch.float32
        assert made["a"].abs().max() < 1
        with pytest.raises(GoldenUnreadable, match="other"):
            case.weights("other", {})

    def test_a_path_that_leaves_the_folder_is_not_opened(self, tmp_path: Path) -> None:
        save_file({"x": ONE}, tmp_path / "outside.safetensors")
        inner = tmp_path / "inner"
        inner.mkdir()
        case = write(inner, tensors=tensors(inputs={"x": "../outside.safetensors#x"}))
        assert "no file" in golden.check(case, RUNNERS).detail


class TestValues:
    def check(self, folder: Path, ours: Any, given: set[str] | None = None, **entry: Any) -> golden.CaseResult:
        case = write(folder, tolerance={"*": {"atol": 0.1}}, **entry)
        return golden.check(case, {"double": lambda _: Observed(values=ours, given=frozenset(given or ()))})

    STORED: ClassVar = {"a": {"b": [1.0, 2.0]}, "s": "text", "n": None, "flag": True}

    def test_numbers_are_compared_under_their_dotted_keys(self, tmp_path: Path) -> None:
        ours = {"a": {"b": [1.05, 2.0]}, "s": "text", "n": None, "flag": True}
        result = self.check(tmp_path, ours, values=self.STORED)
        assert result.outcome == "passed"
        assert {role.role: round(role.error, 6) for role in result.roles} == {"a.b": 0.05, "s": 0, "n": 0, "flag": 0}

    @pytest.mark.parametrize(
        "change",
        [
            {"a": {"b": [1.0]}},
            {"a": {"b": [1.0, 3.0]}},
            {"s": "txt"},
            {"n": 0},
            {"flag": 1},
            {"flag": False},
            {"a": {}},
        ],
    )
    def test_everything_else_must_be_equal(self, change: dict[str, Any], tmp_path: Path) -> None:
        assert self.check(tmp_path, self.STORED | change, values=self.STORED).outcome == "failed"

    def test_no_key_may_be_missing_or_invented(self, tmp_path: Path) -> None:
        assert self.check(tmp_path, {"s": "text"}, values=self.STORED).outcome == "failed"
        assert self.check(tmp_path, self.STORED | {"x": 1}, values=self.STORED).outcome == "failed"

    def test_a_values_file_holds_inputs_and_answers(self, tmp_path: Path) -> None:
        (tmp_path / "v.json").write_text(json.dumps({"cases": [{"in": 1, "out": 2}], "other": 9}))
        source = {"file": "v.json", "keys": ["cases"]}
        answer = {"cases": [{"out": 2}]}
        assert self.check(tmp_path, answer, {"in"}, values_file=source).outcome == "passed"
        assert self.check(tmp_path, answer, values_file=source).outcome == "failed", "an unknown key is no input"
        assert self.check(tmp_path, {"cases": []}, {"in"}, values_file=source).outcome == "failed"


@pytest.mark.parametrize("text", [None, "{", "[]", '{"format": 2, "cases": []}', '{"format": 1}'])
def test_a_folder_of_another_format_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(GoldenUnreadable):
        golden.cases(tmp_path)
