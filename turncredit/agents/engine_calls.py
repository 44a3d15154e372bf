"""An engine's calls: beside the event loop, one at a time, and never without a bound."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from turncredit.agents.base import Engine, Rests, Sample
from turncredit.daemon import in_daemon_thread
from turncredit.errors import EngineError

T = TypeVar("T")
log = logging.getLogger(__name__)


def settle(answer: asyncio.Future[Sample], outcome: Sample | Exception) -> None:
    """Give an episode its sample, or the reason why there is none; one that was cancelled gets nothing."""
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


class EngineCalls:
    """Calls an engine in a thread. One that hangs costs its callers `timeout_s`, and later ones nothing."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.busy_s = 0.0  # that calls have taken
        self._busy = threading.Lock()
        self._hung = False
        self._forget: Engine | None = None

    async def run(self, call: Callable[[], T]) -> T:
        """The call's result.

        Raises:
            EngineError: no answer in time, now or by an earlier call that still runs.
        """
        if self._hung and self._busy.locked():
            raise EngineError(f"the engine still has not answered an earlier call, after {self.timeout_s:g} s")
        self._hung = False
        try:
            async with asyncio.timeout(self.timeout_s) as limit:
                return await in_daemon_thread(lambda: self._alone(call), "engine")
        except TimeoutError:
            if not limit.expired():
                raise  # the engine's own
            self._hung = True
            raise EngineError(f"the engine gave no answer in {self.timeout_s:g} s") from None

    async def run_twice(self, call: Callable[[], T], engine: Engine) -> T:
        """The call's result, at the second try where the first one failed: the same seeds give the same samples."""
        try:
            return await self.run(call)
        except EngineError:
            raise  # it hangs
        except Exception as error:
            log.warning("the engine failed and is asked once more: %s: %s", type(error).__name__, error)
            self.forget(engine)
        return await self.run(call)

    def forget(self, engine: Engine) -> None:
        """Let the engine forget what it keeps, and rest: now, or before its next call where one is under way."""
        if self._busy.acquire(blocking=False):
            try:
                engine.forget()
                if isinstance(engine, Rests):
                    engine.rest()
            finally:
                self._busy.release()
        else:
            self._forget = engine

    def _alone(self, call: Callable[[], T]) -> T:
        with self._busy:
            if self._forget is not None:
                self._forget.forget()
                self._forget = None
            began = time.perf_counter()
            try:
                return call()
            finally:
                self.busy_s += time.perf_counter() - began
