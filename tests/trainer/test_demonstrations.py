"""Scripted solutions of the tasks that groups were sampled on."""

from __future__ import annotations

import pytest

from turncredit.config import EnvConfig, TeacherConfig, TrainerConfig
from turncredit.envs import TextEnv
from turncredit.episode import Group
from turncredit.errors import UserError
from turncredit.rollout import TaskRef
from turncredit.trainer.algorithms import make_algorithm
from turncredit.trainer.demonstrations import Demonstrator
from turncredit.trainer.learner import Learner

ENV = EnvConfig(id="turncredit/Calculator-v0", arguments={"level": 1})


class Unscripted(TextEnv):
    """Nobody wrote its expert_action."""

    instructions = "Guess."


@pytest.fixture
def demonstrator(policy_of):
    made = Demonstrator([ENV], policy_of().chat, "plain")
    yield made
    made.close()


def test_each_group_is_shown_a_verified_solution_of_its_own_task(demonstrator, policy_of, sample_groups):
    groups = sample_groups(policy_of(), 3)
    shown = demonstrator.demonstrations(groups)
    assert [episode.prompt for episode in shown] == [group.episodes[0].prompt for group in groups]
    assert len({episode.prompt for episode in shown}) == 3 and all(episode.passed for episode in shown)
    assert demonstrator.demonstrations([Group([]), groups[2]])[0] is None


def test_an_environment_without_a_script_is_refused(policy_of, register_envs):
    register_envs(Unscripted)
    with pytest.raises(UserError, match=r"solution is 'demonstration': envs.1 is turncredit-tests/Unscripted-v0"):
        Demonstrator([ENV, EnvConfig(id="turncredit-tests/Unscripted-v0")], policy_of().chat, "plain")


def test_a_learner_is_refused_without_the_demonstrator_that_its_algorithm_needs(policy_of):
    with pytest.raises(ValueError, match="pass `demonstrator`"):
        Learner(policy_of(), make_algorithm("sdpo", solution="demonstration"), TrainerConfig(), TeacherConfig(), 0)


def test_an_unsolved_group_learns_from_a_demonstration_and_is_counted_without(demonstrator, policy_of, sample_groups,
                                                                             judged_as):
    policy = policy_of()
    algorithm = make_algorithm("sdpo", solution="demonstration")
    learner = Learner(policy, algorithm, TrainerConfig(), TeacherConfig(), 0, demonstrator=demonstrator)
    group = judged_as(sample_groups(policy)[0], "----")
    assert learner.update(learner.credit([group], 0), 0)["updated"]
    group.task = None
    credit = learner.credit([group], 0)
    assert credit.counts["episodes without demonstration"] == 4 and not credit.has_signal


def test_a_script_that_fails_shows_nothing(demonstrator, policy_of, sample_groups):
    [group] = sample_groups(policy_of())
    group.task = TaskRef("turncredit/Calculator-v0", 0, {"level": 1, "max_turns": 1})
    assert demonstrator.demonstrations([group]) == [None]
