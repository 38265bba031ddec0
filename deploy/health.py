"""A container's health check: `python -m deploy.health URL|FILE`, exit status 0 or 1.

URL   answers 200
FILE  was touched within three heartbeats of a worker

It runs every few seconds in every container, so it imports nothing but what Python brings.
"""

from __future__ import annotations

import sys
import time
import urllib.request
from pathlib import Path

_ANSWER_WITHIN_S = 4.0
_BEATEN_WITHIN_S = 20.0  # as long as the job store counts a worker that is silent


def main(argv: list[str] | None = None) -> int:
    try:
        (what,) = sys.argv[1:] if argv is None else argv
    except ValueError:
        sys.stderr.write("one URL or one file\n")
        return 2
    return int(not (_answers(what) if what.startswith("http://") else _beats(Path(what))))


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=_ANSWER_WITHIN_S) as answer:
            status: int = answer.status
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return False
    return status == 200


def _beats(path: Path) -> bool:
    try:
        silent_s = time.time() - path.stat().st_mtime
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return False
    sys.stderr.write(f"the last heartbeat was {silent_s:.0f} s ago\n")
    return silent_s < _BEATEN_WITHIN_S


if __name__ == "__main__":
    sys.exit(main())
