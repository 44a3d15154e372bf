"""What the processes below this one are and use, as /proc has it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def descendants(of: int) -> dict[int, str]:
    """Return every process below one: its id, and when it started (an id is used again, sooner or later)."""
    parents, started = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(path.name)
            parents[pid], started[pid] = int(_stat(pid)[1]), _stat(pid)[19]
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in found | {of}} - found:
        found |= more
    return {pid: started[pid] for pid in found}


def alive(pid: int, started: str) -> bool:
    """Say whether this very process still exists."""
    try:
        return _stat(pid)[19] == started
    except OSError:
        return False


def users_of(processes: Iterable[int]) -> set[int]:
    """Return the user ids that processes run as."""
    found = set()
    for pid in processes:
        with contextlib.suppress(OSError):
            found.add(Path(f"/proc/{pid}").stat().st_uid)
    return found


def memory_bytes(processes: Iterable[int]) -> int:
    """Return the proportional set size of processes together: pages shared by n count 1/n for each."""
    total = 0
    for pid in processes:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def cgroups_of(processes: Iterable[int]) -> list[str]:
    """Return the cgroup folders that a sandbox with one of these processes as its guard made."""
    known = set(processes)
    return [folder for folder, _, _ in os.walk("/sys/fs/cgroup")
            if any(Path(folder).name.startswith(f"turncredit-{pid}-") for pid in known)]
