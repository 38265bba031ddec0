"""What the service answers, as objects. Fields that a newer service adds are kept and can be read as attributes."""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from typing_extensions import TypeVar

from tenfold._downloads import download
from tenfold._exchange import first_error
from tenfold.problems import Problem, ServerFault, problem_of_body

if TYPE_CHECKING:
    from tenfold._context import Context
    from tenfold._drivers import AsyncDriver, Driver
    from tenfold._effects import Stream

R = TypeVar("R", bound="Result")

JobState = Literal["queued", "running", "succeeded", "failed", "cancelling", "cancelled", "expired"]
FINISHED: frozenset[str] = frozenset({"succeeded", "failed", "cancelled", "expired"})
"""The states that a job does not leave."""


class Facts(BaseModel):
    """Base of everything that is read from an answer: frozen, and open to fields that this version does not know."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)


class StoredFile(Facts):
    """A file that the service keeps. What a client gives is a `File` or an `AsyncFile`, which can be read."""

    file: str
    """Its name, `file_…`: what the methods of `client.files` take."""
    media_type: str
    """As `image/png`."""
    bytes: int
    """Size."""
    sha256: str | None = None
    """Hexadecimal digest of the bytes. A download is checked against it."""
    width: int | None = None
    """Pixels of the upright picture; pictures only."""
    height: int | None = None
    """Pixels of the upright picture; pictures only."""

    _driver: Any = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _as_the_clients_own(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Any:
        """Build the class that belongs to the client that reads the answer, whatever the annotation says."""
        wanted = getattr(info.context, "file_type", cls)
        if isinstance(data, StoredFile) or issubclass(cls, wanted):
            return handler(data)
        return wanted.model_validate(data, context=info.context)

    def model_post_init(self, context: Context[Any] | None, /) -> None:
        """Remember the client, which reads the bytes."""
        self._driver = context

    def _reading(self) -> tuple[Any, Stream[builtins.bytes]]:
        if self._driver is None:
            raise RuntimeError(f"{self.file} did not come from a client, so there is none to read it with")
        return self._driver, download(self._driver, self.file, size=self.bytes, sha256=self.sha256)


class File(StoredFile):
    """A file that the service keeps, of a `Client`. Results of some operations are gone after 15 minutes: save them."""

    def read(self) -> builtins.bytes:
        """All bytes, checked against the digest."""
        return b"".join(self.stream())

    def stream(self) -> Iterator[builtins.bytes]:
        """The bytes in pieces, with little memory. A cut connection is resumed; the digest is checked at the end."""
        driver: Driver
        driver, pieces = self._reading()
        return driver.iterate(pieces)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the bytes to `path`, which appears, or is replaced, only when all is there and checked."""
        driver: Driver
        driver, pieces = self._reading()
        return driver.save(pieces, path)


class AsyncFile(StoredFile):
    """A file that the service keeps, of an `AsyncClient`. Results of some operations are gone after 15 minutes."""

    async def read(self) -> builtins.bytes:
        """All bytes, checked against the digest."""
        return b"".join([chunk async for chunk in self.stream()])

    def stream(self) -> AsyncIterator[builtins.bytes]:
        """The bytes in pieces, with little memory. A cut connection is resumed; the digest is checked at the end."""
        driver: AsyncDriver
        driver, pieces = self._reading()
        return driver.iterate(pieces)

    async def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the bytes to `path`, which appears, or is replaced, only when all is there and checked."""
        driver: AsyncDriver
        driver, pieces = self._reading()
        return await driver.save(pieces, path)


class Guard(Facts):
    """What a detector found of the pictures of a job, before that was computed."""

    model: str
    """The detector, `dlsr/name@version`."""
    action: str
    """`flag`, or `refuse`."""
    job: str | None = None
    """The job that looked."""
    views: int | None = None
    """How many pictures it was shown: more than one where a method cuts out what counts."""
    p_value: float | None = None
    """Small: such pictures are rare where the detector comes from. None before it has answered, and where it failed."""
    alpha: float | None = None
    """The share of false alarms that the detector allows itself."""
    is_ood: bool | None = None
    """Whether p_value is at most alpha."""
    error: dict[str, Any] | None = None
    """The problem that kept it from answering."""


class Result(Facts):
    """Base of what an operation gives."""

    job_id: str
    """The job that made it."""
    guard: Guard | None = None
    """What the guard found that was asked for."""


class Job(Facts):
    """The record of one call of an operation."""

    id: str
    """`job_…`."""
    method: str
    """As `ifadit`."""
    operation: str
    """As `anonymize`."""
    state: JobState
    """`queued`, `running`, `cancelling`, or one of those that last: `succeeded`, `failed`, `cancelled`, `expired`."""
    stage: str | None = None
    """What the method does at the moment, in its own words."""
    progress: dict[str, Any] | None = None
    """The step it is at: `{"step": 3, "of": 15}` and the method's own figures."""
    units: dict[str, int] | None = None
    """For a job over many things: `{"done": 3, "of": 500}`."""
    attempt: int = 1
    """1, or more where a worker was lost on the way."""
    seed: int | None = None
    """The seed that the result was drawn with."""
    guard: Guard | None = None
    """The guard that was asked for, and what it found."""
    created_at: datetime | None = None
    """When the job was accepted."""
    started_at: datetime | None = None
    """When a worker took it."""
    finished_at: datetime | None = None
    """When it came to its last state."""
    deadline: datetime | None = None
    """When it expires if it has not finished."""
    result: dict[str, Any] | None = None
    """What the operation gave, as JSON; `result_as` makes an object of it."""
    error: dict[str, Any] | None = None
    """The problem of a job that did not succeed; `problem` makes an exception of it."""

    _driver: Any = PrivateAttr(default=None)

    def model_post_init(self, context: Context[Any] | None, /) -> None:
        """Remember the client, for the files in the result."""
        self._driver = context

    @property
    def is_finished(self) -> bool:
        """Whether it is in a state that lasts."""
        return self.state in FINISHED

    @property
    def problem(self) -> Problem | None:
        """Why a finished job has no result, or None."""
        if not self.is_finished or self.state == "succeeded":
            return None
        said = {
            "code": f"job_{self.state}",
            "status": 409,
            "detail": f"{self.id} is {self.state}.",
            **(self.error or {}),
        }
        return problem_of_body(said, job_id=self.id)

    def result_as(self, kind: type[R]) -> R:
        """The result as an object of the class that the operation's own function returns, as `Anonymized`.

        Raises the job's `Problem` if it did not succeed, `ServerFault` if it is no such thing, and `ValueError` if the
        job has not finished.
        """
        if problem := self.problem:
            raise problem
        if self.result is None:
            raise ValueError(f"{self.id} is {self.state} and has no result yet")
        try:
            said = {**self.result, "job_id": self.id, "guard": self.guard}
            return kind.model_validate(said, context=self._driver)
        except ValidationError as error:
            raise ServerFault(
                f"The result of {self.method}/{self.operation} is no {kind.__name__}: {first_error(error)}.",
                extras={"job_id": self.id},
            ) from error


class JobEvent(Facts):
    """Something that happened to a job."""

    id: str
    """Orders the events of one job; `after=` continues behind it. Empty where the record was polled."""
    kind: str
    """`state`, `progress` or `unit`."""
    data: dict[str, Any]
    """`{"state", "stage"}`, `{"step", "of", …}` or `{"done", "of"}`."""

    @property
    def is_last(self) -> bool:
        """Whether the job is finished with this."""
        return self.kind == "state" and self.data.get("state") in FINISHED


class Box(Facts):
    """A rectangle in pixels of the upright picture."""

    x: float
    """Left edge."""
    y: float
    """Upper edge."""
    width: float
    """To the right."""
    height: float
    """Downwards."""


class Model(Facts):
    """Weights that a method can be run with."""

    model: str
    """`method/name@version`, as the `model` of an operation."""
    method: str
    """Whose they are."""
    name: str
    """As `small`."""
    version: int
    """The one that a name without a version means."""
    versions: tuple[int, ...]
    """All versions there are of this name."""
    kind: str
    """`shipped`, `imported` or `trained`."""
    licence: str | None = None
    """What they may be used for."""
    digest: str | None = None
    """SHA-256 in hexadecimal, over its files."""
    card: str | None = None
    """The model card, in Markdown; `models.get` brings it, `models.list` does not."""
    figures: dict[str, Any] = Field(default_factory=dict)
    """How good they are, by their own evaluation."""
    created_at: datetime | None = None
    """When they were made or imported."""


class Operation(Facts):
    """One verb of a method."""

    name: str
    """As in `client.call(method, name, …)`."""
    summary: str = ""
    """One line."""
    kind: str = "compute"
    """`compute`, or `train`: minutes to hours, gives a model."""
    request_schema: dict[str, Any] = Field(default_factory=dict)
    """JSON schema of its fields."""
    response_schema: dict[str, Any] = Field(default_factory=dict)
    """JSON schema of its result."""


class Method(Facts):
    """A method that is served."""

    method: str
    """Its name in `client.call(name, operation, …)`."""
    title: str = ""
    """One line."""
    default_model: str | None = None
    """The model that requests without one are run with."""
    operations: tuple[Operation, ...] = ()
    """What it can do."""
    available: bool = True
    """Whether its service answers at the moment."""
    live: dict[str, Any] | None = None
    """Numbers of this moment: workers, queue depth, mean service time."""


class Key(Facts):
    """What is known of a secret key, none of it secret."""

    key_id: str
    """`key_…`."""
    key_version: int
    """The version that new pictures are made with; older ones still recover."""
    state: str
    """`active`, `disabled`, `pending_destroy` or `destroyed`."""
    label: str
    """What people call it."""
    purposes: tuple[str, ...]
    """What it may be used for: `anonymize`, `recover`, and `forensic` if originals may be kept for exact recovery."""
    default: bool
    """Whether it serves requests that name no key."""
    created_at: datetime
    """When it was made."""
    not_after: datetime | None = None
    """When it is disabled by itself."""
    destroy_at: datetime | None = None
    """When it can be destroyed, once a second custodian has confirmed."""


class AuditEntry(Facts):
    """One entry of the audit trail. What else it says depends on the action, and can be read as attributes."""

    seq: int
    """Number of the entry; there are no gaps in the whole trail, which other tenants write to as well."""
    time: datetime
    """When it was written, which is before the thing was done."""
    action: str
    """As `lease.redeem` or `key.disable`."""
    event: str
    """The exact text that the MAC covers."""
    mac: str
    """Hexadecimal; of the chain up to and including this entry."""

    @model_validator(mode="before")
    @classmethod
    def _with_what_the_event_says(cls, data: Any) -> Any:
        said = json.loads(data["event"]) if isinstance(data, dict) and isinstance(data.get("event"), str) else {}
        return {**said, **data} if isinstance(said, dict) and isinstance(data, dict) else data


class Health(Facts):
    """Whether the service can take work."""

    ready: bool
    """True if everything that requests need answers."""
    checks: dict[str, str] = Field(default_factory=dict)
    """Each part, and `ok` or what is wrong with it."""
    unavailable_methods: tuple[str, ...] = ()
    """Methods whose service is down; the others work."""
