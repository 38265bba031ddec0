"""Become a program that ends when its parent does: `python -I -S launch.py PARENT SIGNAL PROGRAM ARGUMENT…`.

It stands between fork and exec as a program of its own, because Python code between the two (`preexec_fn`) may
deadlock in a process with threads. The request to the kernel outlives the exec. It imports the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def ask_for_signal_when_parent_ends(signal_number: int) -> None:
    """Let the kernel send this process a signal when its parent ends, however it ends. Only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


def main() -> None:
    parent, signal_number, program, *arguments = sys.argv[1:]
    ask_for_signal_when_parent_ends(int(signal_number))
    if os.getppid() != int(parent):  # it ended before the kernel knew of our wish
        sys.exit("the parent has ended")
    os.execvp(program, [program, *arguments])  # noqa: S606 - the supervisor's own command, no shell


if __name__ == "__main__":
    main()
