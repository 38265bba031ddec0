"""Golden vectors: read a folder, run its cases, compare.

A folder holds tensors of a reference implementation and one `index.json` that says how to make them again. The index
is all that is read: cases are dispatched on `kind`, built from `config` and `weights`, and compared as their
`tolerance` says. Names of files, cases and tensors carry no meaning. A method's `verify.py` brings one runner a kind;
everything else is here. Weight recipes stand in `shared/goldenweights.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from shared.goldenweights import recipe_weights

FORMAT = 1
# On a GPU sums run in another order: the index's tolerances hold for a CPU.
GPU_ATOL = 1e-4


class GoldenUnreadable(ValueError):
    """The folder is not in the golden format, or a case refers to something that is not there."""


@dataclass(frozen=True)
class Case:
    """One case of a folder, as a runner sees it. Floating-point tensors come in `dtype`, all tensors on `device`."""

    folder: Path
    entry: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return str(self.entry["name"])

    @property
    def kind(self) -> str:
        return str(self.entry["kind"])

    @property
    def config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.entry["config"]
        return config

    @property
    def slow(self) -> bool:
        return bool(self.entry["slow"])

    @property
    def needs(self) -> list[str]:
        return list(self.entry.get("needs", []))

    def inputs(self) -> dict[str, Tensor]:
        """The inputs by role."""
        return {role: self._place(tensor) for role, tensor in self.stored("inputs").items()}

    def input(self, role: str) -> Tensor:
        """One input. An absent one is an error: a case starts from all its stored inputs."""
        found = self.inputs().get(role)
        if found is None:
            raise GoldenUnreadable(f"case {self.name}: no input {role!r}")
        return found

    def stored(self, group: Literal["inputs", "intermediates", "outputs"]) -> dict[str, Tensor]:
        """The tensors of a group by role, as they are in the file; families are spread out."""
        tensors = self.entry.get("tensors") or {}
        found: dict[str, Tensor] = {}
        for role, target in (tensors.get(group) or {}).items():
            found |= self._resolve(role, target, tensors.get("file"))
        return found

    def values(self) -> dict[str, Any]:
        """The plain JSON of the case: `values`, and the keys that `values_file` names (inputs and expected ones)."""
        found = dict(self.entry.get("values") or {})
        if (source := self.entry.get("values_file")) is not None:
            content = json.loads(self._path(source["file"]).read_text())
            found |= {key: content[key] for key in source["keys"]}
        return found

    def source(self, part: str) -> Mapping[str, Any]:
        """Where the weights of a part come from, as the index says it."""
        source = (self.entry.get("weights") or {}).get(part)
        if not isinstance(source, Mapping):
            raise GoldenUnreadable(f"case {self.name}: no weights for {part!r}")
        return source

    def weights(self, part: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of a part, by the reference's names: recipe first, then the stored tensors.

        `like` is the module's own state dict (it may lie on the meta device, except the constants that recipes keep).
        Floating-point tensors come in `dtype`, all on `device`; each call makes new tensors.
        """
        source = self.source(part)
        found: dict[str, Tensor] = {}
        if "recipe" in source:
            found |= recipe_weights(source, like, self.folder)
        if "prefix" in source:
            path, prefix = self._path(source["file"]), source["prefix"]
            with safe_open(path, framework="pt") as file:
                found |= {name[len(prefix) :]: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118 - not a mapping
        return {name: self._place(tensor) for name, tensor in found.items()}

    def _resolve(self, role: str, target: Any, file: str | None) -> dict[str, Tensor]:
        if isinstance(target, Mapping):
            if target["random"] not in ("standard_normal", "random_sample"):
                raise GoldenUnreadable(f"case {self.name}: unknown generator {target['random']!r}")
            draw = getattr(np.random.RandomState(target["seed"]), target["random"])
            return {role: torch.from_numpy(np.asarray(draw(tuple(target["shape"]))).astype(np.float32))}
        other, _, name = target.rpartition("#")
        if not (other or file):
            raise GoldenUnreadable(f"case {self.name}: {role!r} names no file")
        with safe_open(self._path(other or str(file)), framework="pt") as tensors:
            names = set(tensors.keys())
            if not role.endswith("*"):
                if name not in names:
                    raise GoldenUnreadable(f"case {self.name}: no tensor {name!r} for {role!r}")
                return {role: tensors.get_tensor(name)}
            prefix = name.removesuffix("*")
            members = sorted(member for member in names if member.startswith(prefix))
            return {role[:-1] + member[len(prefix) :]: tensors.get_tensor(member) for member in members}

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()) or not path.is_file():
            raise GoldenUnreadable(f"case {self.name}: no file {name!r} in the folder")
        return path

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)


@dataclass(frozen=True)
class Observed:
    """What an implementation made of a case."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Outputs, and the intermediates that it exposes, by role."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON, in the shape of the stored one."""
    given: frozenset[str] = frozenset()
    """Keys of the stored JSON that are inputs or texts: they need no counterpart in `values`."""


Runner = Callable[[Case], Observed]


@dataclass(frozen=True)
class RoleResult:
    """One compared role."""

    role: str
    error: float
    """Largest |a - b|; infinite where shapes or texts differ."""
    passed: bool
    detail: str
    """Which criterion failed; empty if none did."""


@dataclass(frozen=True)
class CaseResult:
    """One case: intermediates first, so that the first failure says where."""

    name: str
    kind: str
    outcome: Literal["passed", "failed", "skipped"]
    roles: tuple[RoleResult, ...]
    detail: str
    """Why the case was skipped or could not run; empty otherwise."""


def cases(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> list[Case]:
    """The cases of a folder. Raises GoldenUnreadable when it is not one."""
    try:
        index = json.loads((folder / "index.json").read_text())
    except (OSError, ValueError) as error:
        raise GoldenUnreadable(f"{folder}: no readable index.json: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT or not isinstance(index.get("cases"), list):
        raise GoldenUnreadable(f"{folder}: not an index of format {FORMAT}")
    return [Case(folder, entry, torch.device(device), dtype) for entry in index["cases"]]


def run(chosen: Collection[Case], runners: Mapping[str, Runner], have: Collection[str] = ()) -> Iterator[CaseResult]:
    """Run cases one by one. `have` names what the user supplied of the things that cases may need."""
    for case in chosen:
        yield check(case, runners, have)


def check(case: Case, runners: Mapping[str, Runner], have: Collection[str] = ()) -> CaseResult:
    """Run one case and compare. Whatever goes wrong is the case's failure; nothing is raised."""
    if lacking := [need for need in case.needs if need not in have]:
        return CaseResult(case.name, case.kind, "skipped", (), f"needs {', '.join(lacking)}")
    if case.kind not in runners:
        return CaseResult(case.name, case.kind, "failed", (), f"unknown kind {case.kind!r}")
    try:
        with _exact_float32():
            observed = runners[case.kind](case)
        roles = tuple(compare(case, observed))
    except Exception as error:  # noqa: BLE001 - the failure of one case must not hide the others
        return CaseResult(case.name, case.kind, "failed", (), f"{type(error).__name__}: {error}")
    if not roles:
        return CaseResult(case.name, case.kind, "failed", (), "nothing was compared")
    failed = any(not role.passed for role in roles)
    return CaseResult(case.name, case.kind, "failed" if failed else "passed", roles, "")


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Keep TF32 (10 bits of mantissa instead of 23) out of the matrix products and convolutions of a GPU."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def compare(case: Case, observed: Observed) -> Iterator[RoleResult]:
    """Intermediates that are exposed, every output, every value; in this order."""
    for role, expected in case.stored("intermediates").items():
        if role in observed.tensors:
            yield _compare(case, role, observed.tensors[role], expected)
    for role, expected in case.stored("outputs").items():
        if role in observed.tensors:
            yield _compare(case, role, observed.tensors[role], expected)
        else:
            yield RoleResult(role, float("inf"), False, "not computed")
    numbers: dict[str, tuple[list[float], list[float]]] = {}
    for role, problem in _walk("", observed.values, case.values(), observed.given, numbers):
        yield RoleResult(role, float("inf"), False, problem)
    for role, (ours, theirs) in numbers.items():
        yield _compare(case, role, torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64))


def _walk(
    role: str, ours: Any, theirs: Any, given: frozenset[str], numbers: dict[str, tuple[list[float], list[float]]]
) -> Iterator[tuple[str, str]]:
    """Collect the numbers of two JSON values by role; yield (role, problem) for everything else that differs."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in [*theirs, *(key for key in ours if key not in theirs)]:
            inner = f"{role}.{key}" if role else str(key)
            if key not in theirs:
                yield inner, "not in the stored values"
            elif key in ours:
                yield from _walk(inner, ours[key], theirs[key], given, numbers)
            elif key not in given:
                yield inner, "not computed"
    elif isinstance(theirs, list) and isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            yield role, f"{len(ours)} items instead of {len(theirs)}"
        for a, b in zip(ours, theirs, strict=False):
            yield from _walk(role, a, b, given, numbers)
    elif _is_number(theirs) and _is_number(ours):
        collected = numbers.setdefault(role, ([], []))
        collected[0].append(float(ours))
        collected[1].append(float(theirs))
    else:
        # A text, boolean or null that agrees counts as an exact number, so that it appears in the report.
        if type(ours) is type(theirs) and ours == theirs:
            numbers.setdefault(role, ([], []))
        else:
            yield role, f"{str(ours)[:40]!r} instead of {str(theirs)[:40]!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def criteria_for(role: str, tolerance: Mapping[str, Mapping[str, float]]) -> Mapping[str, float] | None:
    """The criteria of the longest pattern that matches the role; `*` matches anything, a literal wins a draw."""
    matching = [
        pattern
        for pattern in tolerance
        if re.fullmatch(".*".join(re.escape(piece) for piece in pattern.split("*")), role, re.DOTALL)
    ]
    return tolerance[max(matching, key=lambda pattern: (len(pattern), -pattern.count("*")))] if matching else None


def _compare(case: Case, role: str, ours: Tensor, theirs: Tensor) -> RoleResult:
    criteria = criteria_for(role, case.entry["tolerance"])
    if criteria is None:
        return RoleResult(role, float("inf"), False, "no tolerance matches this role")
    if case.device.type == "cuda":
        criteria = {**criteria, "atol": max(criteria["atol"], GPU_ATOL)} if "atol" in criteria else criteria
    return compare_tensors(role, ours, theirs, criteria)


def compare_tensors(role: str, ours: Tensor, theirs: Tensor, criteria: Mapping[str, float]) -> RoleResult:
    """Compare under `atol`, `rtol`, `outside`, `mean_abs`, `rel_l2`, `rel_max`; every criterion given must hold."""
    if ours.shape != theirs.shape:
        return RoleResult(role, float("inf"), False, f"shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}")
    if unknown := criteria.keys() - {"atol", "rtol", "outside", "mean_abs", "rel_l2", "rel_max"}:
        return RoleResult(role, float("inf"), False, f"unknown criteria {sorted(unknown)}")
    if not criteria:
        return RoleResult(role, float("inf"), False, "the tolerance has no criterion")
    a, b = ours.detach().cpu().double(), theirs.double()
    same = (a == b) | (a.isnan() & b.isnan())
    error = torch.where(same, 0.0, (a - b).abs())
    error = torch.where(error.isnan(), float("inf"), error)
    if not error.numel():
        return RoleResult(role, 0.0, True, "")
    size = torch.where(b.isfinite(), b.abs(), 0.0)
    measured: list[tuple[str, float, float]] = []  # (criterion, measured, allowed)
    if "atol" in criteria or "rtol" in criteria or "outside" in criteria:
        bound = criteria.get("atol", 0.0) + criteria.get("rtol", 0.0) * size
        measured.append(("outside", (error > bound).double().mean().item(), criteria.get("outside", 0.0)))
    if "mean_abs" in criteria:
        measured.append(("mean_abs", error.mean().item(), criteria["mean_abs"]))
    if "rel_l2" in criteria:
        measured.append(("rel_l2", _ratio(error.norm().item(), size.norm().item()), criteria["rel_l2"]))
    if "rel_max" in criteria:
        measured.append(("rel_max", _ratio(error.max().item(), size.max().item()), criteria["rel_max"]))
    broken = [f"{name} {value:.3g} > {allowed:.3g}" for name, value, allowed in measured if not value <= allowed]
    return RoleResult(role, error.max().item(), not broken, ", ".join(broken))


def _ratio(error: float, size: float) -> float:
    return error / size if size else (0.0 if error == 0 else float("inf"))
