"""What a method's author imports: a `Service`, its operations, and the context they run in."""

from __future__ import annotations

import builtins
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from shared import guard
from shared.jobcontext import JobContext
from shared.jobs import GUARDING
from shared.problems import OperationNotFound
from shared.types import Archive, Document, File, Image, ModelRef, Request, Response

if TYPE_CHECKING:
    from shared.images import Picture

__all__ = [
    "Archive",
    "Document",
    "File",
    "Image",
    "JobContext",
    "ModelRef",
    "Operation",
    "Request",
    "Response",
    "Service",
]

Sensitive = Literal["nothing", "inputs", "everything"]


@dataclass(frozen=True)
class Operation:
    """One verb of a method, and how the runtime is to treat it."""

    method: str
    name: str
    function: Callable[..., Any]
    request: type[Request]
    response: type[Response]
    kind: Literal["compute", "train"]
    batch: int
    batch_on_cpu: int
    batch_by: tuple[str, ...]
    batch_wait_s: float
    wait_s: float
    deadline_s: float
    attempts: int
    scope: str | Callable[[Any], str]
    lease: Literal["anonymize", "recover", "verify"] | None
    sensitive: Sensitive
    views: Callable[[Any, Any], Sequence[Picture]] | None = None
    """What a guard looks at, where that is not simply the request's pictures."""

    @property
    def title(self) -> str:
        """First line of the docstring."""
        return self.text.split("\n", 1)[0]

    @property
    def text(self) -> str:
        """The docstring: the operation's text in the OpenAPI document."""
        return inspect.getdoc(self.function) or self.name

    @property
    def queue(self) -> str:
        return self.method if self.kind == "compute" else f"{self.method}.train"

    def scope_of(self, request: Request) -> str:
        """The scope that a caller needs for this request."""
        return self.scope(request) if callable(self.scope) else self.scope

    def group_of(self, request: Request) -> tuple[Any, ...]:
        """What must be equal for two requests to share a batch."""
        return tuple(_attribute(request, path) for path in self.batch_by)

    def description(self) -> dict[str, Any]:
        """What `GET /v1/methods/{method}` says of it."""
        return {
            "name": self.name,
            "summary": self.title,
            "kind": self.kind,
            "wait_s": self.wait_s,
            "deadline_s": self.deadline_s,
            "scope": None if callable(self.scope) else self.scope,
            "lease": self.lease,
            "sensitive": self.sensitive,
            "request_schema": self.request.model_json_schema(),
            "response_schema": self.response.model_json_schema(mode="serialization"),
        }


def _attribute(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = getattr(value, name)
    return value


@dataclass
class Service:
    """A method: its name, its pipeline and its operations.

    name      as in URLs, `[a-z0-9-]+`
    pipeline  `module:Class` with `load(folder, device)`; imported by the worker alone
    """

    name: str
    title: str
    pipeline: str
    default_model: str | None = ""
    operations: dict[str, Operation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9-]{1,63}", self.name):
            raise ValueError(f"{self.name!r} is no name of a method")
        if self.default_model == "":
            self.default_model = f"{self.name}/small"

    @property
    def trains(self) -> bool:
        """Whether one of its operations is a training."""
        return any(operation.kind == "train" for operation in self.operations.values())

    def operation(
        self,
        *,
        batch: int = 1,
        batch_on_cpu: int | None = None,
        batch_by: Sequence[str] = (),
        batch_wait_s: float = 0.005,
        wait: float = 20,
        deadline_s: float = 3600,
        attempts: int = 2,
        scope: str | Callable[[Any], str] = "use",
        lease: Literal["anonymize", "recover", "verify"] | None = None,
        sensitive: Sensitive = "nothing",
        views: Callable[[Any, Any], Sequence[Picture]] | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Offer `function(pipeline, requests, job)` as `POST /v1/{method}/{name}`.

        batch         requests that one call may hold on an accelerator
        batch_on_cpu  the same on a CPU, where stacking seldom pays; default: as many
        batch_by      attributes that must be equal within a batch; "model" is always one if the request has it
        batch_wait_s  how long a batch waits for requests that are being decoded
        wait          seconds that a caller waits for the answer by default before it gets 202
        attempts      how often the job may be started when workers die
        scope         what the API key must be allowed, or a function of the request that says it
        lease         the kind of custody lease that the gateway opens for the job
        sensitive     which files only the principal that made them may see, for 15 minutes, encrypted at rest
        views         `views(pipeline, request)`: the pictures that a guard is shown (`shared.guard`); by default those
                      of the request

        The function answers with one response a request, or a `Problem` in its place.
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            request = _annotation(function, "requests")
            response = _annotation(function, "return")
            if self.name != GUARDING and guard.shows_pictures(request):
                request = guard.guarded(request)
            by = tuple(batch_by)
            if "model" in request.model_fields and "model" not in by:
                by = ("model", *by)
            self._add(
                Operation(
                    method=self.name,
                    name=function.__name__.replace("_", "-"),
                    function=function,
                    request=request,
                    response=response,
                    kind="compute",
                    batch=batch,
                    batch_on_cpu=batch if batch_on_cpu is None else batch_on_cpu,
                    batch_by=by,
                    batch_wait_s=batch_wait_s,
                    wait_s=wait,
                    deadline_s=deadline_s,
                    attempts=attempts,
                    scope=scope,
                    lease=lease,
                    sensitive=sensitive,
                    views=views,
                )
            )
            return function

        return register

    def training(
        self, *, deadline_s: float = 24 * 3600, attempts: int = 5, scope: str = "use"
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Offer `function(pipeline, request, job)` as a training: one at a time, checkpointed, in a trainer process.

        The pipeline is the class itself: what a training starts from it loads, or makes.
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            self._add(
                Operation(
                    method=self.name,
                    name=function.__name__.replace("_", "-"),
                    function=function,
                    request=_annotation(function, "request"),
                    response=_annotation(function, "return"),
                    kind="train",
                    batch=1,
                    batch_on_cpu=1,
                    batch_by=(),
                    batch_wait_s=0,
                    wait_s=0,
                    deadline_s=deadline_s,
                    attempts=attempts,
                    scope=scope,
                    lease=None,
                    sensitive="nothing",
                )
            )
            return function

        return register

    def _add(self, operation: Operation) -> None:
        if operation.name in self.operations:
            raise ValueError(f"{self.name} has two operations named {operation.name}")
        self.operations[operation.name] = operation

    def get(self, name: str) -> Operation:
        """The operation of this name. Raises `OperationNotFound`, which lists those there are."""
        try:
            return self.operations[name]
        except KeyError:
            raise OperationNotFound(f"{self.name} has no operation {name!r}.", operations=[*self.operations]) from None

    def description(self) -> dict[str, Any]:
        """What `GET /v1/methods/{method}` says, but for the live numbers."""
        return {
            "method": self.name,
            "title": self.title,
            "default_model": self.default_model,
            "operations": [operation.description() for operation in self.operations.values()],
        }


class _Names(dict[str, Any]):
    """Local names for evaluating one annotation: what is imported for type checkers only counts as `Any`."""

    def __init__(self, known: dict[str, Any]) -> None:
        super().__init__()
        self._known = known

    def __missing__(self, name: str) -> Any:
        if name in self._known or hasattr(builtins, name):
            raise KeyError(name)
        return Any


def _annotation(function: Callable[..., Any], name: str) -> Any:
    """The model class that an operation's signature names for `name`: `Model`, or the `Model` of `list[Model | …]`."""
    annotation = function.__annotations__.get(name)
    if annotation is None:
        raise TypeError(f"{function.__qualname__} needs an annotation of {name!r}")
    if isinstance(annotation, str):
        known = vars(inspect.getmodule(function))
        annotation = eval(annotation, known, _Names(known))  # noqa: S307 - the author's own annotation
    origin: Any = get_origin(annotation)
    if origin is list:
        (annotation,) = get_args(annotation)
    models = [part for part in get_args(annotation) or (annotation,) if isinstance(part, type)]
    for model in models:
        if issubclass(model, Request | Response):
            return model
    raise TypeError(f"{function.__qualname__}: {name!r} is {annotation!r}, not a Request or Response")
