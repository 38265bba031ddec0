"""Models by name and version: shipped with the repository, imported by an operator, trained by a tenant.

    <weights of a method>/<small…>/                    shipped: always version 1, for everyone
    <folder>/imported/<method>/<paper…>/<version>/     for everyone
    <folder>/trained/<tenant>/<method>/<name>/<version>/

A version is a folder of weights and configuration that never changes; it appears by one rename. `.tenfold.json` inside
says when it was made, what it digests to and how good it is. Beside the versions, `state.json` keeps the highest number
ever given (a number is not given twice, or a record would name another model than the one that made it) and the version
that a rollback chose.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import structlog

from shared.modelfolder import (
    CARD,
    FIGURES,
    copy_files,
    digest_of,
    files_of,
    folders_in,
    licence_of,
    locked,
    read_json,
    state_of,
    store_errors,
    text_of,
    versions_in,
    write_durably,
    write_state,
)
from shared.problems import InvalidRequest, ModelNotFound, ModelProtected, WeightsDamaged, WeightsMissing

NAME = r"[a-z0-9-]{1,63}"
_DESCRIPTION = ".tenfold.json"
_ABANDONED_AFTER_S = 24 * 3600.0
_REF = re.compile(rf"({NAME})/({NAME})(?:@([1-9][0-9]{{0,8}}))?")
_TENANT = re.compile(r"[a-z0-9-]{1,64}")

log = structlog.get_logger()


@dataclass(frozen=True)
class StoredModel:
    """One version of a model.

    folder      holds the weights and their configuration; read only
    digest      SHA-256 (hex) over them, see `shared.modelfolder.digest_of`
    licence     the first line of its LICENSE, where it has one
    card        its MODEL_CARD.md
    figures     what was measured: its evaluate.json, or what the training reported
    created_at  seconds since the epoch
    versions    all versions there are of this name, ascending
    """

    method: str
    name: str
    version: int
    kind: Literal["shipped", "imported", "trained"]
    folder: Path
    digest: str
    licence: str | None
    card: str | None
    figures: Mapping[str, Any]
    created_at: float
    versions: tuple[int, ...]

    @property
    def id(self) -> str:
        return f"{self.method}/{self.name}@{self.version}"

    def public(self) -> dict[str, Any]:
        """What a caller sees of it: everything but where it lies."""
        created = datetime.fromtimestamp(self.created_at, UTC).isoformat(timespec="seconds")
        return {
            "model": self.id,
            "method": self.method,
            "name": self.name,
            "version": self.version,
            "versions": list(self.versions),
            "kind": self.kind,
            "digest": self.digest,
            "licence": self.licence,
            "card": self.card,
            "figures": dict(self.figures),
            "created_at": created.replace("+00:00", "Z"),
        }


class ModelStore:
    """The models that a process can use.

    shipped  where each method's shipped weights lie: a folder that holds one folder a variant
    folder   where imported and trained ones lie; several processes and containers may share it
    """

    def __init__(self, shipped: Mapping[str, Path], folder: Path, now: Callable[[], float] = time.time) -> None:
        self._shipped = dict(shipped)
        self._folder = folder
        self._now = now
        self._digests: dict[Path, tuple[tuple[tuple[str, int, int], ...], str]] = {}

    def resolve(self, ref: str, tenant: str) -> StoredModel:
        """The model that `method/name` (its current version) or `method/name@version` means to this tenant.

        Raises `ModelNotFound`, or `WeightsMissing` with the command that imports it for a reserved name.
        """
        method, name, version = _parsed(ref)
        if name.startswith("small"):
            folder = self._shipped.get(method, Path()) / name
            if method not in self._shipped or not folder.is_dir() or version not in (None, 1):
                raise ModelNotFound(f"There is no model {ref}.")
            return self._shipped_model(method, name, folder)
        home = self._home(method, name, tenant)
        versions = versions_in(home)
        if not versions and name.startswith("paper"):
            command = f"tenfold-admin weights import {method}/{name} FILE..."
            raise WeightsMissing(f"Nobody has imported {method}/{name}; {command} does.", command=command)
        if not versions or version not in (None, *versions):
            raise ModelNotFound(f"There is no model {ref}.")
        if version is None:
            chosen = state_of(home)["current"]
            version = chosen if chosen in versions else versions[-1]
        return self._described(method, name, version, home, versions)

    def list(self, tenant: str, method: str | None = None) -> list[StoredModel]:
        """The current version of every model that this tenant can use, by method and name."""
        names = {
            (of, variant.name)
            for of, weights in self._shipped.items()
            for variant in folders_in(weights)
            if variant.name.startswith("small") and re.fullmatch(NAME, variant.name)
        }
        for root in (self._folder / "imported", self._trained(tenant)):
            names |= {(of.name, home.name) for of in folders_in(root) for home in folders_in(of)}
        found = []
        for of, name in sorted(names):
            if method in (None, of):
                with contextlib.suppress(ModelNotFound, WeightsMissing):  # all versions deleted
                    try:
                        found.append(self.resolve(f"{of}/{name}", tenant))
                    except WeightsDamaged as error:  # one broken model must not hide the others
                        log.error("model.damaged", model=f"{of}/{name}", tenant=tenant, exc_info=error)
        return found

    def save(
        self, method: str, name: str, tenant: str, source_folder: Path, *, figures: Mapping[str, Any]
    ) -> StoredModel:
        """Store what a training made, as the next version, which becomes the current one.

        Raises `InvalidRequest` for a name that is malformed or reserved, `ServiceUnavailable` for a full disk.
        """
        check_new_name(name)
        return self._add(method, name, tenant, source_folder, figures)

    def import_(self, method: str, name: str, source_folder: Path) -> StoredModel:
        """Store converted weights that were published elsewhere, for all tenants, as the next version of `paper…`."""
        if not name.startswith("paper"):
            raise _bad_name(f"{name!r} is no name of an imported model: those begin with paper")
        return self._add(method, name, "", source_folder, read_json(source_folder / FIGURES))

    def delete(self, ref: str, tenant: str) -> None:
        """Remove one version, or without a version all of them. What a worker has loaded it keeps."""
        method, name, version = _parsed(ref)
        home = self._own_home(ref, tenant)
        with store_errors(), locked(home):
            versions = versions_in(home)
            doomed = versions if version is None else (version,)
            if not versions or not set(doomed) <= set(versions):
                raise ModelNotFound(f"There is no model {ref}.")
            for number in doomed:
                grave = self._incoming()
                (home / str(number)).rename(grave)  # gone at once, whatever happens next
                shutil.rmtree(grave, ignore_errors=True)
        log.info("model.deleted", model=f"{method}/{name}", versions=doomed, tenant=tenant)

    def rollback(self, ref: str, tenant: str) -> StoredModel:
        """Make `method/name@version` the current version, until the next one is saved."""
        method, name, version = _parsed(ref)
        home = self._own_home(ref, tenant)
        with store_errors(), locked(home):
            versions = versions_in(home)
            if version is None or version not in versions:
                raise ModelNotFound(f"There is no model {ref}.")
            write_state(home, last=max(state_of(home)["last"] or 0, *versions), current=version)
        return self._described(method, name, version, home, versions)

    def check(self, model: StoredModel) -> None:
        """Read the whole model and raise `WeightsDamaged` unless it still digests to what its description says."""
        with store_errors():
            if digest_of(model.folder) != model.digest:
                raise WeightsDamaged(f"The files of {model.id} are not those that were stored.")

    def _add(self, method: str, name: str, tenant: str, source: Path, figures: Mapping[str, Any]) -> StoredModel:
        if not (re.fullmatch(NAME, name) and re.fullmatch(NAME, method)):
            raise _bad_name(f"{method}/{name} is not a model: both parts take a-z, 0-9 and -, at most 63")
        home = self._home(method, name, tenant)
        self._bury_abandoned()
        with store_errors():
            incoming = self._incoming()
            try:
                copy_files(source, incoming)
                description = {"digest": digest_of(incoming), "figures": dict(figures), "created_at": self._now()}
                write_durably(incoming / _DESCRIPTION, json.dumps(description).encode())
                with locked(home):
                    version = max((state_of(home)["last"] or 0, *versions_in(home))) + 1
                    write_state(home, last=version, current=None)
                    incoming.rename(home / str(version))
            except BaseException:
                shutil.rmtree(incoming, ignore_errors=True)
                raise
        log.info("model.stored", model=f"{method}/{name}@{version}", tenant=tenant)
        return self.resolve(f"{method}/{name}@{version}", tenant)

    def _home(self, method: str, name: str, tenant: str) -> Path:
        if name.startswith("paper"):
            return self._folder / "imported" / method / name
        return self._trained(tenant) / method / name

    def _trained(self, tenant: str) -> Path:
        if not _TENANT.fullmatch(tenant):
            raise ValueError(f"{tenant!r} is no tenant")
        return self._folder / "trained" / tenant

    def _own_home(self, ref: str, tenant: str) -> Path:
        """Where the versions of a model lie that the tenant may change."""
        method, name, _ = _parsed(ref)
        if name.startswith(("small", "paper")):
            found = self.resolve(ref, tenant)
            raise ModelProtected(f"{found.id} is {found.kind}: it belongs to everyone here.")
        home = self._home(method, name, tenant)
        if not home.is_dir():
            raise ModelNotFound(f"There is no model {ref}.")
        return home

    def _incoming(self) -> Path:
        folder = self._folder / ".incoming"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / secrets.token_hex(16)

    def _bury_abandoned(self) -> None:
        """Remove what a killed process left behind."""
        for folder in folders_in(self._folder / ".incoming"):
            with contextlib.suppress(FileNotFoundError):
                if folder.stat().st_ctime + _ABANDONED_AFTER_S < self._now():
                    shutil.rmtree(folder, ignore_errors=True)

    def _described(self, method: str, name: str, version: int, home: Path, versions: tuple[int, ...]) -> StoredModel:
        folder = home / str(version)
        known = read_json(folder / _DESCRIPTION)
        try:
            return StoredModel(
                method=method,
                name=name,
                version=version,
                kind="imported" if name.startswith("paper") else "trained",
                folder=folder,
                digest=str(known["digest"]),
                licence=licence_of(folder),
                card=text_of(folder / CARD),
                figures=dict(known["figures"]),
                created_at=float(known["created_at"]),
                versions=versions,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsDamaged(f"The description of {method}/{name}@{version} cannot be read.") from error

    def _shipped_model(self, method: str, name: str, folder: Path) -> StoredModel:
        with store_errors():
            stats = [(path, path.stat()) for path in files_of(folder)]
            signature = tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)
            if folder not in self._digests or self._digests[folder][0] != signature:  # hashing takes 10 ms and more
                self._digests[folder] = signature, digest_of(folder)
        return StoredModel(
            method=method,
            name=name,
            version=1,
            kind="shipped",
            folder=folder,
            digest=self._digests[folder][1],
            licence=licence_of(folder) or licence_of(folder.parent),
            card=text_of(folder / CARD) or text_of(folder.parent / CARD),
            figures=read_json(folder / FIGURES),
            created_at=max((stat.st_mtime for _, stat in stats), default=0.0),
            versions=(1,),
        )


def check_new_name(name: str) -> None:
    """Raise `InvalidRequest` for a name that no training may give."""
    if name.startswith(("small", "paper")):
        raise _bad_name(f"{name!r} is reserved: names with small… or paper… are not for trained models")


def _parsed(ref: str) -> tuple[str, str, int | None]:
    match = _REF.fullmatch(ref)
    if not match:
        raise ModelNotFound(f"{ref[:140]!r} is not method/name or method/name@version.")
    method, name, version = match.groups()
    return method, name, int(version) if version else None


def _bad_name(message: str) -> InvalidRequest:
    return InvalidRequest(f"{message}.", errors=[{"place": "name", "message": message, "kind": "model_name"}])
