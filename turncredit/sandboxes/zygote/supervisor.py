"""PID 1 of one execution: reads the request, forks the candidate, holds it to its limits, answers.

It lives for one execution (or one session), so that no byte of a request stays in memory that a later
candidate is forked from. The candidate can't signal PID 1 of its own namespace, nor trace a process that
has another user, or more capabilities than it.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any, NoReturn

from . import candidate, files, frames, root, session, syscalls
from .cgroups import SlotCgroup
from .execution import HUNG_UP, Execution
from .syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID

GO_ON, LEAVE, FAILED = 0, 3, 4  # exit codes: the slot takes the next request, or ends too
OOM_SCORE = "500"  # the kernel takes candidates (1000) first, and the slot (0) last


@dataclass(frozen=True)
class Slot:
    """What a slot hands to each of its supervisors."""

    parent: frames.Stream
    held: candidate.Confinement
    cgroup: SlotCgroup
    scratch: dict[str, int]  # file_bytes and files: the limits that the scratch folder is prepared for

    def answer(self, header: dict[str, object], *blobs: bytes) -> int:
        self.parent.sendall(frames.pack(header, blobs))
        return GO_ON


def serve(slot: Slot) -> int:
    """Prepare a fresh place, wait for one request, carry it out; return GO_ON or LEAVE."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(OOM_SCORE)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    root.fresh_scratch(**slot.scratch, owner=slot.held.uid)
    message = frames.read(slot.parent)
    if message is None:
        return LEAVE
    header, blobs = message
    limits = header["limits"]
    scratch = {name: limits[name] for name in slot.scratch}
    if scratch != slot.scratch:
        root.resize_scratch(**scratch)
    return carry_out(slot, header, blobs)


def carry_out(slot: Slot, header: dict[str, Any], blobs: list[bytes]) -> int:
    """Be the supervisor of the request's execution or session; return GO_ON or LEAVE."""
    execution = Execution(slot.held, slot.cgroup, slot.parent, header["limits"])
    if header["op"] == "session":
        session.serve(slot, execution)
        return LEAVE
    return _run(slot, execution, header, blobs)


def _run(slot: Slot, execution: Execution, request: dict[str, Any], blobs: list[bytes]) -> int:
    code, stdin, *contents = blobs

    def become() -> NoReturn:
        if request["argv"] is None:
            candidate.run_source(code)
        candidate.run_program(request["argv"])

    execution.start(become, files=dict(zip(request["files"], contents)), stdin=stdin)
    cut = execution.wait(execution.over, wall_s=execution.limits["wall_s"])
    execution.end()
    if cut == HUNG_UP:
        return LEAVE
    if execution.status.kept:
        return slot.answer({"error": bytes(execution.status.kept).decode(errors="replace")})
    (out, out_cut), (err, err_cut) = execution.out.take(), execution.err.take()
    collected = files.collect(request["collect"], execution.limits["file_bytes"])
    header = {**execution.verdict(cut), "cut": [out_cut, err_cut], "files": list(collected)}
    return slot.answer(header, out, err, *collected.values())
