"""What the processes below this one are and use, as /proc has it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def descendants(of: int) -> set[int]:
    """Return the ids of every process below one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in found | {of}} - found:
        found |= more
    return found


def memory_bytes(processes: set[int]) -> int:
    """Return the proportional set size of processes together: pages shared by n count 1/n for each."""
    total = 0
    for pid in processes:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def cgroups_of(processes: set[int]) -> list[str]:
    """Return the cgroup folders that a sandbox with one of these processes as its guard made."""
    return [folder for folder, _, _ in os.walk("/sys/fs/cgroup")
            if any(Path(folder).name.startswith(f"turncredit-{pid}-") for pid in processes)]
