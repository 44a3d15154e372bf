"""Runs a command; ends with it, or when it is told to, and takes along all that the command has started.

A server's own children outlive it where it is killed, and keep a GPU's memory. This stands between them and us: it is
run as a script, leads their process group, and is told by the kernel when who started it is gone. It is two processes,
since Ray, where a node dies, kills the direct children of its workers, which then could end nothing any more: the one
that is killed is told of by the kernel to the other, which ends the group.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from typing import Any

PATIENCE_S = 5  # between asking and killing
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run what the arguments say, in the second of two processes."""
    first = os.getpid()
    second = os.fork()
    if second:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(second, signal.SIGTERM))
        os.waitpid(second, 0)
        return
    _run(first)


def _run(first: int) -> None:
    """As long as the first process lives, whose id is given."""
    started: list[subprocess.Popen[bytes]] = []

    def kill(*_: Any) -> None:
        os.killpg(0, signal.SIGKILL)

    def ask(*_: Any) -> None:
        for one in started:
            one.terminate()
        signal.alarm(PATIENCE_S)

    signal.signal(signal.SIGALRM, kill)
    signal.signal(signal.SIGTERM, ask)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != first:
        kill()
    started.append(subprocess.Popen(sys.argv[1:]))
    started[0].wait()
    kill()


if __name__ == "__main__":
    main()
