"""How results look on stdout: lines of columns for lists, JSON for one thing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable

from pydantic import BaseModel
from rich.console import Console

from tenfold.problems import Problem


def line(*columns: object) -> None:
    """One line, its columns separated by tabs."""
    sys.stdout.write("\t".join("-" if column is None else str(column) for column in columns) + "\n")


def shown(thing: BaseModel, **more: str) -> None:
    """Everything that is known of one thing, on one line of JSON."""
    sys.stdout.write(json.dumps({**more, **thing.model_dump(mode="json")}, ensure_ascii=False) + "\n")


def each(names: Iterable[str], do: Callable[[str], None], err: Console) -> int:
    """Do something with every one; what fails is told and does not stop the rest. The exit status."""
    failed = 0
    for name in names:
        try:
            do(name)
        except (Problem, OSError, ValueError) as error:
            failed += 1
            err.print(f"{name}: {error}")
    return min(failed, 1)
