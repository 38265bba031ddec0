"""How the client separates deciding from doing.

A *plan* is a generator that yields what is to be done next and is sent what came of it. It holds every decision: what
to send, what an answer means, whether to try again and after how long. It does no I/O, so that a test can walk it with
answers of its own, and so that `Client` and `AsyncClient` behave the same: each is a loop that does what the plan asks
(`_drivers.py`). A failed effect is thrown into the plan as a `Problem`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from tenfold._inputs import Upload

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Part:
    """One part of a multipart body: text as bytes, or a file."""

    name: str
    value: bytes | Upload
    media_type: str | None = None


@dataclass(frozen=True)
class Request:
    """One HTTP request, without the API key, which only the drivers see.

    path        absolute, its segments quoted
    body        JSON text; at most one of body, parts and content is set
    parts       a multipart body
    content     a file as the whole body
    silence_s   longest silence of the server; None is the client's `timeout_s`
    """

    method: Literal["GET", "HEAD", "POST", "DELETE"]
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    parts: tuple[Part, ...] = ()
    content: Upload | None = None
    silence_s: float | None = None

    @property
    def uploads(self) -> list[Upload]:
        """The files in the body."""
        files = [part.value for part in self.parts if isinstance(part.value, Upload)]
        return files if self.content is None else [*files, self.content]

    @property
    def is_repeatable(self) -> bool:
        """Whether the server does the same thing once, however often it receives this."""
        return self.method != "POST" or "Idempotency-Key" in self.headers


@dataclass(frozen=True)
class Head:
    """Status and headers of an answer. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Answer(Head):
    """An answer with its whole body."""

    body: bytes


@dataclass(frozen=True)
class Open:
    """Send a request, once. Comes to a `Head`; ends what was open before."""

    request: Request


@dataclass(frozen=True)
class Read:
    """Read on. Comes to the next bytes of the body, or to None at its end."""


@dataclass(frozen=True)
class Close:
    """Be done with the answer, read to its end or not. Comes to None."""


@dataclass(frozen=True)
class Pause:
    """Let time pass. Comes to None."""

    seconds: float


@dataclass(frozen=True)
class Emit(Generic[T_co]):
    """Hand an item to the caller. Comes to None."""

    item: T_co


Effect: TypeAlias = Open | Read | Close | Pause
Plan: TypeAlias = Generator[Effect, Any, T]
"""A plan that returns one result."""
Stream: TypeAlias = Generator[Effect | Emit[T], Any, None]
"""A plan that hands over items on its way."""


def drained(stream: Stream[Any]) -> Plan[None]:
    """The same plan, its items dropped."""
    answer: Any = None
    problem: Exception | None = None
    try:
        while True:
            effect = stream.send(answer) if problem is None else stream.throw(problem)
            answer = problem = None
            if isinstance(effect, Emit):
                continue
            try:
                answer = yield effect
            except Exception as error:  # noqa: BLE001 - it is the inner plan's to judge
                problem = error
    except StopIteration:
        return
    finally:
        stream.close()
