"""A slot: one root file system, network and cgroup, in which executions follow each other.

It reads nothing from the socket to the program that opened the sandbox: its supervisors do, one after the
other, each in memory that ends with it.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from . import candidate, cgroups, execution, frames, root, seccomp, supervisor, syscalls

FIRST_UID = 1 << 30  # far above any real user; the slot's own process id makes it the slot's alone

APART = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWCGROUP


@dataclass(frozen=True)
class Settings:
    """What all slots of a pool have in common."""

    privileged: bool  # real root: slots are made without a user namespace, candidates get a uid of their own
    landlock: int  # the kernel's version, 0 for none
    readable: list[str]
    hidden: list[str]
    scratch: dict[str, int]


def serve(settings: Settings, pool: cgroups.Pool, number: int, parent: socket.socket, *,
          network: bool) -> None:
    """Build the slot, say that it is ready, and let supervisors serve until the parent hangs up."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    own_uid = FIRST_UID + os.getpid()
    try:
        cgroup = cgroups.SlotCgroup(pool, number)
        counted = cgroup.counts_memory
        syscalls.unshare(APART if network else APART | syscalls.CLONE_NEWNET)
        syscalls.sethostname("sandbox")
        uid = own_uid if settings.privileged else None
        root.build(settings.readable, settings.hidden, uid=os.getuid() if uid is None else uid,
                   network=network, zero_device=counted)
    except OSError as error:
        parent.sendall(frames.pack({"error": str(error)}))
        return
    held = candidate.Confinement(
        uid=uid, landlock=settings.landlock, network=network, data_bytes=writable_bytes(),
        seccomp=seccomp.program(network=network, shared_memory=counted))
    slot = supervisor.Slot(parent, held, cgroup, settings.scratch)
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    parent.sendall(frames.pack({"ready": True}))
    while _supervise(slot, home) == supervisor.GO_ON:
        pass


def _supervise(slot: supervisor.Slot, home: int) -> int:
    """Fork a supervisor as PID 1 of a new pid namespace, and wait for its end."""
    syscalls.unshare(syscalls.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        code = supervisor.FAILED
        try:
            code = supervisor.serve(slot)
        except BaseException as error:
            slot.answer({"error": f"supervisor: {error!r}"})
        finally:
            os._exit(code)
    syscalls.setns(home, syscalls.CLONE_NEWPID)  # or the next unshare would be refused
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):  # it answered nothing: the kernel took it, for want of memory or by order
        slot.parent.sendall(frames.pack({"lost": True, "memory": slot.cgroup.lost_to_memory()}))
    return os.waitstatus_to_exitcode(status)


def writable_bytes() -> int:
    """Return this process's writable private memory, which RLIMIT_DATA counts in every fork of it."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[5]) * execution.PAGE
