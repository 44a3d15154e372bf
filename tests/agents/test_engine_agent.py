"""The turns of all running episodes go to the engine in one batch, in the order of the episodes' start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import turncredit
from turncredit.agents import AsynchronousAgent, ChatFormat, EngineAgent, Request, Sample, Sampling, ScriptedAgent
from turncredit.agents.scripted import SCRIPTS


class Echoing:
    """An engine that says each request's seed, and keeps what it was asked."""

    policy_version = 3
    max_context = 100

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.broken: Exception | None = None

    def generate(self, requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int]) -> list[Sample]:
        self.batches.append([request.seed for request in requests])
        if self.broken:
            raise self.broken
        zero = np.zeros(1, np.float32)
        return [Sample([request.seed], zero, zero, ended=True) for request in requests]

    def forget(self) -> None:
        """Nothing is kept."""


@pytest.fixture
def chat(tokenizer_for: Any) -> ChatFormat:
    return ChatFormat(tokenizer_for("chatml"))


@pytest.fixture
def engine() -> Echoing:
    return Echoing()


@pytest.fixture
def agent(engine: Echoing, chat: ChatFormat) -> EngineAgent:
    return EngineAgent(engine, chat)


def test_a_batch_waits_for_every_running_episode_and_keeps_their_order(agent: EngineAgent, engine: Echoing) -> None:
    async def episode(seat: Any, number: int, turns: int) -> list[int]:
        said = []
        for turn in range(turns):
            await asyncio.sleep(0.01 * ((number * 7 + turn) % 5))  # environments take their time
            said += (await seat.act(Request([1], 4, seed=10 * turn + number))).token_ids
        seat.end()
        return said

    async def run() -> list[list[int]]:
        seats = [agent.start(None) for _ in range(4)]
        return list(await asyncio.gather(*(episode(seat, i, turns=1 + i) for i, seat in enumerate(seats))))

    assert asyncio.run(run()) == [[0], [1, 11], [2, 12, 22], [3, 13, 23, 33]]
    assert engine.batches == [[0, 1, 2, 3], [11, 12, 13], [22, 23], [33]]
    assert (agent.policy_version, agent.max_context) == (3, 100)
    engine.batches.clear()
    assert asyncio.run(run()) == [[0], [1, 11], [2, 12, 22], [3, 13, 23, 33]], "the agent is used again"


@pytest.mark.parametrize("kind", [EngineAgent, AsynchronousAgent])
def test_the_engine_rests_where_the_last_episode_has_ended_and_not_before(chat: ChatFormat, kind: Any) -> None:
    class Rests(Echoing):
        rested = 0

        def rest(self) -> None:
            self.rested += 1

    engine = Rests()
    agent = kind(engine, chat)

    async def run() -> list[int]:
        seats = [agent.start(None) for _ in range(2)]
        await asyncio.gather(*(seat.act(Request([1], 4, seed=i)) for i, seat in enumerate(seats)))
        await asyncio.sleep(0.05)  # until whoever asked the engine is done with it
        found = [engine.rested]
        for seat in seats:
            seat.end()
            found.append(engine.rested)
        return found

    assert asyncio.run(run()) == [0, 0, 1]


def test_an_engine_that_fails_fails_for_all_who_asked_and_is_asked_again(agent: EngineAgent, engine: Echoing) -> None:
    engine.broken = RuntimeError("out of memory")

    async def run() -> list[Any]:
        seats = [agent.start(None) for _ in range(3)]
        said = await asyncio.gather(*(seat.act(Request([1], 4, i)) for i, seat in enumerate(seats)),
                                    return_exceptions=True)
        for seat in seats:
            seat.end()
        return list(said)

    assert [str(error) for error in asyncio.run(run())] == ["out of memory"] * 3
    engine.broken = None
    assert [sample.token_ids for sample in asyncio.run(run())] == [[0], [1], [2]]


def test_a_cancelled_episode_is_not_sampled_for(agent: EngineAgent, engine: Echoing) -> None:
    async def run() -> list[int]:
        seats = [agent.start(None) for _ in range(2)]
        given_up = asyncio.ensure_future(seats[0].act(Request([1], 4, 0)))
        await asyncio.sleep(0)
        given_up.cancel()
        seats[0].end()
        said = (await seats[1].act(Request([1], 4, 1))).token_ids
        seats[1].end()
        return list(said)

    assert asyncio.run(run()) == [1]
    assert engine.batches == [[1]]


def test_scripted_agents_write_what_their_script_says(chat: ChatFormat) -> None:
    env = turncredit.make("turncredit/Calculator-v0", tool_format="plain")
    env.reset(seed=0)

    def first_turn(script: str) -> tuple[str, Sample]:
        sample = asyncio.run(ScriptedAgent(SCRIPTS[script], chat).start(env).act(Request([1], 4, 0)))
        return chat.text(sample.token_ids), sample

    text, sample = first_turn("expert")
    assert text.startswith("@calculate a=")
    assert sample.token_ids[-1] == chat.end_id
    assert np.isnan(sample.logprobs).all(), "no policy sampled them"
    assert first_turn("silent")[0] == ""
    assert first_turn("echo")[0] == env.unwrapped.task.prompt  # type: ignore[attr-defined]
    env.step("@calculate a=1 op=+ b=2")
    assert first_turn("echo")[0] == "3"
