"""The supervisor's ends of the candidate's pipes. None of them ever blocks."""

from __future__ import annotations

import os

CHUNK = 1 << 16
PIPE_BYTES = 1 << 20  # the most a pipe holds


class Output:
    """What comes out of a pipe: kept up to a limit, then only read, so that the writer never waits."""

    def __init__(self, fd: int, limit: int) -> None:
        self.fd, self.limit = fd, limit
        self.kept = bytearray()
        self.seen = 0  # bytes, kept or not
        os.set_blocking(fd, False)

    def read(self) -> int | None:
        """Take a chunk; return its length, 0 at the end, None where nothing is there yet."""
        try:
            chunk = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return None
        except ConnectionError:
            return 0
        self.seen += len(chunk)
        self.kept += chunk[:max(0, self.limit - len(self.kept))]
        return len(chunk)

    def drain(self) -> None:
        """Take what is left in the pipe, however fast a living writer may be."""
        for _ in range(2 * PIPE_BYTES // CHUNK):
            if not self.read():
                return

    def take(self) -> tuple[bytes, bool]:
        """Return what was kept, and whether more was seen; start afresh."""
        taken = bytes(self.kept), self.seen > len(self.kept)
        self.kept.clear()
        self.seen = 0
        return taken


class Input:
    """What goes into a pipe, as fast as its reader takes it."""

    def __init__(self, fd: int, data: bytes) -> None:
        self.fd, self.left = fd, memoryview(data)
        os.set_blocking(fd, False)

    def write(self) -> bool:
        """Give a chunk; False once all is given, or nobody reads any more."""
        try:
            self.left = self.left[os.write(self.fd, self.left[:CHUNK]):]
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        return len(self.left) > 0
