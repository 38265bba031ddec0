"""The shape of the client: what is public, that both clients have it, and that it is documented."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

import tenfold
from tenfold.methods import dit_sr, dlsr, ifadit, tad_sr
from tenfold.resources import audit, files, jobs, keys, methods, models

ROOT = Path(__file__).parents[2]
PAIRS = [
    (tenfold.Client, tenfold.AsyncClient),
    (jobs.Jobs, jobs.AsyncJobs),
    (files.Files, files.AsyncFiles),
    (models.Models, models.AsyncModels),
    (methods.Methods, methods.AsyncMethods),
    (keys.Keys, keys.AsyncKeys),
    (audit.Audit, audit.AsyncAudit),
    (dit_sr.DitSr, dit_sr.AsyncDitSr),
    (dlsr.Dlsr, dlsr.AsyncDlsr),
    (ifadit.Ifadit, ifadit.AsyncIfadit),
    (tad_sr.TadSr, tad_sr.AsyncTadSr),
    (tenfold.File, tenfold.AsyncFile),
]


def public(thing: type) -> dict[str, Any]:
    """The public members of a class that are of our own making."""
    return {
        name: member
        for kind in reversed(thing.__mro__)
        if kind.__module__.startswith("tenfold")
        for name, member in vars(kind).items()
        if not name.startswith("_") and name not in ("model_config", "model_post_init")
    }


def undocumented(name: str, thing: type) -> Iterator[str]:
    """What is not documented in a public thing."""
    if not (thing.__doc__ or "").strip():
        yield name
    fields = thing.model_fields if issubclass(thing, BaseModel) else {}
    yield from (f"{name}.{field}" for field, info in fields.items() if not info.description)
    for member, value in public(thing).items():
        if member not in fields and not isinstance(value, str) and not (inspect.getdoc(value) or "").strip():
            yield f"{name}.{member}"


def test_what_is_public_is_what_is_said_to_be() -> None:
    assert tenfold.__all__ == sorted(tenfold.__all__)
    bound = {
        name for name, value in vars(tenfold).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert bound == set(tenfold.__all__)


@pytest.mark.parametrize("name", [name for name in tenfold.__all__ if name != "FileInput"])  # a union holds no words
def test_every_public_name_is_documented(name: str) -> None:
    assert [*undocumented(name, getattr(tenfold, name))] == []


@pytest.mark.parametrize("kind", [kind for pair in PAIRS for kind in pair], ids=lambda kind: kind.__name__)
def test_every_method_of_the_clients_is_documented(kind: type) -> None:
    assert [*undocumented(kind.__name__, kind)] == []


@pytest.mark.parametrize("name", [name for name, kind in vars(ifadit).items() if inspect.isclass(kind)])
def test_every_result_of_a_method_is_documented(name: str) -> None:
    kind = getattr(ifadit, name)
    if kind.__module__ == ifadit.__name__:
        assert [*undocumented(name, kind)] == []


@pytest.mark.parametrize(("blocking", "awaited"), PAIRS, ids=lambda kind: kind.__name__)
def test_both_clients_have_the_same_surface(blocking: type, awaited: type) -> None:
    ours, theirs = public(blocking), public(awaited)
    assert ours.keys() == theirs.keys()
    for name, member in ours.items():
        if inspect.isfunction(member):
            here, there = inspect.signature(member), inspect.signature(theirs[name])
            assert [*here.parameters.values()] == [*there.parameters.values()], name
            assert inspect.getdoc(member) == inspect.getdoc(theirs[name]), name
            for kind, other in (("File", "AsyncFile"), ("Iterator", "AsyncIterator"), ("Client", "AsyncClient")):
                expected = re.sub(rf"\b{kind}\b", other, str(here.return_annotation))
                here = here.replace(return_annotation=expected)
            assert here.return_annotation == str(there.return_annotation), name


@pytest.mark.parametrize("operation", [ifadit.anonymize, ifadit.recover, ifadit.verify])
def test_every_parameter_of_an_operation_has_its_line(operation: Any) -> None:
    text = inspect.getdoc(operation) or ""
    for name in [*inspect.signature(operation).parameters][1:]:
        assert re.search(rf"^{name} +\S", text, re.MULTILINE), name


def test_help_shows_a_method_as_it_is_called() -> None:
    shown = str(inspect.signature(tenfold.Client().ifadit.recover))
    assert "context" not in shown
    assert "Plan" not in shown
    assert shown.endswith("-> 'Recovered[File]'")


def test_nothing_decides_but_the_plans() -> None:
    """Only the modules that do I/O know httpx; only they and the client's own constructor know the environment."""
    sources = {path.relative_to(ROOT / "client/tenfold").as_posix(): path.read_text() for path in _sources()}
    assert {name for name, text in sources.items() if re.search(r"^\s*import httpx", text, re.MULTILINE)} == {
        "_drivers.py",
        "_http.py",
        "client.py",
    }
    assert {name for name, text in sources.items() if "os.environ" in text} == {"client.py"}
    assert {name for name, text in sources.items() if re.search(r"\btime\.sleep|asyncio\.sleep", text)} == {
        "_drivers.py"
    }


def test_a_thing_without_words_would_be_found() -> None:
    class Bare(BaseModel):
        field: int

        def method(self) -> None: ...

    Bare.__module__ = "tenfold.test"
    assert [*undocumented("Bare", Bare)] == ["Bare", "Bare.field", "Bare.method"]


def _sources() -> list[Path]:
    return sorted((ROOT / "client/tenfold").rglob("*.py"))
