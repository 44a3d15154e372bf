"""What belongs to one package alone."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import turncredit
from turncredit.envs import has_solution
from turncredit.envs.check import check
from turncredit.errors import UserError


def make(id: str, **arguments: Any) -> Any:
    return turncredit.make(f"turncredit/{id}-v0", **arguments).unwrapped


def replay(env: Any, index: int, stops_early: bool = False) -> float:
    """The reward of a BFCL ground truth, or of one without the calls of its last turn that has any."""
    env.reset(options={"task": index})
    last = max(turn for turn, calls in enumerate(env.task.hidden["gold"]) if calls)
    over, reward = False, 0.0
    while not over:
        action = "done" if stops_early and len(env._calls) - 1 == last else env.expert_action()
        _, reward, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
    return float(reward)


@pytest.mark.parametrize("category", ["base", "miss_func", "miss_param", "long_context"])
def test_bfcl_s_ground_truth_is_valid_in_every_split(category: str) -> None:
    pytest.importorskip("bfcl_eval", reason="the extra bfcl is not installed")
    envs = [make("BFCL", category=category, split=split) for split in ("train", "test", "ood")]
    assert sum(env.num_tasks for env in envs) == 200
    for env in envs:
        for index in range(0, env.num_tasks, 4):
            assert replay(env, index) == 1.0, env.task.id


def test_bfcl_s_ground_truth_that_stops_early_is_rejected() -> None:
    pytest.importorskip("bfcl_eval", reason="the extra bfcl is not installed")
    env = make("BFCL")
    assert not any(replay(env, index, stops_early=True) for index in range(0, env.num_tasks, 4))


def test_bfcl_shows_a_withheld_function_when_its_turn_comes() -> None:
    pytest.importorskip("bfcl_eval", reason="the extra bfcl is not installed")
    env = make("BFCL", category="miss_func")
    _, info = env.reset(options={"task": 0})
    (turn, names), = env.task.hidden["entry"]["missed_function"].items()
    assert not {tool.name for tool in info["tools"]} & set(names)
    said = [env.step("done")[0] for _ in range(int(turn))]
    assert all(name in said[-1] and name in {tool.name for tool in env.tools} for name in names)
    assert not any(f'"name": "{name}"' in text for name in names for text in said[:-1])


def test_bfcl_gives_a_function_no_later_than_its_ground_truth_calls_it() -> None:
    pytest.importorskip("bfcl_eval", reason="the extra bfcl is not installed")
    from turncredit.envs.adapters.bfcl import _entries

    late = [entry["id"] for entry, gold in _entries("miss_func") for turn, names in entry["missed_function"].items()
            for calls in gold[:int(turn)] for call in calls if call.partition("(")[0] in names]
    assert late == []
    entry, = (entry for entry, _ in _entries("miss_func") if entry["id"] == "multi_turn_miss_func_49")
    assert entry["missed_function"] == {"3": ["wc", "cat"], "1": ["tail"]}


def test_what_an_agent_writes_to_bfcl_is_never_evaluated(tmp_path: Path) -> None:
    pytest.importorskip("bfcl_eval", reason="the extra bfcl is not installed")
    env = make("BFCL")
    env.reset(seed=0)
    name = env.tools[0].name
    mark = tmp_path / "evaluated"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    for call in ({"name": name, "arguments": {f"x={code}, y": 1}}, {"name": f"{name}({code})", "arguments": {}},
                 {"name": name, "arguments": {"x": code}}):
        env.step(f"<tool_call>{json.dumps(call)}</tool_call>")
    while not env._over:
        env.step("done")
    assert not mark.exists()


@pytest.mark.parametrize("suite", ["workspace", "travel", "banking", "slack"])
def test_agentdojo_s_tasks_that_an_answer_without_a_call_solves_are_left_out(suite: str) -> None:
    pytest.importorskip("agentdojo", reason="the extra agentdojo is not installed")
    from turncredit.envs.adapters.agentdojo import EXCLUDED, _suite, idle_solves, sound_tasks

    found = {number for number in range(len(_suite(suite).user_tasks)) if idle_solves(suite, number)}
    assert found == set(EXCLUDED.get(suite, ()))
    assert len(sound_tasks(suite)) == {"workspace": 37, "travel": 20, "banking": 10, "slack": 21}[suite]


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["airline", "retail", "telecom"])
def test_tau2_s_tasks_that_are_solved_by_doing_nothing_are_left_out(domain: str) -> None:
    pytest.importorskip("tau2", reason="the extra tau2 is not installed")
    from turncredit.envs.adapters.tau2 import IDLE, idle_solves

    every = [make("Tau2", domain=domain, split=split, every=True) for split in ("train", "test")]
    found = {str(env.task.hidden["task"].id) for env in every for index in range(env.num_tasks)
             if idle_solves(env, index)}
    assert found == set(IDLE.get(domain, ()))
    left = sum(make("Tau2", domain=domain, split=split).num_tasks for split in ("train", "test"))
    assert left == sum(env.num_tasks for env in every) - len(found)


def test_levels_and_games_that_nobody_scripted_have_no_solution() -> None:
    pytest.importorskip("minigrid", reason="the extra minigrid is not installed")
    assert has_solution(make("MiniGrid"))
    assert not has_solution(make("MiniGrid", env="MiniGrid-DoorKey-5x5-v0"))
    rows = {f.row: f.verdict for f in check("turncredit/MiniGrid-v0", {"env": "MiniGrid-DoorKey-5x5-v0"},
                                            rows=["solution", "replay", "leaves nothing"], seeds=2)}
    assert rows == {"plays": "pass", "solution": "skip", "replay": "pass", "leaves nothing": "pass"}


@pytest.mark.slow
def test_scienceworld_s_variation_that_its_gold_path_sets_on_fire_is_left_out() -> None:
    pytest.importorskip("scienceworld", reason="the extra scienceworld is not installed")
    env = make("ScienceWorld", tasks=["freeze"])
    assert env.variations("freeze") == [number for number in range(14) if number != 11]
    env.close()


@pytest.mark.parametrize("level", ["BabyAI-GoToLocal-v0", "MiniGrid-DoorKey-5x5-v0"])
def test_minigrid_s_splits_hold_different_worlds(level: str) -> None:
    pytest.importorskip("minigrid", reason="the extra minigrid is not installed")
    worlds: dict[str, set[str]] = {}
    for split in ("train", "test"):
        env = make("MiniGrid", env=level, split=split)
        worlds[split] = {env._world(env.make_task(env.np_random).hidden["seed"]) for _ in range(80)}
    assert not worlds["train"] & worlds["test"]


def test_a_level_that_minigrid_does_not_have_suggests_the_nearest() -> None:
    pytest.importorskip("minigrid", reason="the extra minigrid is not installed")
    with pytest.raises(UserError, match="did you mean 'BabyAI-GoToLocal-v0'"):
        make("MiniGrid", env="BabyAI-GoToLokal-v0")


def test_reasoning_gym_s_wrong_and_excluded_tasks_and_settings_are_refused() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")
    with pytest.raises(UserError, match="did you mean 'chain_sum'"):
        make("ReasoningGym", task="chainsum")
    with pytest.raises(UserError, match="rewards any text"):
        make("ReasoningGym", task="game_of_life_halting")
    with pytest.raises(UserError, match="wrong_name"):
        make("ReasoningGym", config={"wrong_name": 3})


def test_reasoning_gym_reads_an_unreadable_answer_as_wrong_not_as_unknown() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")
    env = make("ReasoningGym", task="prime_factorization")
    env.reset(seed=0)
    assert env.step("<answer>no idea</answer>")[1] == 0.0


def test_reasoning_gym_s_settings_keep_their_enumerations_and_bad_ones_are_refused() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")
    with pytest.raises(UserError, match="give config, or ood_config"):
        make("ReasoningGym", task="countdown", split="ood")
    env = make("ReasoningGym", task="aiw", split="ood")
    env.reset(seed=0)
    assert env.step(env.expert_action())[1] == 1.0


@pytest.mark.slow
def test_scienceworlds_in_threads_share_java_processes_and_play_as_they_do_alone() -> None:
    pytest.importorskip("scienceworld", reason="the extra scienceworld is not installed")
    from turncredit.envs.adapters.scienceworld_machines import _machines

    def play(seed: int) -> tuple[list[str], list[int]]:
        env = make("ScienceWorld", tasks=["find-plant", "lifespan-longest-lived"])
        said, over = [env.reset(seed=seed)[0]], False
        while not over:
            observation, _, terminated, truncated, _ = env.step(env.expert_action())
            said.append(observation)
            over = terminated or truncated
        processes.update(machine.process.pid for machine in _machines)
        env.close()
        return said, [int(env.verdict().passed)]

    processes: set[int] = set()
    kept = make("ScienceWorld")  # holds a process, which the others then have in turn
    kept.reset(seed=0)
    alone = [play(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(play, range(6)))
    kept.close()
    assert together == alone and all(passed for _, (passed,) in alone)
    assert len(processes) <= (os.cpu_count() or 1) and not _machines
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)
