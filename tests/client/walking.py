"""Walks plans without a network: the test says what the server would answer, the clock moves by the plan's pauses."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenfold._context import Context, Options
from tenfold._effects import Close, Emit, Head, Open, Pause, Read, Request
from tenfold.problems import Problem
from tenfold.types import File


@dataclass(frozen=True)
class Reply:
    """What one request comes to: a head, and pieces of a body, in which seconds may pass and a problem may happen."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: Sequence[bytes | float | Problem] = ()
    takes_s: float = 0.0

    @staticmethod
    def of(body: Any, status: int = 200, **headers: str) -> Reply:
        return Reply(
            status, {name.replace("_", "-"): value for name, value in headers.items()}, [json.dumps(body).encode()]
        )


class Walk:
    """A context whose clock is the walk's own, and what a plan did on it."""

    def __init__(self, *, draw: float = 0.5, max_retries: int = 2, timeout_s: float = 30.0) -> None:
        self.time = 1000.0
        self.requests: list[Request] = []
        self.pauses: list[float] = []
        self.items: list[Any] = []
        options = Options("http://tenfold.test", "tf_12345678_secret", timeout_s=timeout_s, max_retries=max_retries)
        self.context: Context[File] = Context(options, File, lambda: self.time, lambda: draw)

    def through(self, plan: Generator[Any, Any, Any], *replies: Reply | Problem) -> Any:
        """Run a plan to its end against these answers, all of which it must ask for. Returns what it returns."""
        left = list(replies)
        pieces: list[bytes | float | Problem] = []
        effect = next(plan, None)
        try:
            while True:
                outcome: Any = None
                problem: Problem | None = None
                match effect:
                    case Open(request):
                        self.requests.append(request)
                        assert left, f"one request too many: {request.method} {request.path}"
                        reply = left.pop(0)
                        if isinstance(reply, Problem):
                            problem = reply
                        else:
                            self.time += reply.takes_s
                            outcome, pieces = Head(reply.status, reply.headers), list(reply.pieces)
                    case Read():
                        piece = pieces.pop(0) if pieces else None
                        while isinstance(piece, float):
                            self.time += piece
                            piece = pieces.pop(0) if pieces else None
                        if isinstance(piece, Problem):
                            problem = piece
                        else:
                            outcome = piece
                    case Close():
                        pieces = []
                    case Pause(seconds):
                        assert seconds >= 0
                        self.pauses.append(seconds)
                        self.time += seconds
                    case Emit(item):
                        self.items.append(item)
                effect = plan.throw(problem) if problem else plan.send(outcome)
        except StopIteration as stop:
            assert not left, f"{len(left)} answers were never asked for"
            return stop.value
