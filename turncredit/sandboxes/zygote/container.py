"""PID 1 of a Docker container: a warm zygote whose supervisors speak over the container's own stdin and stdout.

The container is the slot. Its engine made the namespaces, the read-only root, the cgroup, and at the scratch
folder one tmpfs of the right size. A supervisor is the leader of a pid namespace elsewhere; here it is a
child of PID 1 that adopts orphans, and the scratch folder is emptied where elsewhere it is mounted afresh.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import secrets
import signal
import stat
import sys
from pathlib import Path
from typing import Any

from . import candidate, cgroups, frames, landlock, root, seccomp, slot, supervisor, syscalls

CGROUP = Path("/sys/fs/cgroup")
SHARED_MEMORY = "/dev/shm"
SUBREAPER = 36  # prctl: orphans below come to this process
KEPT = 4  # inodes of the scratch folder that are no candidate's: itself and the three folders in it


class Standard:
    """The container's stdin and stdout, as supervisors know a stream."""

    def recv(self, most: int) -> bytes:
        return os.read(0, most)

    def sendall(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(1, left):]

    def fileno(self) -> int:
        return 0


class ContainerCgroup(cgroups.SlotCgroup):
    """The container's own cgroup, which can be read in it, but whose limits are the engine's alone to set."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        for name in ("memory/memory.oom_control", "memory.events"):  # cgroup v1, v2
            self._open(CGROUP, "events", name)
        self.counts_memory = "events" in self._files  # else supervisors watch it, as gVisor shows none

    def limit(self, memory_bytes: int, processes: int) -> None:
        self._kills = self.out_of_memory_kills() if self.counts_memory else 0


def main() -> None:
    """Prepare once, then let supervisors serve until the other end of stdin is gone."""
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (candidate.OPEN_FILES,) * 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stream = Standard()
    message = frames.read(stream)
    if message is None:
        return
    config = message[0]
    for name in config["preload"]:
        importlib.import_module(name)
    with contextlib.suppress(FileExistsError):
        os.symlink(root.SHARED, SHARED_MEMORY)
    place = _slot(stream, config)
    gc.collect()
    gc.freeze()  # forks share what the collector never touches
    stream.sendall(frames.pack({"ready": {
        "landlock": place.held.landlock, "seccomp": seccomp.supported(), "counts_memory": place.cgroup.counts_memory,
        "memory_bytes": slot.writable_bytes(),
    }}))
    while _supervise(place) == supervisor.GO_ON:
        pass


def _slot(stream: Standard, config: dict[str, Any]) -> supervisor.Slot:
    cgroup = ContainerCgroup()
    held = candidate.Confinement(
        uid=_own_uid(), landlock=landlock.abi(), network=config["network"], data_bytes=slot.writable_bytes(),
        seccomp=seccomp.program(network=config["network"], shared_memory=cgroup.counts_memory))
    return supervisor.Slot(stream, held, cgroup, {})


def _own_uid() -> int:
    """Draw a user id for this container's candidates: the kernel counts an id's processes over all containers."""
    first, count = (int(line.split()[column]) for line in Path("/proc/self/uid_map").read_text().splitlines()[-1:]
                    for column in (0, 2))
    last = first + count
    lowest = slot.FIRST_UID if last > 2 * slot.FIRST_UID else 1000
    return lowest + secrets.randbelow(min(last, 2 * slot.FIRST_UID) - lowest)


def _supervise(place: supervisor.Slot) -> int:
    """Fork a supervisor, wait for its end, and end whatever it could not."""
    pid = os.fork()
    if pid == 0:
        code = supervisor.FAILED
        try:
            code = _serve(place)
        except BaseException as error:
            place.answer({"error": f"supervisor: {error!r}"})
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    if os.WIFSIGNALED(status):  # not on stdout, where half an answer may stand
        print(json.dumps({"lost": True, "memory": place.cgroup.lost_to_memory()}), file=sys.stderr)
        return supervisor.FAILED
    return os.waitstatus_to_exitcode(status)


def _serve(place: supervisor.Slot) -> int:
    """Be a supervisor: prepare a clean place, wait for one request, carry it out."""
    syscalls.prctl(SUBREAPER, 1)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(supervisor.OOM_SCORE)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    assert place.held.uid is not None
    empty(root.SCRATCH)
    root.make_folders(place.held.uid)
    message = frames.read(place.parent)
    if message is None:
        return supervisor.LEAVE
    return supervisor.carry_out(place, *message)


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
                os.rename(os.path.join(entry.path, name), os.path.join(os.fsencode(folder), b".up-%d" % number))
            os.rmdir(entry.path)


if __name__ == "__main__":
    main()
