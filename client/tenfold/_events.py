"""Server-sent events, from bytes as they arrive."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from tenfold import _constants as bounds
from tenfold.problems import ServerFault


@dataclass(frozen=True)
class ServerEvent:
    """One event. `id` is the last name that the stream gave, which need not be this event's own."""

    kind: str
    data: str
    id: str


class EventParser:
    """Reads `text/event-stream` as the HTML standard defines it, in pieces cut anywhere.

    `retry` fields are ignored: how long to wait is the client's to decide (`_constants.py`).
    """

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest: list[str] = []  # of a line whose end has not come
        self._is_first = True
        self._after_return = False  # the last character was \r: a \n now belongs to it
        self._kind = ""
        self._data: list[str] = []
        self._length = 0  # of the event so far

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """The events that are complete with this piece. Raises `ServerFault` for one beyond all measure."""
        events = []
        for line in self._lines(self._decoder.decode(chunk)):
            if line:
                self._field(line)
            elif event := self._dispatched():
                events.append(event)
        if self._length > bounds.EVENT_LIMIT_BYTES:
            raise ServerFault(f"An event has more than {bounds.EVENT_LIMIT_BYTES} characters.")
        return events

    def _lines(self, text: str) -> list[str]:
        """The lines that `text` completes."""
        if self._is_first and text:
            text, self._is_first = text.removeprefix("\ufeff"), False
        self._length += len(text)
        if self._after_return and text:
            text, self._after_return = text.removeprefix("\n"), False
        self._after_return = text.endswith("\r") or self._after_return
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if lines:
            lines[0] = "".join(self._rest) + lines[0]
            self._rest.clear()
        self._rest.append(rest)
        return lines

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._kind = value
            case "id" if "\0" not in value:
                self.last_id = value

    def _dispatched(self) -> ServerEvent | None:
        kind, data = self._kind, self._data
        self._kind, self._data, self._length = "", [], 0
        return ServerEvent(kind or "message", "\n".join(data), self.last_id) if data else None
