"""A slot: PID 1 of a pid namespace, with a root file system, a network and a cgroup.

It never reads what passes through it: code, input and output stay in kernel memory, and no candidate is
forked with a trace of an earlier one. A candidate can't signal PID 1 of its own namespace, nor trace a
process that has another user, or more capabilities than it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import candidate, cgroups, files, interpreter, landlock, packets, root, seccomp, session, syscalls
from .execution import ABOVE, HUNG_UP, PAGE, Execution

APART = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWCGROUP


@dataclass(frozen=True)
class Settings:
    """What all slots of a pool have in common."""

    privileged: bool  # real root: no user namespace, and every slot's candidates have a user id of their own
    uids: range  # a slot takes one by its number
    landlock: int  # the kernel's version, 0 for none
    readable: list[str]
    hidden: list[str]
    scratch: dict[str, int]  # file_bytes and files: the limits that a scratch folder is made ready for


def serve(settings: Settings, pool: cgroups.Pool, number: int, parent: packets.Parent, *,
          network: bool) -> None:
    """Build the slot, say that it is ready, and serve until the parent hangs up."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    os.setsid()  # the scheduler shares CPU time out between sessions: a slot with all its processes is one
    uid = settings.uids[number % len(settings.uids)] if settings.privileged else None
    try:
        cgroup = cgroups.SlotCgroup(pool, number)
        counted = cgroup.counts_memory
        syscalls.unshare(APART if network else APART | syscalls.CLONE_NEWNET)
        syscalls.sethostname("sandbox")
        root.build(settings.readable, settings.hidden, uid=os.getuid() if uid is None else uid,
                   network=network, zero_device=counted)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        rules = policy(settings.landlock, network=network)
        filters = seccomp.program(network=network, shared_memory=counted)
        # To install a filter costs as much as all other confinement together: what can be inherited, is.
        inherited = settings.privileged and counted and rules is not None
        if inherited:
            seccomp.install(seccomp.program(network=network, shared_memory=True, for_slot=True))
    except OSError as error:
        parent.send({"error": str(error)})
        return
    held = candidate.Confinement(uid=uid, landlock=rules, data_bytes=writable_bytes(),
                                 seccomp=None if inherited else filters)
    parent.send({"ready": True})
    serve_requests(held, cgroup, parent, Scratch(settings.scratch, uid))


def serve_requests(held: candidate.Confinement, cgroup: cgroups.SlotCgroup, parent: packets.Parent,
                   scratch: Scratch) -> None:
    """Carry out one request after the other until the parent hangs up; a session is the last."""
    nowhere = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)  # here and below: what a candidate inherits, it need not do
    main = interpreter.fresh_main(root.WORK)
    while True:
        scratch.prepare()
        execution = Execution(held, main, cgroup, parent, nowhere)
        packet = parent.receive()
        if packet is None:
            return
        request, descriptors = packet
        scratch.fit(request["limits"])
        if request["op"] == "session":
            session.serve(execution, request, held.uid)
            return
        if _run(execution, request, descriptors[0]) == HUNG_UP:
            return
        os.close(descriptors[0])
        execution.close()
        scratch.clear(request["limits"])


class Scratch:
    """The scratch folder of a slot that may mount: an empty file system for each execution.

    Args:
        ready: file_bytes and files, the limits that it is made ready for.
        owner: the candidate's user id.
    """

    def __init__(self, ready: dict[str, int], owner: int | None) -> None:
        self.ready, self.owner = ready, owner
        self.mounted = False

    def prepare(self) -> None:
        """Have an empty one, with fresh folders."""
        if self.mounted:
            root.make_folders(self.owner)
            return
        root.fresh_scratch(**self.ready, owner=self.owner)
        self.mounted = True

    def fit(self, limits: dict[str, Any]) -> None:
        """Make it hold what the limits say."""
        wanted = {name: limits[name] for name in self.ready}
        if wanted != self.ready:
            root.resize_scratch(**wanted)

    def clear(self, limits: dict[str, Any]) -> None:
        """Let go of all that is in it; where nothing is, the file system itself is used again.

        To unmount costs a grace period of the kernel's, and more than all else that is done between executions.
        """
        if all(limits[name] == self.ready[name] for name in self.ready) and root.remove_folders():
            return
        syscalls.unmount(root.SCRATCH)
        self.mounted = False


def _run(execution: Execution, request: dict[str, Any], store: int) -> str | None:
    """Carry out one request and answer it; return HUNG_UP where nobody waits for the answer."""
    code_length, stdin_length = request["blobs"][:2]
    execution.go(request, store, [(0, code_length), (code_length + stdin_length, sum(request["blobs"][2:]))])
    execution.give_stdin(store, code_length, stdin_length)
    cut = execution.wait(execution.over, wall_s=request["limits"]["wall_s"])
    execution.end()
    if cut == HUNG_UP:
        return cut
    if why := execution.failure():
        execution.parent.send({"error": why})
        return cut
    collected = packets.store(()) if request["collect"] else -1
    found = files.collect(request["collect"], request["limits"]["file_bytes"], collected)
    execution.answer({**execution.verdict(cut), "files": [path for path, _ in found]},
                     collected, [length for _, length in found])
    if collected >= 0:
        os.close(collected)
    return cut


def policy(version: int, *, network: bool, readable: Sequence[str] = ("/",)) -> int | None:
    """Return every candidate's Landlock policy, out of the way of the descriptors that come and go."""
    if not version:
        return None
    made = landlock.ruleset(version, readable, [root.SCRATCHES, "/dev/null"], network=network)
    kept = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, ABOVE)
    os.close(made)
    return kept


def writable_bytes() -> int:
    """Return this process's writable private memory, which RLIMIT_DATA counts in every fork of it."""
    return int(syscalls.read_file("/proc/self/statm").split()[5]) * PAGE
