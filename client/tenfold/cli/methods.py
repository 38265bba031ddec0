"""`tenfold <method> <operation> PICTURE…`, made from the signatures and docstrings of the method's own functions."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tenfold.cli import output
from tenfold.client import Client
from tenfold.methods import Served
from tenfold.problems import Problem
from tenfold.types import Result, StoredFile

_SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
_FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}
_DOCUMENTS = {"application/json": ".json", "application/vnd.tenfold.ifx": ".ifx"}


@dataclass(frozen=True)
class Option:
    """A parameter of an operation, as an option of the command."""

    name: str
    annotation: Any
    default: Any
    text: str

    @property
    def is_file(self) -> bool:
        return bytes in get_args(self.annotation)

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """What is not given stays None, and is left to the function's own default."""
        flag, text = f"--{self.name.replace('_', '-')}", self.text.replace("%", "%%")
        kinds = [kind for kind in _members(self.annotation) if kind is not types.NoneType]
        options: dict[str, Any] = {"help": text, "required": self.default is inspect.Parameter.empty, "default": None}
        if self.default not in (inspect.Parameter.empty, None, False):
            options["help"] = f"{text} (default: {self.default})"
        if self.is_file:
            options |= {"type": Path, "metavar": "FILE"}
        elif kinds == [bool]:
            options |= {"action": "store_true"}
        elif get_origin(kinds[0]) is Literal:
            options |= {"choices": get_args(kinds[0])}
        elif kinds in ([str], [int], [float]):
            options |= {"type": kinds[0], "metavar": kinds[0].__name__.upper()}
        else:
            options |= {"type": json.loads, "metavar": "JSON"}
        parser.add_argument(flag, **options)


@dataclass(frozen=True)
class Command:
    """One operation of one method."""

    method: str
    name: str
    text: str
    options: tuple[Option, ...]
    gives_picture: bool

    def run(self, client: Client, args: argparse.Namespace, err: Console) -> int:
        """Do every picture; one line a result; exit 1 if any failed."""
        operation: Callable[..., Result] = getattr(getattr(client, self.method), self.name)
        said = {option.name: getattr(args, option.name) for option in self.options}
        given = {name: value for name, value in said.items() if value is not None}
        if len(args.pictures) > 1 and (alone := [o.name for o in self.options if o.is_file and o.name in given]):
            raise ValueError(f"--{alone[0]} belongs to one picture; give one at a time")
        targets: list[Path] | list[None] = [None] * len(args.pictures)
        if self.gives_picture:
            targets = self._targets(args, given)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        failed = 0
        # On a terminal rich prints results above the bar, through its own console; a file or a pipe has to get them.
        quiet, shared = not err.is_terminal, sys.stdout.isatty()
        with Progress(*columns, console=err, disable=quiet, redirect_stdout=shared) as bar:
            for picture, target in bar.track([*zip(args.pictures, targets, strict=True)], description=self.name):
                try:
                    result = operation(picture, **given)
                    if target:
                        _save(result, target)
                except (Problem, OSError, ValueError) as error:
                    failed += 1
                    err.print(f"{picture}: {error}")
                else:
                    output.line(target) if target else output.shown(result, picture=str(picture))
                    sys.stdout.flush()
        return min(failed, 1)

    def _targets(self, args: argparse.Namespace, given: dict[str, Any]) -> list[Path]:
        """Where each result goes. Raises `ValueError` where two would go to one place, or one onto a picture given."""
        out = Path(args.output)
        if len(args.pictures) == 1 and not out.is_dir() and not args.output.endswith(("/", "\\")):
            targets = [out]
            self._choose_format(out, given)
        else:
            suffix = _SUFFIXES[given.get("output_format", "png")]
            targets = [out / f"{picture.stem}{suffix}" for picture in args.pictures]
        places = [target.resolve() for target in targets]
        if len(set(places)) < len(places):
            twice = next(target for target, place in zip(targets, places, strict=True) if places.count(place) > 1)
            raise ValueError(f"two of the pictures would be written to {twice}")
        if onto := {picture.resolve() for picture in args.pictures}.intersection(places):
            raise ValueError(f"{onto.pop()} would be overwritten by its own result; give another folder or name")
        targets[0].parent.mkdir(parents=True, exist_ok=True)
        return targets

    def _choose_format(self, out: Path, given: dict[str, Any]) -> None:
        """Let the name of the output say its format, where the operation has a choice and none was made."""
        wanted = _FORMATS.get(out.suffix.lower())
        if any(option.name == "output_format" for option in self.options):
            given.setdefault("output_format", wanted)
        if wanted is None or wanted != given.get("output_format", "png"):
            raise ValueError(f"{out} is no name for a picture in {given.get('output_format') or 'png, webp or jpeg'}")


def _save(result: Result, target: Path) -> None:
    """The picture, and beside it every other file of the result: `out.png` and `out.record.json`."""
    for name in type(result).model_fields:
        file: Any = getattr(result, name)
        if isinstance(file, StoredFile) and name != "image":
            suffix = _DOCUMENTS.get(file.media_type, ".bin")
            file.save(target.with_name(f"{target.stem}.{name}{suffix}"))  # type: ignore[attr-defined]
    result.image.save(target)  # type: ignore[attr-defined]


def add_to(commands: Any) -> None:
    """Add a command for every operation of every method that has functions of its own, and `tenfold methods`."""
    for name, group in _groups():
        method = commands.add_parser(name, help=(inspect.getdoc(group) or "").split("\n")[0])
        verbs = method.add_subparsers(metavar="OPERATION", required=True)
        for command in commands_of(name):
            _add(command, verbs)
    commands.add_parser("methods", help="one line a method: name, operations, what it is").set_defaults(run=_list)


def _add(command: Command, verbs: Any) -> None:
    summary, _, _ = command.text.partition("\n")
    parser = verbs.add_parser(command.name.replace("_", "-"), help=summary, description=summary)
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    for option in command.options:
        option.add_to(parser)
    if command.gives_picture:
        parser.add_argument(
            "-o", "--output", required=True, metavar="FILE|FOLDER",
            help="where the result goes; a folder for several. Files that come with it are put beside it",
        )  # fmt: skip
    parser.set_defaults(run=command.run)


def _groups() -> Iterator[tuple[str, type]]:
    """Name and class of every method that `Client` has functions for."""
    for name, member in vars(Served).items():
        if isinstance(member, property) and member.fget is not None:
            yield name, get_type_hints(member.fget)["return"]


def commands_of(method: str) -> Iterator[Command]:
    """The operations of a method that `Client` has functions for."""
    group = dict(_groups())[method]
    for name in vars(group):
        plan = getattr(sys.modules[group.__module__], name, None)
        if name.startswith("_") or plan is None:
            continue
        hints = get_type_hints(plan)
        text = inspect.getdoc(plan) or ""
        _context, _picture, *parameters = inspect.signature(plan).parameters.values()
        options = tuple(
            Option(p.name, hints[p.name], p.default, _text_of(p.name, text))
            for p in parameters
            if p.name != "idempotency_key"
        )
        result = get_args(hints["return"])[-1]
        yield Command(method, name, text, options, "image" in result.model_fields)


def _text_of(name: str, docstring: str) -> str:
    """The line that a docstring has for a parameter."""
    found = re.search(rf"^{name} +(\S.*)$", docstring, re.MULTILINE)
    return found[1] if found else ""


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _list(client: Client, args: argparse.Namespace, err: Console) -> int:
    for method in client.methods.list():
        output.line(method.method, ",".join(operation.name for operation in method.operations), method.title)
    return 0
