"""Memory and process limits over everything a slot runs, by cgroup v1 or v2, where we may make one.

A slot joins its cgroup once and all it forks is born there, because moving a process can cost an RCU grace
period. The limits are files that the slot opens before it loses sight of the file system.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "turncredit-"
OWN_USE = 12 << 20  # bytes left to the slot itself (it uses 4 MB) on top of the candidate's memory
OWN_PROCESSES = 1  # the slot
ATTEMPTS = 1000  # at a folder of one's own: every pool sweeps once, so each other pool can take away one


@dataclass(frozen=True)
class Hierarchy:
    """One place where cgroups can be made: the controllers it offers, and the folder to make them in."""

    version: int
    folder: Path
    controllers: tuple[str, ...]


def hierarchies(proc: Path = Path("/proc/self")) -> list[Hierarchy]:
    """Return where this process's memory and pids cgroups lie (v2 first: it wins where both offer one)."""
    mounts = list(_mounts(proc / "mountinfo"))
    found = []
    for line in (proc / "cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for kind, options, root, point in mounts:
            if kind == "cgroup2" and not names:
                folder = _below(point, root, path)
                found += [Hierarchy(2, base, ("memory", "pids")) for base in (folder, folder.parent)
                          if base.is_relative_to(point)]
            elif kind == "cgroup" and names:
                wanted = tuple(name for name in names.split(",") if name in ("memory", "pids"))
                if wanted and set(names.split(",")) <= options:
                    found.append(Hierarchy(1, _below(point, root, path), wanted))
    return sorted(found, key=lambda place: -place.version)


def _mounts(mountinfo: Path) -> Iterator[tuple[str, set[str], str, Path]]:
    for line in mountinfo.read_text().splitlines():
        fields = line.split()
        kind, _, options = fields[fields.index("-") + 1:][:3]
        yield kind, set(options.split(",")), fields[3], Path(fields[4])


def _below(point: Path, root: str, path: str) -> Path:
    inside = os.path.relpath(path, root) if path.startswith(root.rstrip("/")) else path.strip("/")
    return point / inside


class Pool:
    """The cgroups of one pool of slots; the folder is locked for as long as one of its processes lives."""

    def __init__(self) -> None:
        self.folders: dict[str, tuple[int, Path]] = {}  # controller -> version, the pool's folder
        self._locks: list[int] = []
        for place in hierarchies():
            missing = [controller for controller in place.controllers if controller not in self.folders]
            if missing and (folder := self._make(place)):
                self.folders |= dict.fromkeys(missing, (place.version, folder))

    def _make(self, place: Hierarchy) -> Path | None:
        try:
            if place.version == 2:
                _delegate(place.folder)
            folder, lock = _make_locked(place.folder)
        except OSError:
            return None  # not ours to divide: the protections reported say so
        try:
            if place.version == 2:
                _delegate(folder)
            _try_joining(folder)
        except OSError:
            _remove(folder)
            os.close(lock)
            return None
        self._locks.append(lock)
        sweep(place.folder)
        return folder

    def make(self, slot: int) -> None:
        for _, folder in self.folders.values():
            (folder / str(slot)).mkdir(exist_ok=True)

    def remove(self, slot: int) -> None:
        for _, folder in self.folders.values():
            _remove(folder / str(slot))

    def close(self) -> None:
        for folder in {folder for _, folder in self.folders.values()}:
            _remove(folder)
        for lock in self._locks:
            os.close(lock)
        self.folders, self._locks = {}, []


def sweep(base: Path) -> None:
    """Remove the folders of pools whose every process is gone, however they died."""
    for folder in base.glob(PREFIX + "*"):
        try:
            lock = _lock(folder)
        except OSError:
            continue  # it lives
        _remove(folder)
        os.close(lock)


def _make_locked(base: Path) -> tuple[Path, int]:
    """Make a pool's folder and lock it; return it and the lock.

    A pool that starts at the same time may sweep the folder away before it is locked: then another is made.

    Raises:
        OSError: no folder can be made here, or each of many was swept.
    """
    for _ in range(ATTEMPTS):
        folder = base / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir()
        with contextlib.suppress(BlockingIOError, FileNotFoundError):  # the sweeper has it, or had it
            lock = _lock(folder)
            if folder.exists():
                return folder, lock
            os.close(lock)
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(base))


def _lock(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _delegate(folder: Path) -> None:
    control = folder / "cgroup.subtree_control"
    if not {"memory", "pids"} <= set(control.read_text().split()):
        control.write_text("+memory +pids")


def _try_joining(folder: Path) -> None:
    """Raise OSError unless a process of ours may enter cgroups below `folder`."""
    probe = folder / "probe"
    probe.mkdir()
    child = os.fork()
    if child == 0:
        try:
            (probe / "cgroup.procs").write_text("0")
        except OSError:
            os._exit(1)
        os._exit(0)
    refused = os.waitpid(child, 0)[1]
    _remove(probe)
    if refused:
        raise PermissionError(f"{probe}: joining is refused")


def _remove(folder: Path, patience_s: float = 2.0) -> None:
    """Remove a cgroup and those below it; its last process may still be on its way out."""
    until = time.monotonic() + patience_s
    try:
        below = [Path(entry) for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        return
    for path in [*below, folder]:
        while path.exists():
            try:
                path.rmdir()
            except OSError:
                if time.monotonic() > until:
                    return  # swept by the next pool
                time.sleep(0.005)


class SlotCgroup:
    """A slot's own cgroup, seen from inside: files opened once, written and read for each execution."""

    def __init__(self, pool: Pool, slot: int) -> None:
        self.counts_memory = "memory" in pool.folders
        self._files: dict[str, int] = {}
        self._limits = (0, 0)
        self._swap_is_apart = False  # v1 counts memory and swap together
        self._before = self._kills = 0  # memory in use and kills when the present execution began
        for controller, (version, folder) in pool.folders.items():
            own = folder / str(slot)
            (own / "cgroup.procs").write_text("0")
            if controller == "pids":
                self._open(own, "processes", "pids.max")
                continue
            if version == 1:
                names = {"memory": "memory.limit_in_bytes", "peak": "memory.max_usage_in_bytes",
                         "use": "memory.usage_in_bytes", "events": "memory.oom_control"}
                swap = "memory.memsw.limit_in_bytes"
            else:
                names = {"memory": "memory.max", "peak": "memory.peak", "use": "memory.current",
                         "events": "memory.events"}
                swap = "memory.swap.max"
            for key, name in names.items():
                self._open(own, key, name)
            if _machine_swaps() and (own / swap).exists():
                self._open(own, "swap", swap)
            self._swap_is_apart = version == 2

    def _open(self, folder: Path, key: str, name: str) -> None:
        path = folder / name
        if path.exists():
            writable = os.access(path, os.W_OK)
            self._files[key] = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)

    def limit(self, memory_bytes: int, processes: int) -> None:
        """Set the limits of the next execution, and start its peak afresh where the kernel can."""
        if (memory_bytes, processes) != self._limits:
            self._limits = memory_bytes, processes
            self._write("processes", processes + OWN_PROCESSES)
            self._limit_memory(memory_bytes + OWN_USE)
        if self.counts_memory:
            self._reset_peak()
            self._before = self._number("use")
            self._kills = self.out_of_memory_kills()

    def _limit_memory(self, limit: int) -> None:
        if "swap" in self._files and not self._swap_is_apart:
            self._write("swap", -1)  # it may never be below memory's own limit
        self._write("memory", limit)
        self._write("swap", 0 if self._swap_is_apart else limit)

    def _reset_peak(self) -> None:
        try:
            self._write("peak", 0)
        except OSError:  # v2 before Linux 6.12: memory.peak only grows
            os.close(self._files.pop("peak"))

    def ran_out_of_memory(self) -> bool:
        return self.counts_memory and self.out_of_memory_kills() > self._kills

    def out_of_memory_kills(self) -> int:
        for line in os.pread(self._files["events"], 4096, 0).splitlines():
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
        return 0

    def peak_bytes(self) -> int:
        """Return the most memory used since `limit`, beyond what was in use then; 0 where unknown."""
        return max(0, self._number("peak") - self._before) if "peak" in self._files else 0

    def _number(self, key: str) -> int:
        return int(os.pread(self._files[key], 64, 0))

    def _write(self, key: str, value: int) -> None:
        if key in self._files:
            os.pwrite(self._files[key], b"%d" % value, 0)


def _machine_swaps() -> bool:
    return "SwapTotal:              0 kB" not in Path("/proc/meminfo").read_text()
