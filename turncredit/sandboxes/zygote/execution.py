"""A candidate process seen by its supervisor: its pipes, its limits, and the end of all it started."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import math
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from . import candidate
from .cgroups import SlotCgroup
from .frames import Stream
from .streams import Input, Output

FIRST_LOOK_S, LOOK_EVERY_S = 0.02, 0.04  # at what the processes use together
TICKS, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
ABOVE = 128  # where descriptors are kept while those below are closed
WALL, CPU, MEMORY, SIGNAL = "wall time", "cpu time", "memory", "signal"  # the values of KilledBy
HUNG_UP, ASKED = "hung up", "asked"  # the program that opened the sandbox let go, or sent a message


@dataclass
class Usage:
    """What all processes of the execution use together, the supervisor left out."""

    cpu_s: float
    memory_bytes: int


class Execution:
    """One candidate process and its descendants.

    Args:
        parent: the stream to the program that opened the sandbox; its hang-up ends the execution.
        limits: the fields of `Limits`.
    """

    def __init__(self, held: candidate.Confinement, cgroup: SlotCgroup, parent: Stream,
                 limits: dict[str, Any]) -> None:
        self.held, self.cgroup, self.parent, self.limits = held, cgroup, parent, limits
        self.poll = select.poll()
        self.ready: dict[int, Callable[[], None]] = {}
        self.pid = 0
        self.wait_status: int | None = None  # of the candidate's own process
        self.cpu_before = 0.0  # where the present step began
        self.peak_bytes = 0
        self.channel: socket.socket | None = None

    def start(self, become: Callable[[], NoReturn], *, files: dict[str, bytes], stdin: bytes = b"",
              session: bool = False) -> None:
        """Fork the candidate; it confines itself, writes `files` and goes on as `become`."""
        self.cgroup.limit(self.limits["memory_bytes"], self.limits["processes"])
        self.base_bytes = _private_bytes("self")
        (stdin_read, stdin_write), (out, out_write), (err, err_write), (status, status_write) = (
            os.pipe() for _ in range(4))
        theirs: socket.socket | None = None
        if session:
            self.channel, theirs = socket.socketpair()
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for fd, number in ((stdin_read, 0), (out_write, 1), (err_write, 2)):
                    os.dup2(fd, number)
                status_write = fcntl.fcntl(status_write, fcntl.F_DUPFD_CLOEXEC, ABOVE)
                kept = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, ABOVE) if theirs else -1
                os.closerange(3, ABOVE)
                candidate.confine(self.held, self.limits, session=session)
                candidate.write_files(files)
                if session:
                    os.dup2(kept, candidate.CHANNEL, inheritable=False)
            except BaseException as error:
                candidate.report(error, status_write)
            os.closerange(4 if session else 3, candidate.OPEN_FILES)
            become()
        for fd in (stdin_read, out_write, err_write, status_write):
            os.close(fd)
        if theirs:
            theirs.close()
        self.ended = os.pidfd_open(self.pid)
        self.out, self.err = (Output(pipe, self.limits["output_bytes"]) for pipe in (out, err))
        self.status = Output(status, 1 << 16)  # what kept it from becoming a candidate, if anything
        self.starting = True
        for output in (self.out, self.err, self.status):
            self.receive(output)
        self.watch(self.ended, select.POLLIN, self.reap)
        self.give(stdin_write, stdin, close=True)

    def receive(self, output: Output) -> None:
        """Read the output while waiting, until its end."""
        self.watch(output.fd, select.POLLIN, functools.partial(self._took, output))

    def over(self) -> bool:
        """Say whether the candidate's own process has ended."""
        return self.wait_status is not None

    def watch(self, fd: int, events: int, ready: Callable[[], None]) -> None:
        self.poll.register(fd, events)
        self.ready[fd] = ready

    def unwatch(self, fd: int) -> None:
        self.poll.unregister(fd)
        del self.ready[fd]

    def give(self, fd: int, data: bytes, *, close: bool) -> None:
        """Write `data` to the descriptor while waiting, and close it then where asked to."""
        feed = Input(fd, data)

        def go_on() -> None:
            if not feed.write():
                if fd in self.ready:
                    self.unwatch(fd)
                if close:
                    os.close(fd)

        self.watch(fd, select.POLLOUT, go_on)
        go_on()

    def _took(self, output: Output) -> None:
        if output.read() == 0:
            self.unwatch(output.fd)
            self.starting &= output is not self.status

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
                for fd, event in self.poll.poll((min(look, began + wall_s) - now) * 1000 + 1):
                    if fd == self.parent.fileno():
                        return ASKED if event == select.POLLIN else HUNG_UP
                    if fd in self.ready:
                        self.ready[fd]()
        finally:
            self.poll.unregister(self.parent)
        return None

    def reap(self) -> None:
        """Collect the processes that ended: the candidate, and orphans that came to PID 1."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._note(*ended)

    def _note(self, pid: int, status: int) -> None:
        if pid == self.pid:
            self.wait_status = status
            self.unwatch(self.ended)

    def look(self) -> str | None:
        """Compare what all processes use with the limits; return the limit that is passed, if any."""
        self.reap()
        usage = self.usage()
        self.peak_bytes = max(self.peak_bytes, usage.memory_bytes)
        if usage.cpu_s > self.limits["cpu_s"]:
            return CPU
        return MEMORY if self._ran_out(usage.memory_bytes) else None

    def _ran_out(self, memory_bytes: int) -> bool:
        if self.cgroup.counts_memory:
            return self.cgroup.ran_out_of_memory()
        return memory_bytes > self.limits["memory_bytes"]

    def usage(self) -> Usage:
        """Add up the living (from /proc) and the reaped. Memory is private pages beyond the zygote's own."""
        ours = ("1", str(os.getpid()))  # the same process, but in a container
        ticks = memory = 0
        for name in os.listdir("/proc"):
            if name.isdigit() and name not in ours:
                try:
                    with open(f"/proc/{name}/stat", "rb") as file:
                        ticks += sum(map(int, file.read().rpartition(b")")[2].split()[11:15]))
                    memory += max(0, _private_bytes(name) - self.base_bytes)
                except (FileNotFoundError, ProcessLookupError):
                    continue
        return Usage(ticks / TICKS + _reaped_cpu_s() - self.cpu_before, memory)

    def end(self) -> None:
        """Kill and reap everything but ourselves: one kill(-1), which no fork can outrun."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                self._note(*os.waitpid(-1, 0))
        for output in (self.out, self.err, self.status):
            output.drain()

    def verdict(self, cut: str | None) -> dict[str, object]:
        """Say how it ended and what it used, once it did."""
        cpu_s = _reaped_cpu_s() - self.cpu_before
        largest = max(0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 - self.base_bytes)
        assert self.wait_status is not None
        killed_by = cut or self._own_end(self.wait_status, cpu_s, largest)
        return {
            "exit": None if killed_by else os.waitstatus_to_exitcode(self.wait_status),
            "killed_by": killed_by,
            "wall_s": time.monotonic() - self.began,
            "cpu_s": cpu_s,
            "peak_bytes": self.cgroup.peak_bytes() or max(self.peak_bytes, largest),
        }

    def _own_end(self, status: int, cpu_s: float, largest: int) -> str | None:
        """Say which limit stands behind a candidate's own end, if one does."""
        if self._ran_out(largest if status else 0):  # what ended well may have mapped large files
            return MEMORY
        if not os.WIFSIGNALED(status):
            return None
        by = os.WTERMSIG(status)
        if by == signal.SIGXCPU or (by == signal.SIGKILL and cpu_s >= self.limits["cpu_s"]):
            return CPU
        return SIGNAL


def _reaped_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _private_bytes(process: str) -> int:
    """Return a process's resident pages that are no file's and no tmpfs's."""
    with open(f"/proc/{process}/statm", "rb") as file:
        fields = file.read().split()
    return (int(fields[1]) - int(fields[2])) * PAGE
