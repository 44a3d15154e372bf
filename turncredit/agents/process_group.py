"""Runs a command; ends with it, or when it is told to, and takes along all that the command has started.

A server's own children outlive it where it is killed, and keep a GPU's memory. This stands between them and us: it is
run as a script, leads their process group, and is told by the kernel when who started it is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

PATIENCE_S = 5  # between asking and killing


def main() -> None:
    """Run what the arguments say."""
    started: list[subprocess.Popen[bytes]] = []

    def kill(*_: Any) -> None:
        os.killpg(0, signal.SIGKILL)

    def ask(*_: Any) -> None:
        for one in started:
            one.terminate()
        signal.alarm(PATIENCE_S)

    signal.signal(signal.SIGALRM, kill)
    signal.signal(signal.SIGTERM, ask)
    started.append(subprocess.Popen(sys.argv[1:]))
    started[0].wait()
    kill()


if __name__ == "__main__":
    main()
