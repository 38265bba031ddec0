"""A worker's hold on one running job: what it reports, keeps and is told to stop for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

from redis.exceptions import RedisError

from shared import content
from shared.files import FileStore, FileWriter, Owner
from shared.guard import Guard, Parked
from shared.jobs import JobRecord, LeaseLost, WorkerJobs
from shared.leases import ForensicKeys, GuardTicket, LeaseClient
from shared.models import ModelStore, StoredModel
from shared.problems import StoredFileNotFound
from shared.sight import JobSight
from shared.storedfile import StoredFile
from shared.types import Archive, File, Image, files_in, stored_json

if TYPE_CHECKING:
    from shared.secretbytes import SecretBytes

PROGRESS_EVERY_S = 0.2  # reports between are dropped, except the last step's
COPY_BYTES = 2**20
VIEW_TTL_S = 15 * 60.0  # of what a guard looks at; it goes with the guard's job
CHECKPOINT_TTL_S = 7 * 24 * 3600.0

_File = TypeVar("_File", bound=File)

StopReason = Literal["cancel", "deadline", "shutdown", "lost", "hung"]


class RunningJob:
    """One attempt at one job. Reports go out from the thread that makes them, at most five a second."""

    def __init__(
        self,
        record: JobRecord,
        jobs: WorkerJobs,
        files: FileStore,
        models: ModelStore,
        leases: LeaseClient,
        pulse: Any,
        sight: JobSight,
        scratch: Path | None,
    ) -> None:
        """scratch  a folder for what must be unpacked while the job runs"""
        self.record = record
        self.id = record.id
        self.attempt = record.attempt
        self.started_device = False
        self.sensitive = bool(record.fields.get("lease"))
        self.sight = sight
        self._jobs, self._files, self._models, self._leases = jobs, files, models, leases
        self._pulse = pulse
        self._stop: StopReason | None = None
        self._reported = 0.0
        self._outputs: dict[int, Any] | None = None
        self._key: bytearray | None = None
        self._scratch = scratch
        self._open = contextlib.ExitStack()

    # stopping

    def stop(self, reason: StopReason) -> None:
        """Ask the operation to end at its next step. The first reason counts, but a lost lease overrides."""
        if self._stop is None or reason == "lost":
            self._stop = reason

    def stop_reason(self) -> StopReason | None:
        """Why the job is to stop, or None. Asking counts as a sign of life."""
        self._pulse.beat()
        return self._stop

    # reporting

    def progress(self, step: int, of: int, metrics: dict[str, Any]) -> None:
        self._pulse.beat()
        now = time.monotonic()
        if step < of and now - self._reported < PROGRESS_EVERY_S:
            return
        self._reported = now
        self._tell(lambda: self._jobs.progress(self.record, {"step": step, "of": of, **metrics}))

    def stage(self, text: str) -> None:
        self._pulse.beat()
        self._tell(lambda: self._jobs.stage(self.record, text))

    def _tell(self, report: Any) -> None:
        """A report that is lost is no reason to stop the work; a lease that is lost is."""
        try:
            report()
        except LeaseLost:
            self.stop("lost")
        except RedisError:
            return

    # units

    def unit_outputs(self) -> dict[int, Any]:
        if self._outputs is None:
            self._outputs = self._jobs.unit_outputs(self.record)
        return dict(self._outputs)

    def unit_done(self, index: int, of: int, output: Any) -> None:
        stored = stored_json(output, self.store)
        self._jobs.unit(self.record, index, of, stored)
        if self._outputs is not None:
            self._outputs[index] = stored

    # files

    def file_key(self) -> bytearray | None:
        """The key of this job's sensitive files, from custody; None for a job without a lease."""
        if self.sensitive and self._key is None:
            with self.sight.asking("file_key"):
                self._key = self._leases.file_key(self.record.fields["lease"], self.record.fields["call"])
        return self._key

    def load(self, request: Any) -> None:
        """Read and decode every file of the request. Archives stay open until `close`."""
        for file in files_in(request):
            with contextlib.ExitStack() as opened:
                with self.sight.stage("fetch"):
                    stream = opened.enter_context(self.open(file.file))
                with self.sight.stage("decode"):
                    content.load(file, stream, self._scratch)
                if isinstance(file, Archive):
                    opened.callback(file.opened.close)
                    self._open.push(opened.pop_all())

    def open(self, file_id: str) -> BinaryIO:
        """The plain bytes of a file of this job."""
        stored = self._files.stat(file_id)
        return self._files.open(file_id, key=self.file_key() if stored.owner.lease else None)

    def store(self, file: File) -> File:
        """Encode and store an output. Outputs of a job that only some may see are encrypted and live as long as it."""
        encoded = content.encode(file)
        with self._writer(file.media_type) as writer:
            writer.write(encoded)
            return _named(type(file), writer.commit(width=file.width, height=file.height))

    def write(self, kind: type[_File], media_type: str, fill: Callable[[FileWriter], object]) -> _File:
        """Store an output that `fill` writes piece by piece."""
        with self._writer(media_type) as writer:
            fill(writer)
            return _named(kind, writer.commit())

    def _writer(self, media_type: str) -> FileWriter:
        fields = self.record.fields
        principal = self.record.principal
        owner, key = Owner(self.record.tenant, made_by=principal), None
        if self.record.scope is not None:
            lease = fields["lease"] or None
            owner = Owner(self.record.tenant, principal, self.record.scope, lease, made_by=principal)
            key = self.file_key()
        return self._files.create(owner, media_type, int(fields["ttl_ms"]) / 1000, key=key)

    def drop_inputs(self, own_files: list[str]) -> None:
        """Delete the files that came with the request itself."""
        for file_id in own_files:
            self._files.delete(file_id)

    def drop_units(self, result: dict[str, Any] | None) -> None:
        """Delete the files that finished units left, but for those that the result names."""
        if self._outputs is None and "units" not in self.record.fields:
            return
        kept = set(_file_ids(result))
        for file_id in _file_ids(self.unit_outputs()):
            if file_id not in kept:
                self._files.delete(file_id)

    def close(self) -> None:
        """Close what is open and overwrite the file key."""
        self._open.close()
        if self._key is not None:
            self._key[:] = bytes(len(self._key))
            self._key = None

    # custody

    def redeem(self, **claim: Any) -> list[SecretBytes]:
        fields = self.record.fields
        with self.sight.asking("redeem"):
            return self._leases.redeem(fields["lease"], fields["call"], attempt=self.attempt, **claim)

    def redeem_forensic(self, **claim: Any) -> ForensicKeys:
        fields = self.record.fields
        return self._leases.redeem_forensic(fields["lease"], fields["call"], attempt=self.attempt, **claim)

    def redeem_dek(self, **claim: Any) -> SecretBytes:
        fields = self.record.fields
        return self._leases.redeem_dek(fields["lease"], fields["call"], attempt=self.attempt, **claim)

    def seal(self, unit: int, draft: dict[str, Any]) -> dict[str, Any]:
        fields = self.record.fields
        with self.sight.asking("seal"):
            return self._leases.seal(fields["lease"], fields["call"], attempt=self.attempt, unit=unit, draft=draft)

    def check_record(self, record: dict[str, Any]) -> dict[str, Any]:
        with self.sight.asking("check_record"):
            return self._leases.check_record(self.record.fields["call"], record)

    # the guard

    def keep_guard(self, guard: Guard) -> None:
        """Write down what the guard came to, for callers and later attempts."""
        self._jobs.remember(self.record, "guard", guard.text())

    def ask_guard(self, shown: Sequence[Image]) -> None:
        """Have the job's guard look at pictures, and give the place up: raises `Parked`.

        shown  the pictures of the job's request, or pictures that were made to be looked at

        What only some may see, the guard gets as copies under a key of their own: its worker can open nothing else of
        this job. Raises what the door answers, and then nothing is parked or left behind.
        """
        call, fence = self.record.fields["call"], self.record.fence
        with self.sight.asking("guard"):
            if not self.sensitive and all(image.file for image in shown):
                parked = self._leases.ask_guard(call, fence=fence, files=[image.file for image in shown], own=False)
            else:
                ticket = self._leases.open_guard(call) if self.sensitive else None
                names: list[str] = []
                try:
                    self._store_views(shown, ticket, names)
                    parked = self._leases.ask_guard(call, fence=fence, files=names, own=True, ticket=ticket)
                except BaseException:
                    for name in names:
                        self._files.delete(name)
                    raise
        if not parked:
            raise LeaseLost(self.id)
        raise Parked

    def _store_views(self, shown: Sequence[Image], ticket: GuardTicket | None, names: list[str]) -> None:
        """Copies that nobody but the runtime can see; `names` is told of each at once."""
        lease = None if ticket is None else ticket.lease
        owner = Owner(self.record.tenant, "runtime", "runtime", lease, made_by=self.record.principal)
        key = None if ticket is None else self._leases.file_key(ticket.lease, ticket.context)
        try:
            for image in shown:
                with self._files.create(owner, image.media_type, VIEW_TTL_S, key=key) as writer:
                    if image.file:
                        with self.open(image.file) as stream:
                            while piece := stream.read(COPY_BYTES):
                                writer.write(piece)
                    else:
                        writer.write(content.encode(image))
                    names.append(writer.commit(width=image.width, height=image.height).id)
        finally:
            if key is not None:
                key[:] = bytes(len(key))

    # trainings

    def save_checkpoint(self, state: bytes) -> None:
        with self._files.create(
            Owner(self.record.tenant, scope="runtime", principal="runtime", made_by=self.record.principal),
            "application/octet-stream",
            CHECKPOINT_TTL_S,
        ) as writer:
            writer.write(state)
            stored = writer.commit()
        before = self.record.fields.get("checkpoint")
        self._jobs.remember(self.record, "checkpoint", stored.id)
        self.record = JobRecord(self.id, self.record.method, {**self.record.fields, "checkpoint": stored.id})
        if before:
            self._files.delete(before)

    def load_checkpoint(self) -> bytes | None:
        name = self.record.fields.get("checkpoint")
        if not name:
            return None
        try:
            with self._files.open(name) as stream:
                return stream.read()
        except StoredFileNotFound:
            return None

    def save_model(self, name: str, folder: Path, figures: dict[str, Any]) -> StoredModel:
        return self._models.save(self.record.method, name, self.record.tenant, folder, figures=figures)


def _named(kind: type[_File], stored: StoredFile) -> _File:
    return kind(
        file=stored.id,
        media_type=stored.media_type,
        bytes=stored.bytes,
        sha256=stored.sha256,
        width=stored.width,
        height=stored.height,
    )


def _file_ids(value: Any) -> Iterator[str]:
    """The names of all stored files in a JSON value, as `File.public` writes them."""
    if isinstance(value, Mapping):
        if isinstance(name := value.get("file"), str) and "sha256" in value:
            yield name
        for item in value.values():
            yield from _file_ids(item)
    elif isinstance(value, list):
        for item in value:
            yield from _file_ids(item)
