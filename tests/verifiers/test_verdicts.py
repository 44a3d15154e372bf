"""Unknown is not zero: a verifier that breaks gives no reward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from turncredit.episode import Outcome, Task, Verdict
from turncredit.verifiers import FinalState, judge

TASK = Task("Put 2 apples.", {"goal": {"apples": 2}})


class Returning:
    """A verifier that returns something, or raises it."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def verify(self, task: Task, outcome: Outcome) -> Any:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result() if callable(self.result) else self.result


@pytest.mark.parametrize("result, reason", [
    (RuntimeError("no network"), "raised RuntimeError: no network"),
    (StopIteration(), "raised StopIteration"),
    (None, "returned NoneType, not a Verdict"),
    (1.0, "returned float, not a Verdict"),
    (True, "returned bool, not a Verdict"),
    ({"reward": 1.0}, "returned dict, not a Verdict"),
    (lambda: Verdict(float("nan"), True), "must lie in [0, 1]"),
    (lambda: Verdict(float("inf"), True), "must lie in [0, 1]"),
    (lambda: Verdict(1.5, True), "must lie in [0, 1]"),
    (lambda: Verdict(-0.1, False), "must lie in [0, 1]"),
    (lambda: Verdict("1", True), "raised TypeError"),  # type: ignore[arg-type]  # that is the nonsense
    (lambda: Verdict(1.0, None), "known together or unknown together"),
    (lambda: Verdict(None, True), "known together or unknown together"),
])
def test_a_verifier_that_breaks_gives_no_reward_and_says_why(result: Any, reason: str) -> None:
    verdict = judge(Returning(result), TASK, Outcome("done"))
    assert (verdict.reward, verdict.passed) == (None, None)
    assert reason in verdict.reason


def test_numpy_s_numbers_are_verdicts_too() -> None:
    verdict = judge(Returning(Verdict(np.float32(0.25), np.bool_(False))), TASK, Outcome("done"))
    assert (verdict.reward, verdict.passed) == (0.25, False)
    assert type(verdict.reward) is float
    assert type(verdict.passed) is bool


@pytest.mark.parametrize("state, answer, reward, wrong", [
    ({"apples": 2}, "done", 1.0, None),
    ({"apples": 2}, None, 0.0, None),
    ({"apples": 3}, "done", 0.0, ["apples"]),
    ({}, "done", 0.0, ["apples"]),
    ({"apples": 2, "figs": 1}, "done", 0.0, ["figs"]),
    ({"apples": 2, "figs": None}, "done", 0.0, ["figs"]),
])
def test_a_final_state_passes_where_it_is_the_goal_and_the_agent_is_done(
        state: dict[str, Any], answer: str | None, reward: float, wrong: list[str] | None) -> None:
    verdict = FinalState().verify(TASK, Outcome(answer, state=state))
    assert verdict.reward == reward
    assert verdict.details.get("wrong") == wrong
