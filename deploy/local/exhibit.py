"""What the demo shows of one method: how long each call took, whether the result is right, and pictures."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tenfold import AsyncClient


@dataclass(frozen=True)
class Visitors:
    """Clients of one running installation, one a role, and the folder of sample photographs."""

    app: AsyncClient
    officer: AsyncClient
    custodian: AsyncClient
    samples: Path


@dataclass(frozen=True)
class Call:
    """One call of an operation."""

    operation: str
    seconds: float


@dataclass(frozen=True)
class Check:
    """A sentence about the result that is true or not, and what was measured."""

    sentence: str
    holds: bool
    measured: str


@dataclass(frozen=True)
class Picture:
    """One picture of the gallery, as a PNG, WebP or JPEG file."""

    caption: str
    media_type: str
    octets: bytes


@dataclass
class Exhibit:
    """One method. A file `demos/<method>.py` fills it: `async def show(visitors, exhibit)`."""

    method: str
    title: str = ""
    calls: list[Call] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    @contextlib.contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Time the call that is made within the block."""
        since = time.perf_counter()
        yield
        self.calls.append(Call(operation, time.perf_counter() - since))

    def check(self, sentence: str, holds: bool, measured: str = "") -> None:
        """Note whether something is as it should be; the demo fails if one check does not hold."""
        self.checks.append(Check(sentence, bool(holds), measured))

    def picture(self, caption: str, octets: bytes, media_type: str = "image/png") -> None:
        """Hang a picture."""
        self.pictures.append(Picture(caption, media_type, octets))

    @property
    def is_right(self) -> bool:
        """At least one check was made, and all hold."""
        return bool(self.checks) and all(check.holds for check in self.checks)
