"""What every adapter holds to, over the real package; where that is absent its tests are skipped, with the reason."""

from __future__ import annotations

import random
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest

import turncredit
from turncredit.envs import SPLITS, list_envs, spec
from turncredit.errors import MissingExtra


class Case(NamedTuple):
    """An adapted environment: its package's module, its extra, and what its scripted solution is worth at least."""

    id: str
    module: str
    extra: str
    arguments: dict[str, Any] = {}  # noqa: RUF012  # a named tuple's default, never written to
    expert: float | None = 1.0
    episodes: int = 12


CASES = [
    Case("FrozenLake", "gymnasium", ""),
    Case("Taxi", "gymnasium", ""),
    Case("CliffWalking", "gymnasium", ""),
    Case("MiniGrid", "minigrid", "minigrid"),
    Case("MiniGrid", "minigrid", "minigrid", {"env": "MiniGrid-DoorKey-5x5-v0"}, expert=None),
    Case("ReasoningGym", "reasoning_gym", "reasoning-gym"),
    Case("ReasoningGym", "reasoning_gym", "reasoning-gym", {"task": "base_conversion"}),
    Case("BFCL", "bfcl_eval", "bfcl"),
    Case("BFCL", "bfcl_eval", "bfcl", {"category": "miss_func"}),
]
NAMES = [f"{case.id}-{'-'.join(map(str, case.arguments.values()))}".rstrip("-") for case in CASES]
each = pytest.mark.parametrize("case", CASES, ids=NAMES)
each_split = pytest.mark.parametrize("split", SPLITS)


def make(case: Case, **arguments: Any) -> Any:
    try:
        return turncredit.make(f"turncredit/{case.id}-v0", **case.arguments, **arguments).unwrapped
    except MissingExtra as error:
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
    assert adapted == {f"turncredit/{case.id}-v0" for case in CASES}


@each_split
@each
def test_the_scripted_solution_is_rewarded(case: Case, split: str) -> None:
    if case.expert is None:
        pytest.skip("the package has no scripted solution for it")
    env = make(case, split=split)
    assert np.mean([play(env, seed)[0] for seed in range(case.episodes)]) >= case.expert
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
    alone = [play(make(case), seed, action)[1] for seed in (1, 2)]
    envs = [make(case), make(case)]
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
        drawn[split] = {env.reset(seed=seed)[0] for seed in range(60)}
        env.close()
    if case.id != "MiniGrid":  # whose first views may be alike in worlds that differ: test_minigrid.py compares worlds
        assert not drawn["train"] & drawn["test"]
        assert not drawn["train"] & drawn["ood"]
    assert len(drawn["train"]) > 10


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


@pytest.mark.parametrize("case", [case for case in CASES if case.extra and not case.arguments],
                         ids=[case.id for case in CASES if case.extra and not case.arguments])
def test_a_missing_package_is_named_with_its_extra(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == case.module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, case.module, None)
    with pytest.raises(MissingExtra, match=rf"turncredit\[{case.extra}\]"):
        turncredit.make(f"turncredit/{case.id}-v0", **case.arguments)
