"""What every adapter holds to, over the real package; where that is absent its tests are skipped, with the reason."""

from __future__ import annotations

import random
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest

import turncredit
from turncredit.envs import SPLITS, list_envs, spec
from turncredit.errors import MissingExtra, UserError


class Case(NamedTuple):
    """An adapted environment: its package's module, its extra, and what its scripted solution is worth at least."""

    id: str
    module: str
    extra: str
    arguments: dict[str, Any] = {}  # noqa: RUF012  # a named tuple's default, never written to
    expert: float | None = 1.0
    episodes: int = 12
    slow: bool = False
    drawn: int = 60  # tasks of each split that are compared
    prompts_differ: bool = True  # False where tasks that differ may begin alike: their ids are compared then


CASES = [
    Case("FrozenLake", "gymnasium", ""),
    Case("Taxi", "gymnasium", ""),
    Case("CliffWalking", "gymnasium", ""),
    Case("MiniGrid", "minigrid", "minigrid", prompts_differ=False),
    Case("MiniGrid", "minigrid", "minigrid", {"env": "MiniGrid-DoorKey-5x5-v0"}, expert=None,
         prompts_differ=False),
    Case("ReasoningGym", "reasoning_gym", "reasoning-gym"),
    Case("ReasoningGym", "reasoning_gym", "reasoning-gym", {"task": "base_conversion"}),
    Case("BFCL", "bfcl_eval", "bfcl"),
    Case("BFCL", "bfcl_eval", "bfcl", {"category": "miss_func"}),
    Case("TextArena", "textarena", "textarena", prompts_differ=False),
    Case("TextArena", "textarena", "textarena", {"game": "Minesweeper-v0", "ood": "Minesweeper-v0-hard"}, expert=None,
         prompts_differ=False),
    Case("TextArena", "textarena", "textarena", {"game": "Sudoku-v0-easy", "ood": "Sudoku-v0"}, episodes=4),
    Case("AgentDojo", "agentdojo", "agentdojo"),
    Case("TextWorld", "textworld", "textworld", episodes=3, slow=True, drawn=12),
    Case("ALFWorld", "alfworld", "alfworld", episodes=4, slow=True, drawn=12),
    Case("Tau2", "tau2", "tau2", {"domain": "telecom", "ood_domain": "retail"}, episodes=3, slow=True,
         prompts_differ=False),
    Case("ScienceWorld", "scienceworld", "scienceworld",
         {"tasks": ["find-plant", "lifespan-longest-lived"], "ood_tasks": ["find-animal"]}, episodes=2,
         slow=True, prompts_differ=False),
]
NAMES = [f"{case.id}-{next(iter(case.arguments.values()), '')}".rstrip("-") for case in CASES]
MARKS = {True: [pytest.mark.slow], False: []}
each = pytest.mark.parametrize("case", [pytest.param(case, marks=MARKS[case.slow]) for case in CASES], ids=NAMES)
each_split = pytest.mark.parametrize("split", SPLITS)


def make(case: Case, **arguments: Any) -> Any:
    try:
        return turncredit.make(f"turncredit/{case.id}-v0", **case.arguments, **arguments).unwrapped
    except MissingExtra as error:
        pytest.skip(str(error))
    except UserError as error:
        if "Java" not in str(error):
            raise
        pytest.skip(str(error))


def play(env: Any, seed: int, action: str | None = None) -> tuple[float, list[Any]]:
    """The reward and all that was said, with a constant action or the scripted solution."""
    said: list[Any] = [env.reset(seed=seed)[0]]
    over, reward = False, 0.0
    while not over:
        said.append(env.expert_action() if action is None else action)
        observation, reward, terminated, truncated, info = env.step(said[-1])
        assert action is not None or info["valid"], said
        said.append(observation)
        over = terminated or truncated
    return float(reward), said


def test_every_adapter_has_a_case() -> None:
    adapted = {id for id in list_envs() if ".adapters." in str(spec(id).entry_point)}
    elsewhere = {f"turncredit/{name}-v0" for name in ("OpenEnv", "AppWorld", "Verifiers")}  # each has its own file
    assert adapted == {f"turncredit/{case.id}-v0" for case in CASES} | elsewhere


@each_split
@each
def test_the_scripted_solution_is_rewarded(case: Case, split: str) -> None:
    if case.expert is None:
        pytest.skip("the package has no scripted solution for it")
    env = make(case, split=split)
    assert np.mean([play(env, seed)[0] for seed in range(case.episodes)]) >= case.expert
    env.close()


CALLS = [case for case in CASES if case.id in ("BFCL", "AgentDojo", "Tau2")]


@pytest.mark.parametrize("case", [pytest.param(case, marks=MARKS[case.slow]) for case in CALLS],
                         ids=[case.id for case in CALLS])
def test_the_scripted_solution_is_rewarded_where_calls_are_plain_words(case: Case) -> None:
    env = make(case, tool_format="plain")
    assert [play(env, seed)[0] for seed in range(case.episodes)] == [1.0] * case.episodes
    env.close()


@each
def test_a_constant_is_not_rewarded(case: Case) -> None:
    env = make(case)
    for action in ("", "done", "<answer>I don't know</answer>", "<tool_call>", "\x00\ud800", "9" * 9000):
        rewards = [play(env, seed, action)[0] for seed in range(4)]
        assert not any(rewards), action
    env.close()


@each_split
@each
def test_the_same_seed_is_the_same_episode_whatever_was_played_before(case: Case, split: str) -> None:
    one, other = make(case, split=split), make(case, split=split)
    action = None if case.expert is not None else "go forward"
    play(other, 7, action)
    random.seed(3)
    np.random.seed(3)
    for seed in (1, 2):
        assert play(one, seed, action) == play(other, seed, action)
        assert one.task.id == other.task.id
    one.close()
    other.close()


@each
def test_copies_at_once_do_not_disturb_each_other(case: Case) -> None:
    action = None if case.expert is not None else "go forward"
    envs = [make(case), make(case)]
    alone = [play(env, seed, action)[1] for env, seed in zip(envs, (1, 2))]
    together: list[list[Any]] = [[env.reset(seed=seed)[0]] for env, seed in zip(envs, (1, 2))]
    while not all(env._over for env in envs):
        for env, said in zip(envs, together):
            if not env._over:
                said.append(env.expert_action() if action is None else action)
                said.append(env.step(said[-1])[0])
    assert together == alone
    for env in envs:
        env.close()


@each
def test_splits_share_no_task(case: Case) -> None:
    drawn: dict[str, set[str]] = {}
    for split in SPLITS:
        env = make(case, split=split)
        prompts = [(env.reset(seed=seed)[0], env.task.id.removeprefix(split)) for seed in range(case.drawn)]
        drawn[split] = {prompt if case.prompts_differ else id for prompt, id in prompts}
        env.close()
    assert not drawn["train"] & drawn["test"]
    assert not drawn["train"] & drawn["ood"]
    assert len(drawn["train"]) >= min(case.drawn, 11)


@each
def test_the_global_generators_are_left_alone(case: Case) -> None:
    env = make(case)
    random.seed(1)
    np.random.seed(1)
    play(env, 5, None if case.expert is not None else "go forward")
    after = (random.random(), float(np.random.random()))
    random.seed(1)
    np.random.seed(1)
    assert after == (random.random(), float(np.random.random()))
    env.close()


FIRST = {case.id: case for case in reversed(CASES) if case.extra}


@pytest.mark.parametrize("case", FIRST.values(), ids=FIRST)
def test_a_missing_package_is_named_with_its_extra(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == case.module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, case.module, None)
    with pytest.raises(MissingExtra, match=rf"turncredit\[{case.extra}\]"):
        turncredit.make(f"turncredit/{case.id}-v0", **case.arguments)
