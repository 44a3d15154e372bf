"""Environments raise and hang, the engine dies twice: every episode is accounted for, and none twice."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

import turncredit
from turncredit.agents import AsynchronousAgent, ChatFormat, EngineAgent, Request, Sample, Sampling, TransformersEngine
from turncredit.envs import Reply, TextEnv
from turncredit.episode import Episode, Group, Outcome, StopReason, Task, Verdict
from turncredit.rollout import Budget, Rollout, TaskRef

GROUPS, SIZE = 30, 8


class Faulty(TextEnv):
    """Of its steps 5 % raise and 2 % hang."""

    turn_limit = 10
    paces: ClassVar[random.Random]
    counts: ClassVar[Counter[str]]

    class Verifier:
        def verify(self, task: Task, outcome: Outcome) -> Verdict:
            return Verdict.of(True)

    verifier = Verifier()

    def make_task(self, rng: np.random.Generator) -> Task:
        return Task(f"Say {rng.integers(1000)}.", split=self.split)

    def respond(self, action: str) -> Reply:
        chance = self.paces.random()
        if chance < 0.05:
            self.counts["raised"] += 1
            raise ConnectionError("the database is away")
        if chance < 0.07:
            self.counts["hung"] += 1
            time.sleep(8)
        return Reply("go on", done=len(self.turns) >= 2, answer=action)


class Dying:
    """A transformers engine that is killed twice: it raises in the middle of a batch, and is there again."""

    def __init__(self, engine: TransformersEngine, deaths: Sequence[int]) -> None:
        self.engine, self.deaths, self.max_context, self.policy_version = engine, set(deaths), engine.max_context, 0
        self.calls = 0

    def generate(self, requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int]) -> list[Sample]:
        self.calls += 1
        if self.calls in self.deaths:
            raise RuntimeError("the engine was killed")
        return self.engine.generate(requests, sampling, stop_ids)

    def forget(self) -> None:
        self.engine.forget()


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    before = dict(gymnasium.registry)
    turncredit.register("tests/Faulty-v0", Faulty)
    Faulty.paces, Faulty.counts = random.Random(4), Counter()
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


@pytest.mark.parametrize("kind", [EngineAgent, AsynchronousAgent])
@pytest.mark.parametrize("deaths", [[2, 5], [2, 3]], ids=["an engine that comes back", "two deaths in a row"])
def test_every_episode_is_accounted_for_whatever_breaks(tokenizer_for: Any, model_for: Any, kind: Any,
                                                        deaths: list[int]) -> None:
    chat = ChatFormat(tokenizer_for("chatml"))
    engine = Dying(TransformersEngine(model_for(chat.tokenizer)), deaths)
    finished: list[Episode] = []
    delivered: list[Group] = []
    rollout = Rollout(kind(engine, chat), chat, Budget(3, 30, 200, step_timeout_s=1.5), on_episode=finished.append)
    groups: list[Group] = []
    for part in range(2):
        tasks = [TaskRef("tests/Faulty-v0", part * 100 + i) for i in range(GROUPS // 2)]
        groups += rollout.sample_groups(tasks, SIZE, seed=part, step=part, on_group=delivered.append)
    rollout.close()

    episodes = [e for group in groups for e in group.episodes]
    assert len(groups) == len(delivered) == GROUPS
    assert {id(g) for g in groups} == {id(g) for g in delivered}
    assert len(finished) == len({e.id for e in episodes}) == len(episodes) == GROUPS * SIZE
    stops = Counter(e.stop for e in episodes)
    assert stops[StopReason.ENVIRONMENT_ERROR] == Faulty.counts["raised"] > 5
    assert stops[StopReason.ENVIRONMENT_TIMEOUT] == Faulty.counts["hung"] > 2
    assert (stops[StopReason.ENGINE_ERROR] > 0) == (deaths == [2, 3]), "what failed once is asked for once more"
    assert stops[StopReason.FINISHED] == len(episodes) - sum(
        stops[s] for s in (StopReason.ENVIRONMENT_ERROR, StopReason.ENVIRONMENT_TIMEOUT, StopReason.ENGINE_ERROR))
    assert stops[StopReason.FINISHED] > len(episodes) // 4
    assert engine.calls >= max(deaths)
    for episode in episodes:
        assert (episode.reward is None) == episode.stop.infrastructure
        assert bool(episode.error) == episode.stop.infrastructure, "each that broke says why"
