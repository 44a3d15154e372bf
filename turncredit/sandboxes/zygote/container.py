"""PID 1 of a Docker container: the zygote and its one slot, reached over the container's stdin and stdout.

The engine made the namespaces, the read-only root, the cgroup, and at the scratch folder one tmpfs of the
right size. What a slot elsewhere does by mounting, this one does by hand: it empties the scratch folder.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import resource
import secrets
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import candidate, cgroups, frames, landlock, root, seccomp, slot, syscalls

CGROUP = Path("/sys/fs/cgroup")
SHARED_MEMORY = "/dev/shm"
FIRST_UID = 1 << 30  # far above any real user, where all ids are mapped
PAGE = os.sysconf("SC_PAGE_SIZE")
KEPT = 4  # inodes of the scratch folder that are no candidate's: its own, and the three folders'


class Cgroup(cgroups.SlotCgroup):
    """The container's own cgroup, which can be read in it, but whose limits are the engine's alone to set."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._kills = 0
        for name in ("memory/memory.oom_control", "memory.events"):  # cgroup v1, v2
            self._open(CGROUP, "events", name)
        self.counts_memory = "events" in self._files  # gVisor shows none: then the slot watches memory

    def limit(self, memory_bytes: int, processes: int) -> None:
        """See `SlotCgroup.limit`: here a new execution begins under the same limits."""
        if self.counts_memory:
            self._kills = self.out_of_memory_kills()


class Scratch(slot.Scratch):
    """The scratch folder of a slot that can't mount: emptied after each execution."""

    def __init__(self, owner: int) -> None:
        super().__init__({}, owner)

    def prepare(self) -> None:
        """See `slot.Scratch.prepare`."""
        root.make_folders(self.owner)

    def clear(self, limits: dict[str, Any]) -> None:
        """See `slot.Scratch.clear`."""
        empty(root.SCRATCH)


def main() -> None:
    """Prepare once, then serve until the other end of stdin is gone."""
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (candidate.OPEN_FILES,) * 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()
    parent = frames.Stdio()
    packet = parent.receive()
    if packet is None:
        return
    config = packet[0]
    os.close(packet[1][0])
    for name in config["preload"]:
        importlib.import_module(name)
    with contextlib.suppress(FileExistsError):
        os.symlink(root.SHARED, SHARED_MEMORY)
    cgroup, uid = Cgroup(), own_uid()
    if lacking := missing(config["limits"], uid):
        parent.send({"error": f"its runtime lacks {', '.join(lacking)}"})
        return
    ours = [sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "zygote"]
    gc.collect()
    gc.freeze()  # forks share what the collector never touches
    held = candidate.Confinement(
        uid=uid, data_bytes=slot.writable_bytes(), **confinement(cgroup.counts_memory, config["network"]))
    protections: dict[str, Any] = {"landlock": landlock.abi(), "counts_memory": cgroup.counts_memory}
    parent.send({"ready": protections, "memory_bytes": held.data_bytes})
    slot.serve_requests(held, cgroup, parent, Scratch(uid))
    ours.clear()  # held until here: a module's death takes away what its functions use


def confinement(counts_memory: bool, network: bool) -> dict[str, Any]:
    """Return the Landlock policy and the seccomp filter of candidates; what they can inherit is put on here."""
    tops = [f"/{name}" for name in os.listdir("/") if name != "sys"]  # which tells about the host
    policy = slot.policy(landlock.abi(), network=network, readable=[top for top in tops if os.path.exists(top)])
    inherited = counts_memory and policy is not None  # as in slot.serve
    filters = seccomp.program(network=network, shared_memory=counts_memory, for_slot=inherited)
    if inherited:
        seccomp.install(filters)
    return {"landlock": policy, "seccomp": None if inherited else filters}


def missing(limits: dict[str, Any], uid: int) -> list[str]:
    """Return what the slot needs and a runtime other than runc may not give."""
    calls: dict[str, Callable[[], int]] = {"pidfd_open": _open_process, "openat2": _open_beneath}
    lacking = []
    for name, attempt in calls.items():
        try:
            os.close(attempt())
        except OSError:
            lacking.append(name)
    if _process_limit_is_ignored(uid):
        lacking.append("a limit on the processes of a user")
    scratch = os.statvfs(root.SCRATCH)
    if scratch.f_blocks * scratch.f_frsize >= limits["file_bytes"] + PAGE:
        lacking.append("a limit on the bytes of a tmpfs")
    if not 0 < scratch.f_files <= limits["files"] + KEPT:
        lacking.append("a limit on the files of a tmpfs")
    lacking += [f"the link {path}" for path, target in ((SHARED_MEMORY, root.SHARED), ("/tmp", root.TEMPORARY))
                if os.path.realpath(path) != target]
    return lacking


def _open_process() -> int:
    return os.pidfd_open(os.getpid())


def _open_beneath() -> int:
    top = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        return syscalls.open_beneath(top, "proc", os.O_PATH)
    finally:
        os.close(top)


def _process_limit_is_ignored(uid: int) -> bool:
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(uid, uid, uid)
            resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
            os._exit(1 if os.fork() else 0)
        except BlockingIOError:
            os._exit(0)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] != 0


def own_uid() -> int:
    """Draw a user id for candidates: the kernel counts an id's processes over all containers together."""
    with open("/proc/self/uid_map") as file:
        end = max(int(line.split()[0]) + int(line.split()[2]) for line in file)
    first, last = (FIRST_UID, 2 * FIRST_UID) if end >= 2 * FIRST_UID else (end // 2, end - 1)
    return first + secrets.randbelow(last - first)


def empty(folder: str) -> None:
    """Remove all that stands in a folder, however deep, without recursion and without following a link."""
    number = 0
    while entries := list(os.scandir(os.fsencode(folder))):
        for entry in entries:
            if not stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                os.unlink(entry.path)
                continue
            for name in os.listdir(entry.path):  # what lies deeper comes up here, for the next round
                number += 1
                above = os.path.join(os.fsencode(folder), b".up-%d" % number)
                os.rename(os.path.join(entry.path, name), above)
            os.rmdir(entry.path)


if __name__ == "__main__":
    main()
