"""What child processes print: whole lines in a file of bounded size, the last few kept at hand."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import IO, Self

LIMIT_BYTES = 8 * 2**20  # then the file becomes NAME.log.1, and the one before that is dropped
_TAIL_LINES = 20
_LONGEST_LINE_BYTES = 64 * 1024  # a longer one is cut into several, so that a runaway line fills no memory


class LogFile:
    """Lines of one process, appended to a file that is private to its owner."""

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.path = path
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._limit_bytes = limit_bytes
        self._partial = b""
        self._file = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keep([self._partial] if self._partial else [])
        self._file.close()

    def write(self, chunk: bytes) -> list[str]:
        """Take bytes as they come from a pipe; return the lines that they complete, without their ends."""
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if len(self._partial) > _LONGEST_LINE_BYTES:
            lines.append(self._partial)
            self._partial = b""
        return self._keep(lines)

    def _keep(self, lines: list[bytes]) -> list[str]:
        texts = [line.decode(errors="replace").rstrip("\r") for line in lines]
        self.tail.extend(texts)
        if texts:
            self._file.write(b"".join(text.encode() + b"\n" for text in texts))
            self._file.flush()
            if self._file.tell() > self._limit_bytes:
                self._file.close()
                self.path.replace(self.path.with_name(self.path.name + ".1"))
                self._file = self._open()
        return texts

    def _open(self) -> IO[bytes]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return open(self.path, "ab", opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
