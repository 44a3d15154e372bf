"""An agent backed by an engine: the turns of all episodes that are waiting go to it in one batch."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

from turncredit.agents.base import Engine, Request, Sample, Sampling
from turncredit.agents.chat import ChatFormat
from turncredit.agents.engine_calls import EngineCalls, settle


class EngineAgent:
    """Waits until every running episode wants a turn, then asks the engine for all of them at once.

    The batch is made in the order of the episodes' start, so that a run with a seed is the same run again,
    however long each environment took.

    Args:
        engine: what samples.
        chat: the model's chat format.
        sampling: the distribution.
        timeout_s: the longest that the engine may take for a turn of all episodes.
    """

    def __init__(self, engine: Engine, chat: ChatFormat, sampling: Sampling | None = None,
                 timeout_s: float = 1800.0) -> None:
        self.engine, self.chat, self.sampling = engine, chat, sampling or Sampling()
        self._running = 0
        self._started = 0
        self._waiting: dict[int, tuple[Request, asyncio.Future[Sample]]] = {}
        self._calls = EngineCalls(timeout_s)
        self._tasks: set[asyncio.Task[None]] = set()

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

    def start(self, env: Any) -> _Seat:
        """Take a seat in the batch."""
        self._running += 1
        self._started += 1
        return _Seat(self, self._started)

    def _ask(self, seat: int, request: Request) -> asyncio.Future[Sample]:
        answer: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        self._waiting[seat] = (replace(request, episode=seat), answer)
        self._sample_if_all_wait()
        return answer

    def _leave(self, seat: int) -> None:
        self._running -= 1
        self._waiting.pop(seat, None)  # where the episode was cancelled while it waited
        if not self._running:  # each rollout starts from nothing, so that a resumed run does what the whole one did
            self._calls.forget(self.engine)
        self._sample_if_all_wait()

    def _sample_if_all_wait(self) -> None:
        if self._waiting and len(self._waiting) >= self._running:
            batch, self._waiting = self._waiting, {}
            task = asyncio.get_running_loop().create_task(self._sample([batch[seat] for seat in sorted(batch)]))
            self._tasks.add(task)  # the loop itself holds tasks only weakly
            task.add_done_callback(self._tasks.discard)

    async def _sample(self, batch: list[tuple[Request, asyncio.Future[Sample]]]) -> None:
        requests = [request for request, _ in batch]
        call = partial(self.engine.generate, requests, self.sampling, self.chat.stop_ids)
        try:
            samples = await self._calls.run_twice(call, self.engine)
            for (_, answer), sample in zip(batch, samples, strict=True):
                settle(answer, sample)
        except Exception as error:  # it belongs to the episodes that asked, each of which ends with it
            for _, answer in batch:
                settle(answer, error)


class _Seat:
    """One episode's place in the batch."""

    def __init__(self, table: EngineAgent, number: int) -> None:
        self._table, self._number = table, number

    async def act(self, request: Request) -> Sample:
        return await self._table._ask(self._number, request)

    def end(self) -> None:
        self._table._leave(self._number)
