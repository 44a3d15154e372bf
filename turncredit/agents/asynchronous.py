"""An agent whose episodes move by themselves: the engine always has the turns of whoever is ready."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from turncredit.agents.base import Engine, Request, Sample, Sampling, Stream
from turncredit.agents.chat import ChatFormat
from turncredit.agents.engine_calls import EngineCalls, settle
from turncredit.agents.streams import stream_of
from turncredit.errors import EngineError

log = logging.getLogger(__name__)
Asked = tuple[Request, "asyncio.Future[Sample]"]


class AsynchronousAgent:
    """Gives each turn to the engine as it comes, beside those that it is sampling: nobody waits for a slow environment.

    A request's sample depends on its seed and not on who is sampled beside it, but for rounding: the same seed gives
    the same episodes up to that.

    Args:
        engine: what samples; one with a `stream` takes turns in while it samples others.
        chat: the model's chat format.
        sampling: the distribution.
        timeout_s: the longest wait for the next sample to end.
    """

    def __init__(self, engine: Engine, chat: ChatFormat, sampling: Sampling | None = None,
                 timeout_s: float = 1800.0) -> None:
        self.engine, self.chat, self.sampling = engine, chat, sampling or Sampling()
        self._calls = EngineCalls(timeout_s)
        self._running = self._started = 0
        self._arrived: deque[Asked] = deque()
        self._between: deque[tuple[Callable[[], None], asyncio.Future[None]]] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._stream: Stream | None = None

    @property
    def policy_version(self) -> int:
        """The engine's."""
        return self.engine.policy_version

    @property
    def max_context(self) -> int:
        """The engine's, in tokens."""
        return self.engine.max_context

    @property
    def busy_s(self) -> float:
        """In which the engine has worked so far."""
        return self._calls.busy_s

    async def between_turns(self, call: Callable[[], None]) -> None:
        """Call something with the engine, such as new weights, once the turns under way have ended.

        Turns that come meanwhile wait, and are the first ones that the new weights sample: each turn is of one version.

        Raises:
            EngineError: the engine hangs; and whatever `call` raises.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._between.append((call, done))
        self._keep_sampling()
        await done

    def start(self, env: Any) -> _Seat:
        """Begin an episode."""
        self._running += 1
        self._started += 1
        return _Seat(self, self._started)

    async def _ask(self, seat: int, request: Request) -> Sample:
        answer: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        self._arrived.append((replace(request, episode=seat), answer))
        self._keep_sampling()
        return await answer

    def _keep_sampling(self) -> None:
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._sample())

    def _leave(self) -> None:
        self._running -= 1
        if not self._running:  # each rollout starts from nothing, so that a resumed run does what the whole one did
            self._calls.forget(self.engine)

    async def _sample(self) -> None:
        """Step the engine until nobody waits for it."""
        self._asked: dict[int, Asked] = {}
        self._stream = None
        failed_before = False
        while self._arrived or self._asked or self._between:
            if self._between and not self._asked:
                await self._call_between()
                continue
            coming = [] if self._between else [self._arrived.popleft() for _ in range(len(self._arrived))]
            coming = [(request, answer) for request, answer in coming if not answer.done()]  # some were cancelled
            try:
                await self._sample_some(coming)
                failed_before = False
            except Exception as error:
                self._calls.forget(self.engine)  # what is still under way is nobody's any more
                self._stream = None
                waiting = [*self._asked.values(), *(one for one in coming if one not in self._asked.values())]
                self._asked = {}
                if failed_before or isinstance(error, EngineError):  # it belongs to the episodes that asked
                    for _, answer in waiting:
                        settle(answer, error)
                else:  # the same seeds give the same samples
                    log.warning("the engine failed and is asked once more: %s: %s", type(error).__name__, error)
                    self._arrived.extendleft(reversed(waiting))
                failed_before = True

    async def _call_between(self) -> None:
        call, done = self._between.popleft()
        self._stream = None  # the engine may sample something else in between, with other tokens that end a turn
        try:
            await self._calls.run(call)
        except Exception as error:  # it belongs to the one who called
            if not done.done():
                done.set_exception(error)
        else:
            if not done.done():
                done.set_result(None)

    async def _sample_some(self, coming: Sequence[Asked]) -> None:
        """Hand in those that come, and give their samples to those whose turn has ended."""
        numbers, ended = await self._calls.run(partial(self._advance, [request for request, _ in coming]))
        self._asked |= zip(numbers, coming, strict=True)
        version = self.policy_version
        for number, sample in ended:
            settle(self._asked.pop(number)[1],
                   replace(sample, policy_version=version) if isinstance(sample, Sample) else sample)

    def _advance(self, requests: Sequence[Request]) -> tuple[list[int], Sequence[tuple[int, Sample | EngineError]]]:
        """Step until a sample has come to its end, or somebody else is there."""
        if self._stream is None:
            self._stream = stream_of(self.engine, self.sampling, self.chat.stop_ids)
        numbers = self._stream.add(requests)
        ended: Sequence[tuple[int, Sample | EngineError]] = []
        while self._stream.unfinished and not ended and (self._between or not self._arrived):
            ended = self._stream.step()
        return numbers, ended


class _Seat:
    """One episode's place."""

    def __init__(self, agent: AsynchronousAgent, number: int) -> None:
        self._agent, self._number = agent, number

    async def act(self, request: Request) -> Sample:
        return await self._agent._ask(self._number, request)

    def end(self) -> None:
        self._agent._leave()
