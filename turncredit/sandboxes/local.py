"""The local sandbox, the embedded default: warm zygotes on this machine, nothing to install or start.

A pool keeps `slots` warm: each has namespaces, a root file system and a cgroup of its own, and is forked from
one zygote that has the usual modules loaded. An execution is a fork of it, with a user id, limits, and
Landlock and seccomp policies that it can't shed, on an empty scratch file system. zygote/ has the inside.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turncredit.errors import UserError, did_you_mean
from turncredit.sandboxes import pool
from turncredit.sandboxes.base import (
    MIB,
    KilledBy,
    Limits,
    Result,
    Sandbox,
    SandboxError,
    Session,
    as_text,
    check_path,
    check_request,
)
from turncredit.sandboxes.zygote import root

PRELOAD = (
    "abc", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "heapq", "itertools", "json", "math", "operator", "random", "re", "statistics", "string",
    "textwrap", "typing",
)
LEAST_MEMORY = 4 * MIB

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
    for name, count in (("slots", slots), ("sessions", sessions), ("recycle_after", recycle_after)):
        if count < 1:
            raise UserError(f"{name} is {count}: it must be at least 1")
    for name in minimum:
        if name not in PROTECTIONS:
            raise UserError(f"minimum names {name!r}, which is none{did_you_mean(name, PROTECTIONS)} "
                            f"(known: {', '.join(PROTECTIONS)})")
    for path in readable:
        if not Path(path).is_absolute() or not Path(path).exists():
            raise UserError(f"readable names {path!r}: it must be an absolute path that exists")
    check_limits(limits)
    sandbox = LocalSandbox(_pool(slots, preload, readable, limits, recycle_after), sessions, limits)
    await sandbox.start(minimum)
    return sandbox


def check_limits(limits: Limits) -> None:
    """Refuse limits that no execution on this machine could live within, or that would bound nothing.

    Raises:
        UserError: naming the field, its value and the bound.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if not LEAST_MEMORY <= limits.memory_bytes <= memory:
        raise UserError(f"limits.memory_bytes is {limits.memory_bytes}: it must be from {LEAST_MEMORY} to "
                        f"{memory}, what this machine has")
    for name in ("wall_s", "cpu_s"):
        if not math.isfinite(getattr(limits, name)):
            raise UserError(f"limits.{name} is {getattr(limits, name)}: it must be finite")


def _pool(slots: int, preload: Sequence[str], readable: Sequence[str], limits: Limits,
          recycle_after: int) -> pool.Pool:
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
        "HOME": root.WORK, "TMPDIR": root.TEMPORARY, "LANG": "C.UTF-8", "USER": "sandbox",
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": ":".join(packages),
        "PYTHONUTF8": "1", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    }
    return pool.Pool(config, environment, size=slots, recycle_after=recycle_after)


class LocalSandbox(Sandbox):
    """Executions in forks of warm zygotes. Opened by `open_sandbox`; belongs to one event loop."""

    def __init__(self, slots: pool.Pool, sessions: int, limits: Limits) -> None:
        self.limits = limits
        self.protections: Protections
        self._pool = slots
        self._sessions = asyncio.Semaphore(sessions)

    async def start(self, minimum: Sequence[str]) -> None:
        """Start the pool, and prove by one execution that every protection can be put on."""
        try:
            await self._pool.start()
        except pool.ZygoteRefused as refused:
            if refused.missing is None:
                raise UserError(str(refused)) from refused
            raise UserError(f"the local sandbox lacks {refused.missing} here, {refused}: "
                            f"{PROTECTIONS[refused.missing]}") from refused
        try:
            found = self._pool.protections
            self.protections = Protections(
                uid="own" if found["privileged"] else "user namespace", landlock=found["landlock"],
                memory_cgroup=found["cgroups"].get("memory"), pids_cgroup=found["cgroups"].get("pids"))
            missing = [name for name in minimum if name not in self.protections.obtained]
            if not found["seccomp"]:
                missing.insert(0, "seccomp")
            if missing:
                wanted = "; ".join(f"{name}: {PROTECTIONS[name]}" for name in missing)
                raise UserError(f"the local sandbox lacks {', '.join(missing)} here ({wanted})")
            self._pool.warm()
            await self.run("pass")
        except BaseException:
            await self.close()
            raise

    async def run(self, code: str | None = None, *, argv: Sequence[str] | None = None, stdin: bytes = b"",
                  files: Mapping[str, bytes] | None = None, collect: Sequence[str] = (),
                  limits: Limits | None = None) -> Result:
        """See `Sandbox.run`. Memory is counted beyond the warm interpreter's own."""
        limits = self._checked(limits)
        files = files or {}
        check_request(code, argv, files, collect, limits)
        source = b"" if code is None else code.encode("utf-8", "surrogatepass")
        header = {"op": "run", "limits": dataclasses.asdict(limits), "collect": list(collect)}
        blobs = [source, stdin, _joined(argv or ()), _joined(files), *files.values()]
        for _ in range(1 if limits.network else 2):  # it had no effect outside, so a lost one may run again
            reply = await self._ask(header, blobs, limits)
            if reply is None:
                continue
            answer, parts = reply
            return _result(answer, parts, limits)
        raise SandboxError("the slot died during the execution" + ("" if limits.network else ", twice"))

    async def _ask(self, header: Mapping[str, object], blobs: Sequence[bytes],
                   limits: Limits) -> pool.Message | None:
        """Have one slot carry out a request; None where the slot was lost."""
        slot = await self._pool.take(network=limits.network)
        sound, overdue = False, False
        try:
            async with asyncio.timeout(limits.wall_s + pool.GRACE_S):
                reply = await pool.exchange(slot, header, blobs)
            if reply and "error" in reply[0]:
                raise SandboxError(reply[0]["error"])
            sound = reply is not None and reply[0]["killed_by"] in (None, KilledBy.SIGNAL)
            return reply
        except TimeoutError:
            overdue = True
            raise SandboxError(f"no answer {pool.GRACE_S:g} s after the wall time was over") from None
        finally:
            self._pool.give_back(slot, sound=sound, kill=overdue)

    async def session(self, *, limits: Limits | None = None) -> LocalSession:
        """Start an interpreter in a slot of its own, beside the pool's; wait where `sessions` are open."""
        limits = self._checked(limits)
        await self._sessions.acquire()
        try:
            slot = await self._pool.fresh(network=limits.network)
        except BaseException:
            self._sessions.release()
            raise
        session = LocalSession(self._pool, slot, limits, self._sessions)
        try:
            await session.start()
        except BaseException:
            await session.close()
            raise
        return session

    def _checked(self, limits: Limits | None) -> Limits:
        if self._pool.closed:
            raise SandboxError("the sandbox is closed")
        if limits is None:
            return self.limits
        check_limits(limits)
        return limits

    async def close(self) -> None:
        """See `Sandbox.close`: returns when every process is gone."""
        await self._pool.close()


class LocalSession(Session):
    """An interpreter in a slot of its own.

    A cell's wall time, CPU time and output are limited by that call's limits; memory, processes and files by
    the limits that the session was opened with, over all its life.
    """

    def __init__(self, slots: pool.Pool, slot: pool.Slot, limits: Limits,
                 open_sessions: asyncio.Semaphore) -> None:
        self.limits = limits
        self._pool, self._slot = slots, slot
        self._open_sessions = open_sessions
        self._ended: str | None = None
        self._turn = asyncio.Lock()  # one request at a time: the socket carries one answer

    async def start(self) -> None:
        """Start the interpreter."""
        await self._ask({"op": "session", "limits": dataclasses.asdict(self.limits)}, [], pool.GRACE_S)

    async def run(self, code: str, *, limits: Limits | None = None) -> Result:
        """See `Session.run`."""
        limits = limits or self.limits
        check_limits(limits)
        header = {"op": "cell", "limits": dataclasses.asdict(limits)}
        source = code.encode("utf-8", "surrogatepass")
        answer, parts = await self._ask(header, [source], limits.wall_s + pool.GRACE_S)
        result = _result(answer, parts, limits)
        if "ended" in answer:
            await self._end(answer["ended"])
            return result
        value, value_cut = as_text(parts[2], limits.output_bytes, cut=answer["value_cut"])
        return dataclasses.replace(result, value=value if answer["value"] else None,
                                   truncated=result.truncated or value_cut)

    async def write_file(self, path: str, data: bytes) -> None:
        """See `Session.write_file`."""
        check_path("path", path)
        await self._carry(path, {"op": "write", "path": path}, [data])

    async def read_file(self, path: str) -> bytes:
        """See `Session.read_file`."""
        check_path("path", path)
        return (await self._carry(path, {"op": "read", "path": path}, []))[0]

    async def _carry(self, path: str, header: Mapping[str, object], blobs: Sequence[bytes]) -> list[bytes]:
        answer, parts = await self._ask(header, blobs, pool.GRACE_S)
        if "refused" in answer:
            raise OSError(*answer["refused"], path)
        return parts

    async def _ask(self, header: Mapping[str, object], blobs: Sequence[bytes],
                   patience_s: float) -> pool.Message:
        async with self._turn:
            if self._ended:
                raise SandboxError(f"the session has ended: {self._ended}")
            try:
                async with asyncio.timeout(patience_s):
                    reply = await pool.exchange(self._slot, header, blobs)
            except BaseException:  # an answer may still be on its way: nobody could tell whose it is
                await self._end("a request was broken off", kill=True)
                raise
            if reply is None or set(reply[0]) == {"ended"}:
                reason = reply[0]["ended"] if reply else "its slot died"
                await self._end(reason)
                raise SandboxError(f"the session has ended: {reason}")
            return reply

    async def _end(self, reason: str, *, kill: bool = False) -> None:
        if self._ended is None:
            self._ended = reason
            self._pool.discard(self._slot, kill=kill)
            self._open_sessions.release()

    async def close(self) -> None:
        """See `Session.close`."""
        await self._end("it was closed")


def _joined(words: Iterable[str]) -> bytes:
    return b"\0".join(map(os.fsencode, words))


def _result(answer: Mapping[str, Any], parts: Sequence[bytes], limits: Limits) -> Result:
    out_cut, err_cut = answer["cut"]
    return Result(
        stdout=as_text(parts[0], limits.output_bytes, cut=out_cut)[0],
        stderr=as_text(parts[1], limits.output_bytes, cut=err_cut)[0],
        exit=answer["exit"], killed_by=KilledBy(answer["killed_by"]) if answer["killed_by"] else None,
        wall_s=answer["wall_s"], cpu_s=answer["cpu_s"], peak_bytes=answer["peak_bytes"],
        truncated=bool(out_cut or err_cut), files=dict(zip(answer.get("files", ()), parts[2:])))
