"""The local sandbox, the embedded default: warm zygotes on this machine, nothing to install or start.

A pool keeps `slots` warm: each has namespaces, a root file system and a cgroup of its own, and is forked from
one zygote that has the usual modules loaded. An execution is a fork of it, with a user id, limits, and
Landlock and seccomp policies that it can't shed, on an empty scratch file system. zygote/ has the inside.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from turncredit.errors import UserError, did_you_mean
from turncredit.sandboxes.base import Limits, check_counts
from turncredit.sandboxes.pool import Pool, Slot, ZygoteRefused
from turncredit.sandboxes.slots import SlotSandbox, check_limits
from turncredit.sandboxes.zygote import root

PRELOAD = (
    "abc", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "heapq", "itertools", "json", "math", "operator", "random", "re", "statistics", "string",
    "textwrap", "typing",
)
# What code finds in its environment in every home; the search paths are each home's own.
ENVIRONMENT = {
    "HOME": root.WORK, "TMPDIR": root.TEMPORARY, "LANG": "C.UTF-8", "USER": "sandbox",
    "PYTHONUTF8": "1", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
}

# protection -> how to get it, for the sentence that names what is missing
PROTECTIONS = {
    "namespaces": "run as root with CAP_SYS_ADMIN, or allow user namespaces (sysctl user.max_user_namespaces,"
    " kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)",
    "uid": "it comes with namespaces",
    "rlimits": "it comes with Linux",
    "seccomp": "it needs Linux on x86_64 or aarch64 with CONFIG_SECCOMP_FILTER",
    "landlock": "it needs Linux 5.13 or later with landlock in the boot parameter lsm=",
    "memory_cgroup": "run as root, or in a cgroup of your own: systemd-run --user --scope -p Delegate=yes",
    "pids_cgroup": "run as root, or in a cgroup of your own: systemd-run --user --scope -p Delegate=yes",
}
MINIMUM = ("namespaces", "uid", "rlimits", "seccomp")  # the sandbox never runs with less


@dataclass(frozen=True, slots=True)
class Protections:
    """What holds a candidate here.

    Attributes:
        uid: "own" (a number that no other process has) or "user namespace" (yours, without its rights).
        landlock: the kernel's Landlock version; 0 where it has none.
        memory_cgroup, pids_cgroup: the cgroup version; None where memory is watched, and processes are
            limited by RLIMIT_NPROC, instead.
    """

    uid: str
    landlock: int
    memory_cgroup: int | None
    pids_cgroup: int | None

    @property
    def obtained(self) -> tuple[str, ...]:
        """Names of the protections, as `minimum` takes them."""
        extra = ("landlock", "memory_cgroup", "pids_cgroup")
        return (*MINIMUM, *(name for name in extra if getattr(self, name)))


async def open_sandbox(
    *, slots: int | None = None, sessions: int = 64, preload: Sequence[str] = PRELOAD,
    readable: Sequence[str] = (), limits: Limits | None = None, minimum: Sequence[str] = MINIMUM,
    recycle_after: int = 1000,
) -> LocalSandbox:
    """Open a local sandbox.

    Args:
        slots: executions at once; twice the CPU cores where None.
        sessions: sessions at once, beside the slots.
        preload: modules that every execution finds already imported.
        readable: folders of this machine that the code may read, besides Python and /usr.
        limits: what an execution may use where a call does not say.
        minimum: protections without which it must not run (names in PROTECTIONS).
        recycle_after: executions after which a slot is replaced.
    Raises:
        UserError: a bad setting, or less protection than `minimum`.
        SandboxError: it is all there, and still does not run.
    """
    limits = limits or Limits()
    slots = 2 * len(os.sched_getaffinity(0)) if slots is None else slots
    check_counts(slots=slots, sessions=sessions, recycle_after=recycle_after)
    for name in minimum:
        if name not in PROTECTIONS:
            raise UserError(f"minimum names {name!r}, which is none{did_you_mean(name, PROTECTIONS)} "
                            f"(known: {', '.join(PROTECTIONS)})")
    for path in readable:
        if not Path(path).is_absolute() or not Path(path).exists():
            raise UserError(f"readable names {path!r}: it must be an absolute path that exists")
    check_limits(limits, machine_memory())
    sandbox = LocalSandbox(_pool(slots, preload, readable, limits, recycle_after), sessions, limits)
    await sandbox.start(minimum)
    return sandbox


def machine_memory() -> int:
    """Return the bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _pool(slots: int, preload: Sequence[str], readable: Sequence[str], limits: Limits,
          recycle_after: int) -> Pool:
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    programs = Path(os.path.realpath(sys.executable)).parent
    config = {
        "preload": list(preload),
        "packages": packages,
        "readable": [sys.base_prefix, sys.base_exec_prefix, *packages, *readable],
        # Reference solutions and task generators live in this package: an answer key for whoever reads it.
        "hidden": [str(Path(__file__).parents[1])],
        "scratch": {"file_bytes": limits.file_bytes, "files": limits.files},
    }
    environment = {
        **ENVIRONMENT, "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": ":".join(packages),
    }
    return Pool(config, environment, size=slots, recycle_after=recycle_after)


class LocalSandbox(SlotSandbox[Slot]):
    """Executions in forks of warm zygotes. Opened by `open_sandbox`; belongs to one event loop."""

    pool: Pool

    def __init__(self, slots: Pool, sessions: int, limits: Limits) -> None:
        super().__init__(slots, sessions=sessions, limits=limits, memory_bytes=machine_memory())
        self.protections: Protections

    async def start(self, minimum: Sequence[str]) -> None:
        """Start the pool, and prove by one execution that every protection can be put on."""
        try:
            await self.pool.start()
        except ZygoteRefused as refused:
            if refused.missing is None:
                raise UserError(str(refused)) from refused
            raise UserError(f"the local sandbox lacks {refused.missing} here, {refused}: "
                            f"{PROTECTIONS[refused.missing]}") from refused
        try:
            found = self.pool.protections
            self.protections = Protections(
                uid="own" if found["privileged"] else "user namespace", landlock=found["landlock"],
                memory_cgroup=found["cgroups"].get("memory"), pids_cgroup=found["cgroups"].get("pids"))
            missing = [name for name in minimum if name not in self.protections.obtained]
            if not found["seccomp"]:
                missing.insert(0, "seccomp")
            if missing:
                wanted = "; ".join(f"{name}: {PROTECTIONS[name]}" for name in missing)
                raise UserError(f"the local sandbox lacks {', '.join(missing)} here ({wanted})")
            self.pool.warm()
            await self.run("pass")
        except BaseException:
            await self.close()
            raise
