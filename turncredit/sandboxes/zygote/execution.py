"""A candidate seen by its slot: its pipes, its limits, and the end of everything it started."""

from __future__ import annotations

import _socket
import contextlib
import fcntl
import functools
import gc
import marshal
import math
import os
import select
import signal
import socket
import time
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from . import candidate, packets, syscalls
from .cgroups import SlotCgroup
from .streams import Input, Output

FIRST_LOOK_S, LOOK_EVERY_S = 0.02, 0.04  # at what the processes use together
ANY_KIND = 0x40000000  # __WALL: wait for children that `clone` made without SIGCHLD too
TICKS, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
ABOVE = 128  # where a new candidate's descriptors are kept while those below are closed
WALL, CPU, MEMORY, SIGNAL = "wall time", "cpu time", "memory", "signal"  # the values of KilledBy
HUNG_UP, ASKED = "hung up", "asked"  # the program that opened the sandbox let go, or sent a message


@dataclass
class Usage:
    """What all processes of an execution use together."""

    cpu_s: float
    memory_bytes: int


class Execution:
    """One candidate and its descendants: all processes of the slot's pid namespace but the slot.

    Made ahead of its request: the candidate is forked and confined, and waits for `go`.

    Args:
        main: what the candidate's code becomes.
        parent: the way to the program that opened the sandbox; its hang-up ends the execution.
        nowhere: a descriptor of /dev/null.
    """

    def __init__(self, held: candidate.Confinement, main: types.ModuleType, cgroup: SlotCgroup,
                 parent: packets.Parent, nowhere: int) -> None:
        self.cgroup, self.parent = cgroup, parent
        self.poll = select.poll()
        self.ready: dict[int, Callable[[int], None]] = {}
        self.limits: dict[str, Any] = {}
        self.wait_status: int | None = None  # of the candidate's own process
        self.alone = False  # no process of its is left
        self.reaped_cpu_s = self.cpu_before = 0.0  # of those that ended; of all before the present cell
        self.peak_bytes = self.largest_resident = 0
        stdin, self._stdin = os.pipe()
        out, out_write = os.pipe()
        err, err_write = os.pipe()
        self._status, status_write = os.pipe()
        # Without the class around it, whose conversions copy many pages.
        self.word, word = (end.detach() for end in _socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
        gc.freeze()  # the candidate's collector starts from nothing: what it touches of ours would be copied
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for descriptor, number in ((stdin, 0), (out_write, 1), (err_write, 2)):
                    os.dup2(descriptor, number)
                status = fcntl.fcntl(status_write, fcntl.F_DUPFD_CLOEXEC, ABOVE)
                word = fcntl.fcntl(word, fcntl.F_DUPFD_CLOEXEC, ABOVE)
                os.closerange(3, ABOVE)
                candidate.live(held, main, word, status)
            finally:
                os._exit(1)  # whatever happened, this process never goes on as a slot
        for descriptor in (stdin, out_write, err_write, status_write, word):
            os.close(descriptor)
        self._ended = os.pidfd_open(self.pid)
        self.out, self.err = Output(out, nowhere), Output(err, nowhere)
        self._descriptors = [self._stdin, out, err, self._status, self._ended, self.word]

    def go(self, request: dict[str, Any], store: int = -1, parts: Iterable[tuple[int, int]] = ()) -> None:
        """Give the candidate its request, and parts of a memory file: from here on its limits hold.

        Args:
            parts: where each begins, and its length.
        """
        self.limits = request["limits"]
        self.out.limit = self.err.limit = self.limits["output_bytes"]
        self.cgroup.limit(self.limits["memory_bytes"], self.limits["processes"])
        self.watch(self.out.pipe, select.POLLIN, lambda event: self._took(self.out, event))
        self.watch(self.err.pipe, select.POLLIN, lambda event: self._took(self.err, event))
        self.watch(self._ended, select.POLLIN, lambda _: self.reap())
        self.began = time.monotonic()
        data = marshal.dumps(request)
        try:
            os.write(self.word, candidate.LENGTH.pack(len(data)) + data)
            for start, length in parts:
                sent = 0
                while sent < length:
                    sent += os.sendfile(self.word, store, start + sent, length - sent)
        except ConnectionError:  # its end tells why
            return

    def give_stdin(self, store: int, start: int, length: int) -> None:
        """Feed a part of a memory file to the candidate's standard input, and end it there."""
        feed = Input(self._stdin, store, start, length)
        if length and feed.move():
            self.watch(self._stdin, select.POLLOUT, lambda _: None if feed.move() else self._end_stdin())
        else:
            self._end_stdin()

    def _end_stdin(self) -> None:
        if self._stdin in self.ready:
            self.unwatch(self._stdin)
        os.close(self._stdin)
        self._descriptors.remove(self._stdin)

    def watch(self, descriptor: int, events: int, ready: Callable[[int], None]) -> None:
        """Call `ready` with what poll says of the descriptor."""
        self.poll.register(descriptor, events)
        self.ready[descriptor] = ready

    def unwatch(self, descriptor: int) -> None:
        self.poll.unregister(descriptor)
        del self.ready[descriptor]

    def _took(self, output: Output, event: int) -> None:
        if event == select.POLLHUP:  # without POLLIN: nothing is left in it
            output.ended = True
        elif output.move() != 0:
            return
        self.unwatch(output.pipe)

    def over(self) -> bool:
        """Say whether the candidate's own process has ended."""
        return self.wait_status is not None

    def wait(self, until: Callable[[], bool], *, wall_s: float = math.inf, look_every_s: float = LOOK_EVERY_S,
             listen: bool = False) -> str | None:
        """Move bytes until `until()`; return what came before it, if anything: a limit, or the parent.

        Args:
            look_every_s: how often to look at what the processes use.
            listen: a message from the parent ends the wait as well (ASKED).
        """
        self.poll.register(self.parent, select.POLLRDHUP | listen * select.POLLIN)
        began = time.monotonic()
        look = began + FIRST_LOOK_S
        try:
            while not until():
                now = time.monotonic()
                if now >= began + wall_s:
                    return WALL
                if now >= look:
                    if cut := self.look():
                        return cut
                    look = now + look_every_s
                for descriptor, event in self.poll.poll((min(look, began + wall_s) - now) * 1000 + 1):
                    if descriptor == self.parent.fileno():
                        return ASKED if event == select.POLLIN else HUNG_UP
                    if descriptor in self.ready:
                        self.ready[descriptor](event)
        finally:
            self.poll.unregister(self.parent)
        return None

    def reap(self, options: int = os.WNOHANG) -> None:
        """Collect the processes that ended: the candidate, and orphans that came to PID 1."""
        while not self.alone:
            try:
                pid, status, used = os.wait4(-1, options | ANY_KIND)
            except ChildProcessError:  # who is left would be a child of PID 1, or have one among its parents
                self.alone = True
                return
            if pid == 0:
                return
            self.reaped_cpu_s += used.ru_utime + used.ru_stime
            self.largest_resident = max(self.largest_resident, used.ru_maxrss * 1024)
            if pid == self.pid:
                self.wait_status = status
                if self._ended in self.ready:
                    self.unwatch(self._ended)

    @functools.cached_property
    def base(self) -> tuple[int, int]:
        """What every process of it starts with: see `_memory`."""
        return _memory("self")

    @property
    def largest_bytes(self) -> int:
        """The most that one process used, of those that were reaped."""
        return max(0, self.largest_resident - self.base[1])

    def look(self) -> str | None:
        """Compare what all processes use with the limits; return the limit that is passed, if any."""
        self.reap()
        usage = self.usage()
        self.peak_bytes = max(self.peak_bytes, usage.memory_bytes)
        if usage.cpu_s > self.limits["cpu_s"]:
            return CPU
        return MEMORY if self._ran_out(usage.memory_bytes) else None

    def _ran_out(self, memory_bytes: int) -> bool:
        limit: int = self.limits["memory_bytes"]
        return self.cgroup.ran_out_of_memory() if self.cgroup.counts_memory else memory_bytes > limit

    def usage(self) -> Usage:
        """Add up the living (from /proc) and the reaped. Memory is private pages beyond the slot's own."""
        ticks = memory = 0
        for name in os.listdir("/proc"):
            if name.isdigit() and name != "1":
                try:
                    stat = syscalls.read_file(f"/proc/{name}/stat")
                    ticks += sum(map(int, stat.rpartition(b")")[2].split()[11:15]))
                    memory += max(0, _memory(name)[0] - self.base[0])
                except (FileNotFoundError, ProcessLookupError):
                    continue
        return Usage(ticks / TICKS + self.reaped_cpu_s - self.cpu_before, memory)

    def end(self) -> None:
        """Kill and reap everything but ourselves: one kill(-1), which no fork can outrun."""
        self.reap()
        if not self.alone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            self.reap(options=0)
        self.out.drain()
        self.err.drain()

    def failure(self) -> str | None:
        """Say why the process never became a candidate, if it did not. Call it after `end`."""
        return os.read(self._status, 4096).decode(errors="replace") or None

    def verdict(self, cut: str | None) -> dict[str, object]:
        """Say how it ended and what it used, once it did."""
        assert self.wait_status is not None
        cpu_s = self.reaped_cpu_s - self.cpu_before
        killed_by = cut or self._own_end(self.wait_status, cpu_s)
        return {"exit": None if killed_by else os.waitstatus_to_exitcode(self.wait_status),
                "killed_by": killed_by, **self._used(cpu_s)}

    def so_far(self) -> dict[str, object]:
        """Say what it used, while it lives."""
        usage = self.usage()
        self.peak_bytes = max(self.peak_bytes, usage.memory_bytes)
        return self._used(usage.cpu_s)

    def _used(self, cpu_s: float) -> dict[str, object]:
        peak_bytes = self.cgroup.peak_bytes() or max(self.peak_bytes, self.largest_bytes)
        return {"wall_s": time.monotonic() - self.began, "cpu_s": cpu_s, "peak_bytes": peak_bytes}

    def _own_end(self, status: int, cpu_s: float) -> str | None:
        """Say which limit stands behind a candidate's own end, if one does."""
        if status == 0:  # what ended well may have mapped large files
            return MEMORY if self._ran_out(0) else None
        if self._ran_out(self.largest_bytes):
            return MEMORY
        if not os.WIFSIGNALED(status):
            return None
        by = os.WTERMSIG(status)
        if by == signal.SIGXCPU or (by == signal.SIGKILL and cpu_s >= self.limits["cpu_s"]):
            return CPU
        return SIGNAL

    def answer(self, header: dict[str, object], extra: int = -1, lengths: Sequence[int] = ()) -> None:
        """Send the header to the parent, with what came out and the byte strings of one more memory file."""
        (out_length, out, out_cut), (err_length, err, err_cut) = self.out.take(), self.err.take()
        groups = [[out_length], [err_length], list(lengths)]
        stores = [out, err, extra]
        self.parent.send({**header, "cut": [out_cut, err_cut], "blobs": groups},
                     [store for store, group in zip(stores, groups) if any(group)])
        for store in (out, err):
            if store >= 0:
                os.close(store)

    def close(self) -> None:
        """Let go of every descriptor, once it has ended."""
        for output in (self.out, self.err):
            _, store, _ = output.take()
            if store >= 0:
                os.close(store)
        for descriptor in self._descriptors:
            os.close(descriptor)


def _memory(process: str) -> tuple[int, int]:
    """Return a process's resident bytes that are no file's and no tmpfs's, and all its resident bytes."""
    _, resident, shared, *_ = map(int, syscalls.read_file(f"/proc/{process}/statm").split())
    return (resident - shared) * PAGE, resident * PAGE
