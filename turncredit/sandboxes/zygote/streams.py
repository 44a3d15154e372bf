"""A slot's ends of the candidate's pipes. Bytes move inside the kernel (splice), and nothing ever blocks.

A slot must not read them: what stays in its memory, the candidates of later executions are forked with.
"""

from __future__ import annotations

import os

CHUNK = 1 << 20  # the most a pipe holds


class Output:
    """What comes out of a pipe: kept up to a limit, then only read, so that the writer never waits."""

    def __init__(self, pipe: int, nowhere: int) -> None:
        self.pipe, self.nowhere = pipe, nowhere  # nowhere: /dev/null
        self.limit = self.kept = 0  # bytes
        self.cut = self.ended = False
        self.store = -1  # a memory file, once something came

    def move(self) -> int | None:
        """Take what is there; return its length, 0 at the end, None where nothing is there yet."""
        room = self.limit - self.kept
        if self.store < 0:
            self.store = os.memfd_create("output")
        try:
            if room:
                moved = os.splice(self.pipe, self.store, min(room, CHUNK), flags=os.SPLICE_F_NONBLOCK)
                self.kept += moved
            else:
                moved = os.splice(self.pipe, self.nowhere, CHUNK, flags=os.SPLICE_F_NONBLOCK)
                self.cut |= moved > 0
        except BlockingIOError:
            return None
        self.ended = moved == 0
        return moved

    def drain(self) -> None:
        """Take what is left in the pipe, however fast a living writer may be."""
        for _ in range(4):
            if self.ended or not self.move():
                return

    def take(self) -> tuple[int, int, bool]:
        """Return how many bytes were kept, the memory file that has them, and whether there were more."""
        taken = self.kept, self.store, self.cut
        self.kept, self.store, self.cut = 0, -1, False
        return taken


class Input:
    """What goes into a pipe, from a part of a memory file, as fast as its reader takes it."""

    def __init__(self, pipe: int, store: int, start: int, length: int) -> None:
        self.pipe, self.store = pipe, store
        self.at, self.end = start, start + length
        os.set_blocking(pipe, False)

    def move(self) -> bool:
        """Give a chunk; False once all is given, or nobody reads any more."""
        try:
            self.at += os.splice(self.store, self.pipe, self.end - self.at, offset_src=self.at,
                                 flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        return self.at < self.end
