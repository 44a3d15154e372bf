"""The environment contract: Gymnasium's over text, with the books kept by `TextEnv`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest

from turncredit.envs import Reply, TextEnv, TextSpace
from turncredit.episode import Outcome, StopReason, Task, Verdict
from turncredit.errors import UserError


class Guess(TextEnv):
    """Guess a number between 0 and 9."""

    instructions = "Guess the number."
    levels = 2
    turn_limit = 3

    class Verifier:
        """Breaks where it is told to."""

        def verify(self, task: Task, outcome: Outcome) -> Verdict:
            if outcome.answer == "break the judge":
                raise RuntimeError("broken")
            return Verdict.of(outcome.answer == task.hidden["answer"])

    verifier = Verifier()

    def make_task(self, rng: np.random.Generator) -> Task:
        return Task("Guess!", {"answer": str(rng.integers(10))}, self.split, self.level)

    def respond(self, action: str) -> Reply:
        if action.startswith("hint"):
            return Reply("no hints", valid=False)
        return Reply(done=True, answer=action)

    def expert_action(self) -> str:
        return str(self.task.hidden["answer"])


def test_the_text_space_holds_every_string_and_nothing_else() -> None:
    space = TextSpace(seed=3)
    assert all(text in space for text in ("", "a b\n", "🙂\x00\ud800", "x" * 100_000))
    assert all(value not in space for value in (None, 3, b"a", ["a"]))
    assert space == TextSpace()
    assert TextSpace(seed=5).sample() == TextSpace(seed=5).sample()
    assert gymnasium.vector.utils.batch_space(space, 2) is not None


def test_reset_tells_an_agent_what_it_needs_and_nothing_of_the_answer() -> None:
    observation, info = Guess(split="test", level=2).reset(seed=1)
    assert observation == "Guess!"
    assert info.keys() == {"instructions", "tools", "task_id", "split", "level"}
    assert (info["instructions"], info["split"], info["level"]) == ("Guess the number.", "test", 2)


def test_a_right_answer_ends_the_episode_with_its_verdict() -> None:
    env = Guess()
    env.reset(seed=1)
    observation, reward, terminated, truncated, info = env.step(env.expert_action())
    assert (observation, reward, terminated, truncated) == ("", 1.0, True, False)
    assert (info["verdict"].passed, info["stop"]) == (True, StopReason.FINISHED)


def test_turns_are_counted_and_the_last_one_is_judged_as_it_stands() -> None:
    env = Guess()
    env.reset(seed=1)
    for turn in range(3):
        observation, reward, terminated, truncated, info = env.step("hint")
        assert (observation, terminated, truncated, info["valid"]) == ("no hints", False, turn == 2, False)
    assert (reward, info["verdict"].passed, info["stop"]) == (0.0, False, StopReason.TURN_LIMIT)
    assert Guess(max_turns=1).max_turns == 1


def test_an_answer_in_the_last_turn_counts() -> None:
    env = Guess(max_turns=2)
    env.reset(seed=1)
    env.step("hint")
    _, reward, terminated, truncated, info = env.step(env.expert_action())
    assert (reward, terminated, truncated, info["stop"]) == (1.0, True, False, StopReason.FINISHED)


def test_a_verifier_that_breaks_gives_no_reward_instead_of_zero() -> None:
    env = Guess()
    env.reset(seed=1)
    _, reward, terminated, _, info = env.step("break the judge")
    assert math.isnan(reward)
    assert terminated
    assert (info["verdict"].reward, info["verdict"].reason) == (None, "the verifier raised RuntimeError: broken")


def test_an_episode_that_is_over_wants_a_reset() -> None:
    env = Guess()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("1")
    env.reset(seed=1)
    env.step("1")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("1")
    env.reset(seed=1)
    assert env.turns == []


def test_an_action_is_a_string() -> None:
    env = Guess()
    env.reset(seed=1)
    with pytest.raises(TypeError, match="action is int: it must be a str"):
        env.step(3)  # type: ignore[arg-type]  # that is what is refused


def test_a_seed_decides_the_task_and_no_seed_goes_on_drawing() -> None:
    env = Guess()

    def answers(seed: int | None) -> list[str]:
        env.reset(seed=seed)
        return [env.task.hidden["answer"], *(env.reset() and env.task.hidden["answer"] for _ in range(8))]

    assert answers(7) == answers(7)
    assert len(set(answers(7))) > 1


def test_a_verifier_cannot_change_the_state_that_it_judges() -> None:
    class Stateful(Guess):
        class Verifier:
            def verify(self, task: Task, outcome: Outcome) -> Verdict:
                outcome.state["shelf"].append("stolen")
                return Verdict.of(True)

        verifier = Verifier()

        def start(self) -> None:
            self.shelf: list[str] = []

        def state(self) -> Mapping[str, Any]:
            return {"shelf": self.shelf}

    env = Stateful()
    env.reset(seed=1)
    assert env.verdict().passed
    assert env.shelf == []


@pytest.mark.parametrize("arguments, sentence", [
    ({"split": "tset"}, r"split 'tset' is unknown; did you mean 'test'\? \(known: train, test, ood\)"),
    ({"level": 0}, "level is 0: Guess has levels 1 to 2"),
    ({"level": 3}, "level is 3: Guess has levels 1 to 2"),
    ({"level": "2"}, "level is '2': Guess has levels 1 to 2"),
    ({"max_turns": 0}, "max_turns is 0: it must be a whole number of at least 1"),
    ({"max_turns": 1.5}, "max_turns is 1.5: it must be a whole number of at least 1"),
    ({"tool_format": "xml"}, "tool_format 'xml' is unknown"),
])
def test_a_wrong_argument_is_refused_in_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Guess(**arguments)


def test_equal_tasks_have_equal_ids_and_splits_keep_them_apart() -> None:
    assert Task("p", {"answer": 1}).id == Task("p", {"answer": 1}).id
    assert Task("p", split="test").id != Task("p").id != Task("q").id
    assert Task("\ud800").id, "an id exists for text that is no UTF-8"
    assert "answer" not in repr(Task("p", {"answer": 1}))
