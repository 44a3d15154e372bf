"""A pool of slots that take long to start and are made for certain limits: containers, virtual machines."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from turncredit.sandboxes.base import Limits, SandboxError
from turncredit.sandboxes.slots import Pool, Slot

Outcome = TypeVar("Outcome")


class WarmSlot(Slot):
    """A slot that was started for certain limits."""

    served = 0

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    @abstractmethod
    def alive(self) -> bool:
        """Say whether it waits for a request, as far as can be told without asking it."""

    @abstractmethod
    async def stop(self) -> None:
        """End it and all that runs in it; return when it is gone."""


Warm = TypeVar("Warm", bound=WarmSlot)


@dataclass(eq=False)
class _Idle(Generic[Warm]):
    shape: object
    slot: asyncio.Future[Warm]  # done once it has started


class WarmPool(Pool[Warm]):
    """At most `size` slots at work at once; who comes later waits.

    An execution with limits of another shape gets a slot started for it, in the place of an idle one.

    Args:
        start: makes a slot for such limits; raises SandboxError where it can't.
        shape: those of the limits that a slot is made with, the others being each execution's own.
        recycle_after: executions after which a slot is replaced.
    """

    def __init__(self, start: Callable[[Limits], Awaitable[Warm]], shape: Callable[[Limits], object], *,
                 size: int, recycle_after: int) -> None:
        self.size, self.recycle_after = size, recycle_after
        self.closed = False
        self._start, self._shape = start, shape
        self._free = asyncio.Semaphore(size)
        self._idle: list[_Idle[Warm]] = []
        self._living: set[Warm] = set()
        self._at_work: set[asyncio.Task[Any]] = set()  # starts and stops that nobody waits for

    async def fill(self, limits: Limits) -> None:
        """Start slots up to the pool's size, and wait until all are ready."""
        self._idle += [self._begin(limits) for _ in range(self.size - len(self._idle))]
        await asyncio.gather(*(idle.slot for idle in self._idle))

    async def take(self, limits: Limits) -> Warm:
        """See `Pool.take`."""
        await self._free.acquire()
        try:
            while True:
                idle = self._fitting(limits)
                try:
                    slot = await asyncio.shield(idle.slot)
                except asyncio.CancelledError:
                    self._idle.append(idle)
                    raise
                if slot.alive():
                    return slot
                self.discard(slot)
        except BaseException:
            self._free.release()
            raise

    def _fitting(self, limits: Limits) -> _Idle[Warm]:
        """Take the idle slot that is ready or will be first; begin one where none fits."""
        self._idle = [idle for idle in self._idle if not (idle.slot.done() and idle.slot.exception())]
        fitting = [idle for idle in self._idle if idle.shape == self._shape(limits)]
        if fitting:
            idle = max(fitting, key=lambda each: each.slot.done())
            self._idle.remove(idle)
            return idle
        if len(self._idle) >= self.size:
            self._aside(self._drop(self._idle.pop(0)))  # one of another shape makes room
        return self._begin(limits)

    async def fresh(self, limits: Limits) -> Warm:
        """See `Pool.fresh`."""
        idle = self._begin(limits)
        try:
            return await asyncio.shield(idle.slot)
        except asyncio.CancelledError:
            self._aside(self._drop(idle))
            raise

    def _begin(self, limits: Limits) -> _Idle[Warm]:
        if self.closed:
            raise SandboxError("the sandbox is closed")
        return _Idle(self._shape(limits), self._aside(self._started(limits)))

    async def _started(self, limits: Limits) -> Warm:
        slot = await self._start(limits)
        self._living.add(slot)
        return slot

    async def _drop(self, idle: _Idle[Warm]) -> None:
        await self._stop(await idle.slot)

    def _aside(self, work: Coroutine[Any, Any, Outcome]) -> asyncio.Task[Outcome]:
        task = asyncio.create_task(work)
        self._at_work.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._at_work.discard(task)
        if not task.cancelled():
            task.exception()  # a start's failure is told to whoever waits for the slot, if anyone does

    def give_back(self, slot: Warm, *, sound: bool, kill: bool = False) -> None:
        """See `Pool.give_back`."""
        slot.served += 1
        if sound and slot.served < self.recycle_after and not self.closed:
            ready: asyncio.Future[Warm] = asyncio.get_running_loop().create_future()
            ready.set_result(slot)
            self._idle.append(_Idle(self._shape(slot.limits), ready))
        else:
            self.discard(slot, kill=kill)
            if not self.closed:
                self._idle.append(self._begin(slot.limits))
        self._free.release()

    def discard(self, slot: Warm, *, kill: bool = False) -> None:
        """See `Pool.discard`. A slot is always ended by force: it has nothing to finish."""
        self._aside(self._stop(slot))

    async def _stop(self, slot: Warm) -> None:
        try:
            await slot.stop()
        finally:
            self._living.discard(slot)

    async def close(self) -> None:
        """See `Pool.close`."""
        self.closed = True
        self._idle.clear()
        while self._at_work or self._living:
            stops = [self._stop(slot) for slot in self._living]
            await asyncio.gather(*self._at_work, *stops, return_exceptions=True)
