"""Who gets the device next: the method that used it least in the last minute."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

WINDOW_S = 60.0  # device time older than this is forgiven


class FairShare:
    """Device seconds by method over a sliding window. Times are seconds of a monotonic clock, given by the caller."""

    def __init__(self) -> None:
        self._spans: deque[tuple[float, str, float]] = deque()
        self._used: dict[str, float] = {}

    def charge(self, method: str, seconds: float, now: float) -> None:
        """Book `seconds` of device time that ended at `now`."""
        self._spans.append((now, method, seconds))
        self._used[method] = self._used.get(method, 0.0) + seconds

    def used(self, method: str, now: float) -> float:
        """Device seconds of this method within the window."""
        while self._spans and self._spans[0][0] < now - WINDOW_S:
            _, old, seconds = self._spans.popleft()
            self._used[old] -= seconds
        return self._used.get(method, 0.0)

    def choose(self, methods: Iterable[str], now: float) -> str | None:
        """The method that used least; the first of equals; None of none."""
        return min(methods, key=lambda method: self.used(method, now), default=None)
