"""The pool behind the local sandbox: one zygote process, and the slots that it forks.

A slot serves one request after the other over a socket of its own. A slot that timed out, failed, or served
its share is let go and replaced; a zygote that died is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turncredit.sandboxes import slots
from turncredit.sandboxes.base import Limits, SandboxError
from turncredit.sandboxes.slots import Message
from turncredit.sandboxes.zygote import packets

BOOT = "import sys; sys.path.insert(0, {!r}); from zygote.__main__ import main; del sys.path[0]; main()"


class ZygoteRefused(Exception):
    """The zygote could not start here: a sentence that says why, and the protection that is missing."""

    def __init__(self, sentence: str, missing: str | None) -> None:
        super().__init__(sentence)
        self.missing = missing


@dataclass(eq=False)
class Slot(slots.Slot):
    """One slot as the pool sees it: a socket."""

    number: int
    socket: socket.socket
    network: bool
    ready: bool = False
    served: int = 0

    def alive(self) -> bool:
        """Say whether the slot waits for a request: nothing unasked came, and it did not hang up."""
        try:
            unasked = self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        return bool(unasked) and not self.ready  # its greeting

    async def exchange(self, header: Mapping[str, object], blobs: Sequence[bytes]) -> Message | None:
        """See `slots.Slot.exchange`."""
        store = packets.store(blobs)
        try:
            packets.ask(self.socket, {**header, "blobs": [len(blob) for blob in blobs]}, [store])
        except ConnectionError:
            return None
        finally:
            os.close(store)
        return await receive(self)


async def receive(slot: Slot) -> Message | None:
    """Wait for one message; None where the slot died."""
    await _readable(slot.socket.fileno())
    try:
        packet = packets.receive(slot.socket)
    except ConnectionError:
        return None
    if packet is None:
        return None
    header, descriptors = packet
    try:
        return header, packets.load_groups(descriptors, header.pop("blobs", ()))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


class Pool(slots.Pool[Slot]):
    """At most `size` slots at work at once; who comes later waits."""

    def __init__(self, config: Mapping[str, object], environment: Mapping[str, str], *, size: int,
                 recycle_after: int) -> None:
        self.config, self.environment = config, environment
        self.size, self.recycle_after = size, recycle_after
        self.closed = False
        self.protections: dict[str, Any] = {}
        self._free = asyncio.Semaphore(size)
        self._idle: list[Slot] = []
        self._starting = asyncio.Lock()
        self._numbers = itertools.count()
        self._guard: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    async def start(self) -> None:
        """Start the guard and the zygote, and fork the slots.

        Raises:
            ZygoteRefused: it can't run here as configured.
            SandboxError: it died without a word.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        boot = BOOT.format(str(Path(__file__).parent))
        # -S -s -P: no package's code runs at the start, nothing comes from a working folder; -B: no writes.
        command = [os.path.realpath(getattr(sys, "_base_executable", sys.executable)), "-S", "-s", "-P", "-B",
                   "-c", boot, str(theirs.fileno())]
        guard = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=dict(self.environment), cwd="/",
                                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                 start_new_session=True)
        theirs.close()
        ours.setblocking(False)
        self._guard, self._control = guard, ours
        try:
            ours.send(json.dumps({**self.config, "opener": os.getpid()}).encode())
            packet = await asyncio.get_running_loop().sock_recv(ours, packets.PACKET)
        except BaseException:
            await self._stop_zygote()
            raise
        if not packet:
            raise SandboxError(f"the zygote ended at its start: {await self._stop_zygote()}")
        message = json.loads(packet)
        if "error" in message:
            await self._stop_zygote()
            raise ZygoteRefused(message["error"], message["missing"])
        self.protections = message["ready"]

    def warm(self) -> None:
        """Fork slots up to the pool's size, without waiting for them."""
        while len(self._idle) < self.size:
            self._idle.append(self._spawn(network=False))

    def _spawn(self, *, network: bool) -> Slot:
        """Ask the zygote for a slot.

        Raises:
            OSError: the zygote is gone, or too busy to listen.
        """
        assert self._control is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        number = next(self._numbers)
        try:
            request = json.dumps({"spawn": number, "network": network}).encode()
            socket.send_fds(self._control, [request], [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return Slot(number, ours, network)

    async def take(self, limits: Limits) -> Slot:
        """See `slots.Pool.take`. A slot has the network, or not; other limits are each execution's own."""
        await self._free.acquire()
        try:
            return await self.fresh(limits) if self.closed else await self._sound(limits)
        except BaseException:
            self._free.release()
            raise

    async def _sound(self, limits: Limits) -> Slot:
        while fitting := [slot for slot in self._idle if slot.network == limits.network]:
            slot = fitting[0]  # the one that had the most time to fork its next candidate
            self._idle.remove(slot)
            if slot.alive() and (slot.ready or await self._greeted(slot)):
                return slot
            slot.socket.close()
        if self._idle and len(self._idle) >= self.size:
            self._idle.pop(0).socket.close()  # one of the other kind makes room
        return await self.fresh(limits)

    async def _greeted(self, slot: Slot) -> bool:
        message = await receive(slot)
        if message and "error" in message[0]:
            raise SandboxError(message[0]["error"])
        slot.ready = message is not None
        return slot.ready

    async def fresh(self, limits: Limits) -> Slot:
        """See `slots.Pool.fresh`. Starts the zygote again where it died."""
        for _ in range(3):
            if self.closed:
                raise SandboxError("the sandbox is closed")
            zygote = self._guard
            try:
                slot = self._spawn(network=limits.network)
            except BlockingIOError:
                await asyncio.sleep(0.01)
                continue
            except OSError:
                await self._restart(zygote)
                continue
            if await self._greeted(slot):
                return slot
            slot.socket.close()
        raise SandboxError("no slot comes up: the zygote or its slots die at their start")

    async def _restart(self, dead: subprocess.Popen[bytes] | None) -> None:
        async with self._starting:
            if self._guard is dead and not self.closed:
                await self._stop_zygote()
                try:
                    await self.start()
                except ZygoteRefused as refused:
                    raise SandboxError(str(refused)) from refused

    def give_back(self, slot: Slot, *, sound: bool, kill: bool = False) -> None:
        """See `slots.Pool.give_back`."""
        slot.served += 1
        if sound and slot.served < self.recycle_after and not self.closed:
            self._idle.append(slot)
        else:
            self.discard(slot, kill=kill)
            with contextlib.suppress(OSError):  # then the next `take` finds the list short, and sees to it
                if not self.closed:
                    self._idle.append(self._spawn(network=False))
        self._free.release()

    def discard(self, slot: Slot, *, kill: bool = False) -> None:
        """See `slots.Pool.discard`: it ends when it sees the hang-up, or at once by the zygote's hand."""
        slot.socket.close()
        if kill and self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(json.dumps({"kill": slot.number}).encode())

    async def close(self) -> None:
        """See `slots.Pool.close`: the zygote's end is every slot's and execution's."""
        self.closed = True
        await self._stop_zygote()
        for slot in self._idle:
            slot.socket.close()
        self._idle.clear()

    async def _stop_zygote(self) -> str:
        """Hang up, wait for the guard's end, and return its last words."""
        if self._control is not None:
            self._control.close()
        guard, self._guard, self._control = self._guard, None, None
        if guard is None:
            return ""
        _, errors = await asyncio.to_thread(guard.communicate)
        lines = errors.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {guard.returncode}"
