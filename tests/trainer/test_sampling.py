"""Dynamic sampling: groups of equal rewards are replaced, within bounds."""

from __future__ import annotations

import numpy as np
import pytest

from turncredit.agents.base import Sample
from turncredit.config import EnvConfig, RolloutConfig
from turncredit.envs import Reply, TextEnv
from turncredit.episode import Task, Verdict
from turncredit.rollout import Budget, Rollout
from turncredit.trainer.sampling import StepSampler, rewards_differ
from turncredit.trainer.tasks import TaskSampler


class SaidYes:
    """Easy tasks always pass, impossible ones never, broken ones cannot be judged, others go by the answer."""

    def verify(self, task, outcome):
        kind = task.hidden["kind"]
        if kind == "broken":
            return Verdict.unknown("no judge")
        return Verdict.of({"easy": True, "impossible": False}.get(kind, outcome.turns[-1].action == "yes"))


class Mixed(TextEnv):
    """A quarter of the tasks has a reward that depends on what is answered."""

    verifier = SaidYes()
    kinds = ("easy", "impossible", "broken", "open")

    def make_task(self, rng):
        return Task(str(rng.integers(10**6)), {"kind": str(rng.choice(self.kinds))}, self.split)

    def respond(self, action):
        return Reply(done=True, answer=action)


class Closed(Mixed):
    """None has."""

    kinds = ("easy", "impossible")


class Open(Mixed):
    """All have."""

    kinds = ("open",)


class YesOrNo:
    """An agent that says yes to every other request of a group, as its seeds have it."""

    policy_version = 0
    max_context = 1 << 20

    def __init__(self, chat):
        self.chat, self.asked = chat, 0

    def start(self, env):
        return self

    async def act(self, request):
        self.asked += 1
        ids = self.chat.assistant("yes" if np.random.default_rng(request.seed).random() < 0.5 else "no")
        return Sample(ids, np.zeros(len(ids), np.float32), np.zeros(len(ids), np.float32), ended=True)

    def end(self):
        """Nothing is held."""


@pytest.fixture(scope="module")
def _environments(register_envs):
    register_envs(Mixed, Closed, Open)


@pytest.fixture
def sampler_of(_environments, policy_of):
    chat = policy_of().chat

    def make(environment, refills, seed=3):
        rollout = Rollout(YesOrNo(chat), chat, Budget(16, 64, 4096))
        tasks = TaskSampler([EnvConfig(id=f"turncredit-tests/{environment}-v0")], seed)
        return StepSampler(rollout, tasks, RolloutConfig(groups=4, group_size=6, refills=refills), seed)

    return make


def shown(groups):
    return [[(e.id, e.task_id, e.prompt, e.reward, e.token_ids.tolist()) for e in g.episodes] for g in groups]


def test_without_refills_every_group_is_trained_on(sampler_of):
    sampled = sampler_of("Mixed", 0).sample(0)
    assert sampled.trained == sampled.every and len(sampled.every) == 4 and sampled.refills == 0
    assert not all(map(rewards_differ, sampled.every))


def test_refills_replace_what_teaches_nothing_until_there_are_enough(sampler_of):
    written = []
    sampled = sampler_of("Mixed", 40).sample(0, written.append)
    assert len(sampled.trained) == 4 and all(map(rewards_differ, sampled.trained))
    assert 0 < sampled.refills < 40
    assert sampled.trained == [group for group in sampled.every if rewards_differ(group)]
    assert {g.episodes[0].group for g in written} == set(range(len(sampled.every))), "each has a number of its own"
    prompts = [group.episodes[0].prompt for group in sampled.every]
    assert len(set(prompts)) == len(prompts), "a refill is of other tasks"


def test_enough_groups_at_once_need_no_refill(sampler_of):
    sampled = sampler_of("Open", 5).sample(0)
    assert (len(sampled.every), len(sampled.trained), sampled.refills) == (4, 4, 0)


def test_refills_are_bounded_and_a_step_without_any_signal_falls_back_on_its_first_groups(sampler_of):
    sampled = sampler_of("Closed", 3).sample(0)
    assert sampled.refills == 3 and len(sampled.every) == 4 * 4
    assert sampled.trained == sampled.every[:4]


def test_a_step_with_too_few_after_all_refills_trains_on_those(sampler_of):
    sampler = sampler_of("Mixed", 1)
    steps = [sampler.sample(step) for step in range(4)]
    short = [s for s in steps if s.refills == 1 and 0 < len(s.trained) < 4]
    assert short and all(rewards_differ(group) for s in short for group in s.trained)


def test_a_step_is_sampled_alike_whichever_steps_were_before_it(sampler_of):
    one, other = sampler_of("Mixed", 2), sampler_of("Mixed", 2)
    forwards = [one.sample(step) for step in range(2)]
    backwards = [other.sample(step) for step in (1, 0)][::-1]
    assert [shown(s.every) for s in forwards] == [shown(s.every) for s in backwards]
    assert shown(forwards[0].every) != shown(forwards[1].every)
