"""Expert and floor scores of adapted environments: `python benchmarks/adapters.py [NAME …]`. Those without their
package are left out, with the reason. The figures of docs/environments.md come from here."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import turncredit
from turncredit.errors import MissingExtra, UserError

TASKS = 100  # a split, where tasks are generated

CASES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "webshop": [("WebShop", {})],
    "toy-text": [("FrozenLake", {}), ("FrozenLake", {"slippery": True}), ("Taxi", {}), ("CliffWalking", {})],
    "minigrid": [("MiniGrid", {}), ("MiniGrid", {"env": "BabyAI-GoToObjMazeS4-v0", "ood": "BabyAI-UnlockLocal-v0"})],
    "bfcl": [("BFCL", {"category": name}) for name in ("base", "miss_func", "miss_param", "long_context")],
    "tau2": [("Tau2", {"domain": "airline", "ood_domain": "retail", "every": True}),
             ("Tau2", {"domain": "telecom", "every": True})],
    "agentdojo": [("AgentDojo", {"suite": one, "ood_suite": other})
                  for one, other in (("workspace", "travel"), ("slack", "banking"))],
    "textworld": [("TextWorld", {})],
    "textarena": [("TextArena", {"game": game}) for game in ("Mastermind-v0", "GuessTheNumber-v0", "Sudoku-v0")],
}
GOLD = ("bfcl-truncated", "scienceworld")  # measured their own way


def main(names: list[str]) -> None:
    """Print a line for each environment and split."""
    listed = [case for name in names or CASES for case in CASES.get(name, ())]
    if not names or "reasoning-gym" in names:
        listed += reasoning_gym_cases()
    for name in names or GOLD:
        if name in GOLD:
            print(f"{name}: {globals()[name.replace('-', '_')]()}", flush=True)
    for id, arguments in listed:
        for split in ("train", "test", "ood"):
            try:
                env = turncredit.make(f"turncredit/{id}-v0", split=split, **arguments).unwrapped
                print(f"{id} {arguments} {split}: {scores(env)}", flush=True)
                env.close()
            except MissingExtra as error:
                print(f"{id}: left out: {error}")
                break
            except UserError as error:
                print(f"{id} {arguments} {split}: {error}")


def reasoning_gym_cases() -> list[tuple[str, dict[str, Any]]]:
    """Every task that is not excluded."""
    from turncredit.envs.adapters.reasoning_gym import usable_tasks

    try:
        return [("ReasoningGym", {"task": task}) for task in usable_tasks()]
    except MissingExtra as error:
        print(f"ReasoningGym: left out: {error}")
        return []


def bfcl_truncated() -> str:
    """Ground truths without the calls of the last turn that has any: how many are rejected."""
    rejected = count = 0
    for category in ("base", "miss_func", "miss_param", "long_context"):
        for split in ("train", "test", "ood"):
            env = turncredit.make("turncredit/BFCL-v0", category=category, split=split).unwrapped
            for start in starts(env):
                rejected += play(env, start, lambda env=env: _unless_last(env))[0] == 0
                count += 1
    return f"{rejected} of {count} truncated ground truths rejected"


def _unless_last(env: Any) -> str:
    last = max(turn for turn, calls in enumerate(env.task.hidden["gold"]) if calls)
    return "done" if len(env._calls) - 1 == last else str(env.expert_action())


def scienceworld() -> str:
    """The gold path of one training variation of each task, whatever its length."""
    from scienceworld.constants import ID2TASK

    rewards: dict[str, float] = {}
    steps, took = 0, 0.0
    for name in ID2TASK.values():
        env = turncredit.make("turncredit/ScienceWorld-v0", tasks=[name], max_turns=1000).unwrapped
        env.reset(seed=0)
        env.expert_action()  # which loads the variation again, for the gold path
        began = time.perf_counter()
        reward, turns = play(env, {"seed": 0}, env.expert_action)
        took, steps = took + time.perf_counter() - began, steps + turns
        rewards[name] = reward
        env.close()
    short = {name: reward for name, reward in rewards.items() if reward < 1}
    return (f"{len(rewards) - len(short)} of {len(rewards)} gold paths score 1 (not: {short or 'none'}); "
            f"{steps / len(rewards):.0f} turns, "
            f"{1000 * took / steps:.0f} ms a step with reset, {len(rewards) / took:.2f} episodes/s")


def scores(env: Any) -> str:
    """The expert's mean reward and turns, the best trivial agent's reward, and milliseconds an expert's step."""
    began = time.perf_counter()
    played = [play(env, start, env.expert_action) for start in starts(env)]
    steps = sum(turns for _, turns in played)
    took = 1000 * (time.perf_counter() - began) / steps
    constants = ("", "done", "0", "yes", "<answer>0</answer>", "<answer>I don't know</answer>")
    few = list(itertools.islice(starts(env), 20))
    floors = {text: np.mean([play(env, start, lambda text=text: text)[0] for start in few]) for text in constants}
    floor = max(floors, key=lambda text: floors[text])
    unjudged = sum(reward != reward for reward, _ in played)
    expert, turns = np.nanmean([reward for reward, _ in played]), steps / len(played)
    return (f"{len(played)} tasks, expert {expert:.3f} in {turns:.1f} turns, {unjudged} not judged, {took:.2f} ms a "
            f"step, {1000 / took / turns:.0f} episodes/s; best constant {floors[floor]:.2f} ({floor!r})")


def starts(env: Any) -> Iterator[dict[str, Any]]:
    """Arguments of reset: every task of a finite set, or seeds."""
    if env.num_tasks is None:
        return iter([{"seed": seed} for seed in range(TASKS)])
    return iter([{"seed": 0, "options": {"task": index}} for index in range(env.num_tasks)])


def play(env: Any, start: dict[str, Any], act: Callable[[], str]) -> tuple[float, int]:
    """Reward and turns of an episode."""
    env.reset(**start)
    over = False
    while not over:
        _, reward, terminated, truncated, _ = env.step(act())
        over = terminated or truncated
    return float(reward), len(env.turns)


if __name__ == "__main__":
    main(sys.argv[1:])
