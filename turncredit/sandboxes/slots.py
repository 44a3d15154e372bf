"""The sandbox and its sessions on top of a pool of slots, whatever a slot is.

A slot is a place that carries out one request after the other: a fork of a local zygote, or a Docker
container. In both, zygote/slot.py takes the requests and gives the answers.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from turncredit.errors import UserError
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

Message = tuple[dict[str, Any], list[bytes]]  # a header, and the byte strings that go with it

GRACE_S = 10.0  # beyond the wall time, for the answer of a slot on a machine that is busy
LEAST_MEMORY = 4 * MIB


class Slot(ABC):
    """A place that carries out requests, one at a time."""

    @abstractmethod
    async def exchange(self, header: Mapping[str, object], blobs: Sequence[bytes]) -> Message | None:
        """Send a request and wait for its answer; None where the slot died.

        Where memory is known to be what it died of, the answer is the header {"ended": "memory"}.
        """


Place = TypeVar("Place", bound=Slot)


class Pool(ABC, Generic[Place]):
    """A bounded number of slots at work at once; who comes later waits."""

    closed: bool

    @abstractmethod
    async def take(self, limits: Limits) -> Place:
        """Wait for a slot that is free, sound, and made for such limits.

        Raises:
            SandboxError: none can be had.
        """

    @abstractmethod
    async def fresh(self, limits: Limits) -> Place:
        """Start a slot beyond the pool's size, for a session.

        Raises:
            SandboxError: the sandbox is closed, or no slot comes up.
        """

    @abstractmethod
    def give_back(self, slot: Place, *, sound: bool, kill: bool = False) -> None:
        """Return a slot that was taken; one that is not sound, or served its share, is replaced."""

    @abstractmethod
    def discard(self, slot: Place, *, kill: bool = False) -> None:
        """Let a slot go; `kill` says that it may not listen any more."""

    @abstractmethod
    async def close(self) -> None:
        """End every slot; return when they are gone."""


def check_limits(limits: Limits, memory_bytes: int) -> None:
    """Refuse limits that no execution could live within, or that would bound nothing.

    Args:
        memory_bytes: what the machine that runs the code has.
    Raises:
        UserError: naming the field, its value and the bound.
    """
    if not LEAST_MEMORY <= limits.memory_bytes <= memory_bytes:
        raise UserError(f"limits.memory_bytes is {limits.memory_bytes}: it must be from {LEAST_MEMORY} to "
                        f"{memory_bytes}, what the machine has")
    for name in ("wall_s", "cpu_s"):
        if not math.isfinite(getattr(limits, name)):
            raise UserError(f"limits.{name} is {getattr(limits, name)}: it must be finite")


class SlotSandbox(Sandbox, Generic[Place]):
    """Executions in the slots of a pool. Belongs to one event loop.

    Args:
        sessions: sessions at once, beside the pool's slots.
        memory_bytes: what the machine that runs the code has.
    """

    def __init__(self, pool: Pool[Place], *, sessions: int, limits: Limits, memory_bytes: int) -> None:
        self.limits = limits
        self.pool = pool
        self.memory_bytes = memory_bytes
        self._sessions = asyncio.Semaphore(sessions)

    async def run(self, code: str | None = None, *, argv: Sequence[str] | None = None, stdin: bytes = b"",
                  files: Mapping[str, bytes] | None = None, collect: Sequence[str] = (),
                  limits: Limits | None = None) -> Result:
        """See `Sandbox.run`. Memory is counted beyond the warm interpreter's own."""
        limits = self._checked(limits)
        files = files or {}
        check_request(code, argv, files, collect, limits)
        source = b"" if code is None else code.encode("utf-8", "surrogatepass")
        header = {"op": "run", "limits": _fields(limits), "collect": list(collect)}
        blobs = [source, stdin, _joined(argv or ()), _joined(files), *files.values()]
        for _ in range(1 if limits.network else 2):  # it had no effect outside, so a lost one may run again
            reply = await self._ask(header, blobs, limits)
            if reply is None:
                continue
            answer, parts = reply
            if answer.get("ended"):  # even the slot found none
                return Result("", "", None, KilledBy.MEMORY, limits.wall_s, 0.0, limits.memory_bytes, False)
            return _result(answer, parts, limits)
        raise SandboxError("the slot died during the execution" + ("" if limits.network else ", twice"))

    async def _ask(self, header: Mapping[str, object], blobs: Sequence[bytes],
                   limits: Limits) -> Message | None:
        """Have one slot carry out a request; None where the slot was lost."""
        slot = await self.pool.take(limits)
        sound, overdue = False, False
        try:
            async with asyncio.timeout(limits.wall_s + GRACE_S):
                reply = await slot.exchange(header, blobs)
            if reply and "error" in reply[0]:
                raise SandboxError(reply[0]["error"])
            sound = reply is not None and reply[0].get("killed_by", "lost") in (None, KilledBy.SIGNAL)
            return reply
        except TimeoutError:
            overdue = True
            raise SandboxError(f"no answer {GRACE_S:g} s after the wall time was over") from None
        finally:
            self.pool.give_back(slot, sound=sound, kill=overdue)

    async def session(self, *, limits: Limits | None = None) -> SlotSession[Place]:
        """Start an interpreter in a slot of its own, beside the pool's; wait where `sessions` are open."""
        limits = self._checked(limits)
        await self._sessions.acquire()
        try:
            slot = await self.pool.fresh(limits)
        except BaseException:
            self._sessions.release()
            raise
        session = SlotSession(self.pool, slot, limits, self._sessions, self.memory_bytes)
        try:
            await session.start()
        except BaseException:
            await session.close()
            raise
        return session

    def _checked(self, limits: Limits | None) -> Limits:
        if self.pool.closed:
            raise SandboxError("the sandbox is closed")
        if limits is None:
            return self.limits
        check_limits(limits, self.memory_bytes)
        return limits

    async def close(self) -> None:
        """See `Sandbox.close`: returns when every slot is gone."""
        await self.pool.close()


class SlotSession(Session, Generic[Place]):
    """An interpreter in a slot of its own.

    A cell's wall time, CPU time and output are limited by that call's limits; memory, processes and files by
    the limits that the session was opened with, over all its life.
    """

    def __init__(self, pool: Pool[Place], slot: Place, limits: Limits, open_sessions: asyncio.Semaphore,
                 memory_bytes: int) -> None:
        self.limits = limits
        self._pool, self._slot = pool, slot
        self._open_sessions, self._memory_bytes = open_sessions, memory_bytes
        self._ended: str | None = None
        self._turn = asyncio.Lock()  # one request at a time: the stream carries one answer

    async def start(self) -> None:
        """Start the interpreter."""
        await self._ask({"op": "session", "limits": _fields(self.limits)}, [], GRACE_S)

    async def run(self, code: str, *, limits: Limits | None = None) -> Result:
        """See `Session.run`."""
        limits = limits or self.limits
        check_limits(limits, self._memory_bytes)
        header = {"op": "cell", "limits": _fields(limits)}
        source = code.encode("utf-8", "surrogatepass")
        answer, parts = await self._ask(header, [source], limits.wall_s + GRACE_S)
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
        answer, parts = await self._ask(header, blobs, GRACE_S)
        if "refused" in answer:
            raise OSError(*answer["refused"], path)
        return parts

    async def _ask(self, header: Mapping[str, object], blobs: Sequence[bytes],
                   patience_s: float) -> Message:
        async with self._turn:
            if self._ended:
                raise SandboxError(f"the session has ended: {self._ended}")
            try:
                async with asyncio.timeout(patience_s):
                    reply = await self._slot.exchange(header, blobs)
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


@functools.lru_cache(maxsize=64)
def _fields(limits: Limits) -> dict[str, Any]:
    """Return the limits as a request carries them, to be left as they are."""
    return dataclasses.asdict(limits)


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
