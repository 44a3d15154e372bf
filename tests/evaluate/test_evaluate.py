"""Evaluation: pass@k against counting, intervals that cover, and episodes without a verdict counted apart."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turncredit.agents import ChatFormat, ScriptedAgent
from turncredit.agents.scripted import expert, silent
from turncredit.config import EnvConfig
from turncredit.episode import Episode, Group, StopReason, Turn, Verdict
from turncredit.errors import UserError
from turncredit.evaluate import bootstrap_interval, evaluate, mean_pass_at, pass_at_k, score, task_refs
from turncredit.rollout import Budget, Rollout

CALCULATOR = EnvConfig(id="turncredit/Calculator-v0", split="test", arguments={"level": 2})


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_k_episodes_with_a_pass_among_them(counts: tuple[int, int, int]) -> None:
    n, c, k = counts
    drawn = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, drawn)) / len(drawn))


def test_tasks_with_fewer_than_k_judged_episodes_say_nothing_about_pass_at_k() -> None:
    assert mean_pass_at([(4, 4), (3, 0), (4, 0)], 4) == 0.5
    assert mean_pass_at([(3, 3)], 4) is None


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.binomial(1, 0.6, size=60).astype(float), seed)
        assert 0 <= low <= high <= 1
        covered += low <= 0.6 <= high
    assert 180 <= covered <= 199


def test_the_interval_is_of_the_tasks_and_the_same_for_the_same_seed() -> None:
    by_task = np.array([0.0, 1.0, 1.0, 0.5])
    assert bootstrap_interval(by_task, 3) == bootstrap_interval(by_task, 3)
    assert bootstrap_interval(np.ones(20), 0) == (1.0, 1.0)
    narrow, wide = (bootstrap_interval(np.tile([0.0, 1.0], n), 0) for n in (500, 5))
    assert narrow[1] - narrow[0] < 0.1 < wide[1] - wide[0]


def episode(reward: float | None, stop: StopReason = StopReason.FINISHED) -> Episode:
    verdict = Verdict.unknown("?") if reward is None else Verdict(reward, reward == 1)
    return Episode("e", "t", "test", 0, "", "", [], [Turn("a")], verdict, stop)


def test_episodes_without_a_verdict_are_counted_apart_and_are_not_zero() -> None:
    broken = StopReason.ENVIRONMENT_ERROR
    groups = [Group([episode(1.0), episode(None)]), Group([episode(0.0), episode(1.0)]),
              Group([episode(1.0, broken), episode(None)])]
    result = score(CALCULATOR, groups, 2, seed=0)
    assert result.avg == pytest.approx((1.0 + 0.5) / 2)
    assert (result.tasks, result.unjudged) == (2, 3)
    assert result.pass_at == {1: pytest.approx(0.75), 2: 1.0}
    assert result.stops == {"finished": 5, "environment error": 1}
    assert result.turns == 1.0


def test_nothing_judged_is_no_score() -> None:
    result = score(CALCULATOR, [Group([episode(None)])], 1, seed=0)
    assert (result.avg, result.interval, result.pass_at, result.tasks, result.unjudged) == (None, None, {}, 0, 1)


@pytest.fixture
def chat(tokenizer_for: Any) -> ChatFormat:
    return ChatFormat(tokenizer_for("chatml"))


def scripted(chat: ChatFormat, script: Any) -> Rollout:
    return Rollout(ScriptedAgent(script, chat), chat, Budget(256, 4096, 8192))


def test_the_scripted_solution_scores_one_and_silence_zero(chat: ChatFormat) -> None:
    envs = [CALCULATOR, EnvConfig(id="turncredit/Pantry-v0", split="ood")]
    seen: list[Group] = []
    for result in evaluate(scripted(chat, expert), envs, tasks=5, k=2, seed=3, on_group=seen.append, side_by_side=4):
        assert (result.avg, result.pass_at, result.pass_all) == (1.0, {1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0})
        assert result.interval == (pytest.approx(0.566, abs=1e-3), 1.0)  # Wilson's: five passes are no certainty
        assert (result.tasks, result.k, result.unjudged) == (5, 2, 0)
    assert len(seen) == 10
    assert {e.split for group in seen for e in group.episodes} == {"test", "ood"}
    assert [s.avg for s in evaluate(scripted(chat, silent), envs, 5, 1, seed=3)] == [0.0, 0.0]


def test_the_same_seed_is_the_same_tasks() -> None:
    assert list(task_refs(CALCULATOR, 6, 1)) == list(task_refs(CALCULATOR, 6, 1))
    assert len({ref.seed for ref in task_refs(CALCULATOR, 6, 1)}) == 6
    assert list(task_refs(CALCULATOR, 6, 1)) != list(task_refs(CALCULATOR, 6, 2))


def test_a_finite_task_set_is_taken_in_order_and_once(tmp_path: Any, chat: ChatFormat) -> None:
    data = tmp_path / "three.jsonl"
    data.write_text("".join(f'{{"question": "{i} + 0?", "answer": "{i}"}}\n' for i in range(3)))
    env = EnvConfig(id="turncredit/Questions-v0", split="test", arguments={"data": str(data)})
    assert [ref.index for ref in task_refs(env, 64, 1)] == [0, 1, 2]
    assert evaluate(scripted(chat, expert), [env], 64, 1, seed=1)[0].tasks == 3


def test_a_mistyped_environment_is_refused_before_the_first_is_evaluated(chat: ChatFormat) -> None:
    seen: list[Group] = []
    with pytest.raises(UserError, match="did you mean 'turncredit/Pantry-v0'"):
        evaluate(scripted(chat, expert), [CALCULATOR, EnvConfig(id="turncredit/Pantri-v0")], 2, 1, 0, seen.append)
    assert seen == []


def test_the_split_train_is_an_environment_s_own_default() -> None:
    assert EnvConfig(id="a").make_arguments == {}
    assert EnvConfig(id="a", split="ood", arguments={"level": 2}).make_arguments == {"split": "ood", "level": 2}
