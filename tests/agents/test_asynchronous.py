"""Each episode moves by itself: the engine samples whoever is ready, and no wait is without a bound."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from turncredit.agents import (
    AsynchronousAgent,
    ChatFormat,
    EngineAgent,
    Request,
    Sample,
    Sampling,
    TransformersEngine,
)
from turncredit.agents.plain_batch import sample_plainly
from turncredit.errors import EngineError

AGENTS = [EngineAgent, AsynchronousAgent]


class Slow:
    """An engine whose calls can be held, and fail."""

    policy_version, max_context = 3, 100

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.broken: Exception | None = None
        self.forgotten = 0

    def generate(self, requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int]) -> list[Sample]:
        self.goes_on.wait(20)
        if self.broken:
            raise self.broken
        zero = np.zeros(1, np.float32)
        return [Sample([request.seed], zero, zero, ended=True) for request in requests]

    def forget(self) -> None:
        self.forgotten += 1


@pytest.fixture
def chat(tokenizer_for: Any) -> ChatFormat:
    return ChatFormat(tokenizer_for("chatml"))


async def episode(agent: Any, number: int, turns: int, pause: Callable[[int], Any]) -> list[Sample]:
    """Turns that each go on where the one before ended."""
    seat = agent.start(None)
    context, said = [30 + number, 31, 32], []
    try:
        for turn in range(turns):
            said.append(await seat.act(Request(context, 6, 100 * turn + number)))
            context = [*context, *said[-1].token_ids, 40 + turn]
            await pause(number)
    finally:
        seat.end()
    return said


def test_an_episode_in_a_slow_environment_holds_up_no_other(chat: ChatFormat, model_for: Any) -> None:
    agent = AsynchronousAgent(TransformersEngine(model_for(chat.tokenizer)), chat)
    others_over = asyncio.Event()

    async def run() -> None:
        async def pause(number: int) -> None:
            if number == 0:  # does not answer before all the others have come to their end
                await asyncio.wait_for(others_over.wait(), 20)

        slow = asyncio.ensure_future(episode(agent, 0, 3, pause))
        await asyncio.gather(*(episode(agent, i, 4, pause) for i in range(1, 4)))
        others_over.set()
        assert len(await slow) == 3

    asyncio.run(run())


@pytest.mark.parametrize("max_batch", [2, 64])
def test_the_same_seed_is_the_same_sample_whenever_it_was_asked_for(chat: ChatFormat, model_for: Any,
                                                                    max_batch: int) -> None:
    model = model_for(chat.tokenizer)
    agent = AsynchronousAgent(TransformersEngine(model, max_batch), chat)

    async def run() -> list[list[Sample]]:
        async def pause(number: int) -> None:
            await asyncio.sleep(0.003 * (number * 7 % 5))

        return list(await asyncio.gather(*(episode(agent, i, 4, pause) for i in range(6))))

    for number, said in enumerate(asyncio.run(run())):
        context = [30 + number, 31, 32]
        for turn, sample in enumerate(said):
            expected = sample_plainly(model, [Request(context, 6, 100 * turn + number)], Sampling(), chat.stop_ids)[0]
            assert sample.token_ids == expected.token_ids
            np.testing.assert_allclose(sample.logprobs, expected.logprobs, atol=1e-4)
            context = [*context, *sample.token_ids, 40 + turn]
    assert agent.busy_s > 0
    assert agent.engine._batch is not None  # type: ignore[attr-defined]  # it is a transformers engine
    assert len(agent.engine._batch.kept) == 0, "all episodes are over"  # type: ignore[attr-defined]


async def nothing(number: int) -> None:
    """No pause."""


@pytest.mark.parametrize("kind", AGENTS)
def test_an_engine_that_fails_ends_those_who_asked_and_is_asked_again(chat: ChatFormat, kind: Any) -> None:
    engine = Slow()
    agent = kind(engine, chat)

    async def run() -> list[Any]:
        return list(await asyncio.gather(*(episode(agent, i, 1, nothing) for i in range(3)), return_exceptions=True))

    engine.broken = RuntimeError("out of memory")
    assert [str(error) for error in asyncio.run(run())] == ["out of memory"] * 3
    engine.broken = None
    assert [said[0].token_ids for said in asyncio.run(run())] == [[0], [1], [2]]
    assert engine.forgotten >= 2


@pytest.mark.parametrize("kind", AGENTS)
def test_an_engine_that_hangs_is_waited_for_no_longer_than_its_bound(chat: ChatFormat, kind: Any) -> None:
    engine = Slow()
    agent = kind(engine, chat, timeout_s=0.2)

    async def run() -> list[Any]:
        return list(await asyncio.gather(*(episode(agent, i, 1, nothing) for i in range(3)), return_exceptions=True))

    engine.goes_on.clear()
    for sentence in ("no answer in 0.2 s", "still has not answered an earlier call"):
        began = time.monotonic()
        errors = asyncio.run(run())
        assert time.monotonic() - began < 5
        assert all(isinstance(error, EngineError) for error in errors)
        assert any(sentence in str(error) for error in errors)
    engine.goes_on.set()  # it was only slow
    deadline = time.monotonic() + 10
    while agent._calls._busy.locked() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [said[0].token_ids for said in asyncio.run(run())] == [[0], [1], [2]]


def test_a_cancelled_request_is_nobody_s_and_the_others_get_theirs(chat: ChatFormat, model_for: Any) -> None:
    agent = AsynchronousAgent(TransformersEngine(model_for(chat.tokenizer)), chat)

    async def run() -> list[Sample]:
        given_up = asyncio.ensure_future(episode(agent, 0, 3, nothing))
        other = asyncio.ensure_future(episode(agent, 1, 3, nothing))
        await asyncio.sleep(0.002)
        given_up.cancel()
        return await other

    assert len(asyncio.run(run())) == 3
    assert len(asyncio.run(run())) == 3, "the agent is used again"


class Steady:
    """An engine that takes five steps for a turn, whoever comes meanwhile."""

    max_context = 100

    def __init__(self) -> None:
        self.policy_version, self.left = 3, dict[int, int]()
        self.added = 0

    def stream(self, sampling: Sampling, stop_ids: Sequence[int]) -> Steady:
        return self

    @property
    def unfinished(self) -> int:
        return len(self.left)

    def add(self, requests: Sequence[Request]) -> list[int]:
        numbers = list(range(self.added, self.added + len(requests)))
        self.added += len(requests)
        self.left |= dict.fromkeys(numbers, 5)
        return numbers

    def step(self) -> list[tuple[int, Sample]]:
        time.sleep(0.01)
        self.left = {number: left - 1 for number, left in self.left.items()}
        over = [number for number, left in self.left.items() if not left]
        zero = np.zeros(1, np.float32)
        return [(number, Sample([number], zero, zero, ended=True)) for number in over if self.left.pop(number) == 0]

    def forget(self) -> None:
        self.left.clear()


@pytest.mark.parametrize("fails", [False, True])
def test_new_weights_come_between_two_turns_and_each_turn_notes_whose_it_is(chat: ChatFormat, fails: bool) -> None:
    engine: Any = Steady()
    agent = AsynchronousAgent(engine, chat)
    seen: list[tuple[int, int]] = []

    def load() -> None:
        seen.append((engine.unfinished, engine.added))
        if fails:
            raise EngineError("no weights")
        engine.policy_version = 4

    async def run() -> list[list[Sample]]:
        first = asyncio.ensure_future(episode(agent, 0, 2, nothing))
        await asyncio.sleep(0.015)  # its first turn is under way
        other = asyncio.ensure_future(episode(agent, 2, 1, nothing))
        await asyncio.sleep(0.015)  # as is this one's, which ends later
        loaded = asyncio.ensure_future(agent.between_turns(load))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(episode(agent, 1, 1, nothing))
        if fails:
            with pytest.raises(EngineError, match="no weights"):
                await loaded
        return list(await asyncio.gather(first, other, second))

    versions = [[sample.policy_version for sample in said] for said in asyncio.run(run())]
    assert seen == [(0, 2)], "behind the turns that were under way, and before the one that had come meanwhile"
    assert versions == ([[3, 3], [3], [3]] if fails else [[3, 4], [3], [4]])


def test_what_is_sampled_between_two_turns_changes_nothing_for_those_that_go_on(chat: ChatFormat,
                                                                               model_for: Any) -> None:
    model = model_for(chat.tokenizer)
    engine = TransformersEngine(model)
    agent = AsynchronousAgent(engine, chat)
    every = range(len(chat.tokenizer))
    stops = [token for token in every if token % 3]  # nearly every turn ends with its first token or two
    agent.chat = type("Stops", (), {"stop_ids": stops})()  # type: ignore[assignment]

    async def run() -> list[list[Sample]]:
        episodes = [asyncio.ensure_future(episode(agent, i, 6, nothing)) for i in range(3)]
        for _ in range(4):  # with no token that ends a turn, as new weights are tried out
            await agent.between_turns(lambda: engine.generate([Request([5, 6], 3, 0)], Sampling(), []) and None)
        return list(await asyncio.gather(*episodes))

    for said in asyncio.run(run()):
        for sample in said:
            assert not set(stops) & set(sample.token_ids[:-1]), "a turn ends with the first of them"
