"""`tenfold-admin weights list|import`: the models of this installation."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.admin.settings import load
from deploy.methods import IMPORTERS, METHODS

if TYPE_CHECKING:
    from shared.models import ModelStore


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    weights = commands.add_parser("weights", help="list models, import published weights")
    parts = weights.add_subparsers(title="commands", metavar="COMMAND", required=True)

    listing = parts.add_parser("list", help="what is shipped, imported, and trained by a tenant")
    listing.add_argument("--tenant", default="local", help="whose trained models (default: %(default)s)")
    listing.add_argument("--method", choices=sorted(METHODS))
    listing.set_defaults(run=list_models)

    importing = parts.add_parser(
        "import",
        help="convert the authors' files to a model of this installation",
        description="Read published weights (never unpickling code), check every name and shape, and store them as "
        "safetensors. The model serves requests at once, without a restart.",
    )
    importing.add_argument("model", metavar="METHOD/NAME", help="as ifadit/paper")
    importing.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the published files, or their folder")
    importing.set_defaults(run=import_model)


def list_models(arguments: argparse.Namespace) -> int:
    """One line a model."""
    store = _store()
    methods = [arguments.method] if arguments.method else sorted(METHODS)
    for method in methods:
        for model in store.list(arguments.tenant, method):
            size = sum(path.stat().st_size for path in model.folder.glob("*.safetensors")) / 2**20
            sys.stdout.write(f"{model.id:32} {model.kind:9} {size:8.1f} MiB  {model.licence or ''}\n")
    return 0


def import_model(arguments: argparse.Namespace) -> int:
    """Convert, check and store; 1 if the files are not what they should be."""
    method, _, name = arguments.model.partition("/")
    if method not in IMPORTERS:
        sys.stderr.write(f"Published weights can be imported for {', '.join(sorted(IMPORTERS))}, not for {method!r}.\n")
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        try:
            importlib.import_module(IMPORTERS[method]).convert(arguments.files, Path(scratch))
        except (OSError, ValueError) as error:
            sys.stderr.write(f"{error}\n")
            return 1
        stored = _store().import_(method, name, Path(scratch))
    sys.stdout.write(f"{stored.id} {stored.digest}\n")
    return 0


def _store() -> ModelStore:
    from shared.models import ModelStore
    from shared.runtime import shipped_weights

    return ModelStore(shipped_weights(METHODS), load().models_path)
