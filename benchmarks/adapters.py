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
}


def main(names: list[str]) -> None:
    """Print a line for each environment and split."""
    cases = {name: CASES[name] for name in names or CASES} if "reasoning-gym" not in names else {}
    listed = [*itertools.chain(*cases.values())]
    if not names or "reasoning-gym" in names:
        listed += reasoning_gym_cases()
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
