"""What an operation may ask of the job, or of the batch of jobs, that it works for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

if TYPE_CHECKING:
    from shared.files import FileWriter
    from shared.leases import ForensicKeys
    from shared.models import StoredModel
    from shared.secretbytes import SecretBytes
    from shared.types import File

_File = TypeVar("_File", bound="File")
_Result = TypeVar("_Result")


class Stopped(Exception):
    """Raised inside an operation to end it: every job it works for was cancelled, ran out of time, or is put back."""


class Running(Protocol):
    """The runtime's hold on one running job (`shared.running`)."""

    id: str
    attempt: int

    def stop_reason(self) -> str | None: ...
    def progress(self, step: int, of: int, metrics: dict[str, Any]) -> None: ...
    def stage(self, text: str) -> None: ...
    def unit_outputs(self) -> dict[int, Any]: ...
    def unit_done(self, index: int, of: int, output: Any) -> None: ...
    def open(self, file_id: str) -> BinaryIO: ...
    def write(self, kind: type[_File], media_type: str, fill: Callable[[FileWriter], object]) -> _File: ...
    def redeem(self, **claim: Any) -> list[SecretBytes]: ...
    def redeem_forensic(self, **claim: Any) -> ForensicKeys: ...
    def redeem_dek(self, **claim: Any) -> SecretBytes: ...
    def seal(self, unit: int, draft: dict[str, Any]) -> dict[str, Any]: ...
    def check_record(self, record: dict[str, Any]) -> dict[str, Any]: ...
    def save_checkpoint(self, state: bytes) -> None: ...
    def load_checkpoint(self) -> bytes | None: ...
    def save_model(self, name: str, folder: Path, figures: dict[str, Any]) -> StoredModel: ...


class Turns(Protocol):
    """The device thread, as work on it sees it."""

    def turn_over(self) -> None: ...
    def outside(self, call: Callable[[], Any]) -> Any: ...


@dataclass(frozen=True)
class Member:
    """One of the jobs of a batch, in the order of the requests."""

    _running: Running
    _turns: Turns
    model_digest: str
    """SHA-256 over the weight files of the model that serves this batch."""
    model: str
    """The model with its version: `method/name@version`."""

    @property
    def id(self) -> str:
        return self._running.id

    @property
    def attempt(self) -> int:
        return self._running.attempt

    def redeem(self, *, unit: int = 0, **claim: Any) -> list[SecretBytes]:
        """Image keys from custody, one a face, each `4 * dim` octets. The device does other work meanwhile.

        Takes `nonces` (hex, one a face; "" under `per_key` linkage) or `record`, and `key_scheme`, `dim`, `purpose`.
        Wipe what you get. Raises `LeaseRefused`, `LeaseExpired`, `SecretKeyDisabled`, `RecordInvalid` and the like.
        """
        keys: list[SecretBytes] = self._turns.outside(lambda: self._running.redeem(**self._claim(unit, claim)))
        return keys

    def redeem_forensic(self, *, unit: int = 0, **claim: Any) -> ForensicKeys:
        """Image keys, and a data key to encrypt the originals under. Takes `nonces`, `key_scheme`, `dim`.

        Raises `SecretKeyPurpose` where the secret key does not allow it, and what `redeem` raises.
        """
        keys: ForensicKeys = self._turns.outside(lambda: self._running.redeem_forensic(**self._claim(unit, claim)))
        return keys

    def redeem_dek(self, *, unit: int = 0, **claim: Any) -> SecretBytes:
        """The data key of a sidecar. Takes `record`, `wrapped_dek`, `key_scheme`, `dim`, `purpose`.

        Raises `SidecarInvalid`, and what `redeem` raises.
        """
        dek: SecretBytes = self._turns.outside(lambda: self._running.redeem_dek(**self._claim(unit, claim)))
        return dek

    def _claim(self, unit: int, claim: dict[str, Any]) -> dict[str, Any]:
        return {"unit": unit, "model": self.model, "model_digest": self.model_digest, **claim}

    def seal(self, draft: dict[str, Any], *, unit: int = 0) -> dict[str, Any]:
        """The record that custody signs over `draft`."""
        full = {"model_id": self.model, "model_digest": self.model_digest, **draft}
        record: dict[str, Any] = self._turns.outside(lambda: self._running.seal(unit, full))
        return record

    def check_record(self, record: dict[str, Any]) -> dict[str, Any]:
        """What custody says of a record: whether its signature is ours and its tenant the caller's."""
        facts: dict[str, Any] = self._turns.outside(lambda: self._running.check_record(record))
        return facts


class JobContext:
    """Handed to every operation. For a batch it speaks for all of its jobs; `members` are the single ones."""

    def __init__(
        self,
        running: Sequence[Running],
        turns: Turns,
        *,
        device: Any,
        model: str = "",
        model_digest: str = "",
        model_folder: Path | None = None,
    ) -> None:
        self._running = running
        self._turns = turns
        self.device = device
        """torch's, for a training: what a pipeline has was loaded for it."""
        self.model = model
        """The model that the request names, with its version; empty where there is none."""
        self.model_folder = model_folder
        self.members = [Member(one, turns, model_digest, model) for one in running]

    def raise_if_cancelled(self) -> None:
        """Raise `Stopped` when none of the jobs is wanted any more. Let it pass through."""
        reasons = [running.stop_reason() for running in self._running]
        if all(reasons):
            raise Stopped(reasons[0])

    def progress(self, step: int, of: int, **metrics: Any) -> None:
        """Report step `step` of `of`, counted from 1, with numbers worth watching. Raises `Stopped`."""
        for running in self._running:
            running.progress(step, of, metrics)
        self.raise_if_cancelled()

    def stage(self, text: str) -> None:
        """Say in a word what is being done ("aligning", "sampling"). Raises `Stopped`."""
        for running in self._running:
            running.stage(text)
        self.raise_if_cancelled()

    def outside(self, call: Callable[[], _Result]) -> _Result:
        """Run a blocking call in another thread while the device works for others; its result, or what it raised."""
        result: _Result = self._turns.outside(call)
        return result

    def turn_over(self) -> None:
        """Let other methods go first, if this work has had its share. Call between steps of work without units."""
        self._turns.turn_over()

    # a job over many things: archive, volume, tiles

    def units(self, of: int) -> Iterator[int]:
        """The units 0..of-1 that no earlier attempt finished. Other methods take their turn between two of them."""
        (running,) = self._running
        done = running.unit_outputs()
        for index in range(of):
            if index not in done:
                self.raise_if_cancelled()
                yield index
                self._turns.turn_over()

    def unit(self, index: int, of: int, output: Any = None) -> None:
        """Mark a unit done, with its JSON output, for good: a later attempt does not redo it.

        Files in the output are stored. When the job has ended those are deleted that its result does not name.
        """
        (running,) = self._running
        self._turns.outside(lambda: running.unit_done(index, of, output))

    def outputs(self) -> dict[int, Any]:
        """The outputs of all finished units, by index, those of earlier attempts included."""
        (running,) = self._running
        return running.unit_outputs()

    def read(self, file_id: str) -> bytes:
        """The bytes of a file that a finished unit left."""
        (running,) = self._running

        def whole() -> bytes:
            with running.open(file_id) as stream:
                return stream.read()

        return self._turns.outside(whole)  # type: ignore[no-any-return]

    def write(
        self, kind: type[_File], media_type: str, fill: Callable[[FileWriter, Callable[[str], BinaryIO]], object]
    ) -> _File:
        """Store an output that is written piece by piece, in another thread.

        fill  is given the writer, and a function that opens a file that a finished unit left
        """
        (running,) = self._running
        file: _File = self._turns.outside(
            lambda: running.write(kind, media_type, lambda writer: fill(writer, running.open))
        )
        return file

    # trainings

    def checkpoint(self, state: bytes) -> None:
        """Keep `state` so that a later attempt can go on from it. It replaces the one before."""
        (running,) = self._running
        running.save_checkpoint(state)

    def restore(self) -> bytes | None:
        """The newest checkpoint of this job, whichever attempt made it, or None."""
        (running,) = self._running
        return running.load_checkpoint()

    def save_model(self, name: str, folder: Path, **figures: Any) -> StoredModel:
        """Store the files of `folder` as the next version of the tenant's model `name`."""
        (running,) = self._running
        return running.save_model(name, folder, figures)
