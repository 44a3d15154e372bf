"""Games in ALFWorld's own layout: seeded problems, made into games by its generator and read as its reader does."""

from __future__ import annotations

import importlib.resources
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import turncredit
from turncredit.envs.check import check
from turncredit.errors import UserError

pytestmark = pytest.mark.slow
FOLDERS = {"train": "train", "test": "valid_seen", "ood": "valid_unseen"}
TYPES = {"train": ("pick_and_place_simple", "pick_heat_then_place_in_recep"), "valid_seen": ("look_at_obj_in_light",),
         "valid_unseen": ("pick_two_obj_and_place", "pick_and_place_simple")}
# The package does not play what is cut or carried in another thing; no game is made of a problem that has no solution.
LEFT_OUT = ("pick_and_place_simple-AppleSliced-None-Fridge-1", "pick_and_place_with_movable_recep-Pen-Mug-Desk-301")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder json_2.1.1."""
    pytest.importorskip("alfworld", reason="the extra alfworld is not installed")
    generator = Path(sys.executable).with_name("alfworld-generate")
    from turncredit.envs.adapters.alfworld_problems import draw_problem

    problems, games = tmp_path_factory.mktemp("problems"), tmp_path_factory.mktemp("alfworld") / "json_2.1.1"
    rng = np.random.default_rng(4)
    for folder, types in TYPES.items():
        for number in range(4):
            problem = draw_problem(rng, types, things=5)
            # without its first location the agent stands nowhere, and the planner finds nothing
            text = problem.pddl.replace("(atLocation agent1 loc_bar_0)", "") if number == 3 else problem.pddl
            trial = problems / folder / f"{problem.type}-Thing-None-Place-{number}" / f"trial_T{number}"
            write_trial(trial, text, problem.type, problem.goal)
    written = next(problems.glob("valid_unseen/*/trial_*"))
    for name in LEFT_OUT:  # as an old version of the generator may have made them
        folder = games / "valid_unseen" / name / "trial_T9"
        write_trial(folder, (written / "initial_state.pddl").read_text(), "pick_and_place_simple", "put it away")
        (folder / "game.tw-pddl").write_text(json.dumps({"solvable": True}))
    logic = importlib.resources.files("alfworld") / "data"
    subprocess.run([sys.executable, str(generator), "--data_path", str(problems), "--save_path", str(games),
                    "--domain", str(logic / "alfred.pddl"), "--grammar", str(logic / "alfred.twl2"), "--expert_type",
                    "planner", "--goal_desc_human_anns_prob", "1", "--end", "1000"], check=True, capture_output=True,
                   env=os.environ | {"ALFWORLD_DATA": str(games.parent)})
    return games


def write_trial(folder: Path, problem: str, kind: str, goal: str) -> None:
    """What the generator reads."""
    folder.mkdir(parents=True)
    (folder / "initial_state.pddl").write_text(problem)
    asked = problem.partition("(:goal")[2]
    named = {key: (re.findall(rf"\({fact} \?\w+ (\w+)Type\)", asked) or [""])[0]
             for key, fact in (("object_target", "objectType"), ("parent_target", "receptacleType"))}
    parameters = {"object_sliced": False, "toggle_target": "DeskLamp", "mrecep_target": "", **named}
    (folder / "traj_data.json").write_text(json.dumps({
        "task_type": kind, "pddl_params": parameters, "turk_annotations": {"anns": [{"task_desc": goal}]}}))


def packages_own(data: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The games that the package's own environment takes of a set."""
    monkeypatch.setenv("ALFWORLD_DATA", str(data.parent))
    reader = pytest.importorskip("alfworld.agents.environment.alfred_tw_env").AlfredTWEnv
    sets = {"data_path": "train", "eval_id_data_path": "valid_seen", "eval_ood_data_path": "valid_unseen"}
    config = {"dataset": {key: str(data / name) for key, name in sets.items()} | {"num_train_games": 0,
                                                                                "num_eval_games": 0},
              "env": {"goal_desc_human_anns_prob": 0, "task_types": [1, 2, 3, 4, 5, 6]}}
    modes = {"train": "train", "valid_seen": "eval_in_distribution", "valid_unseen": "eval_out_of_distribution"}
    return set(reader(config, train_eval=modes[folder]).game_files)


def make(data: Path, split: str = "train", **arguments: Any) -> Any:
    return turncredit.make("turncredit/ALFWorld-v0", split=split, data=str(data), **arguments).unwrapped


@pytest.mark.parametrize("split", FOLDERS)
def test_the_games_of_a_split_are_those_that_the_package_takes_and_its_planner_wins_them(
        data: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(data, split)
    assert {str(path) for path in env._games} == packages_own(data, FOLDERS[split], monkeypatch)
    assert env.num_tasks == 3
    for index in range(env.num_tasks):
        prompt, info = env.reset(options={"task": index})
        goal = json.loads(env._games[index].with_name("traj_data.json").read_text())
        assert "You are in the middle of a room" in prompt
        assert f"Your task is to: {goal['turk_annotations']['anns'][0]['task_desc']}" in prompt
        assert info["task_id"].startswith(f"{split}-{env._games[index].parts[-3]}")
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.expert_action())
            over = terminated or truncated
        assert reward == 1.0 and terminated
    env.close()


def test_games_are_chosen_by_type_and_a_folder_without_any_says_how_to_get_them(data: Path, tmp_path: Path) -> None:
    chosen = make(data, types=["pick_heat_then_place_in_recep"])
    assert 0 < chosen.num_tasks < 3
    with pytest.raises(UserError, match="alfworld-download"):
        make(tmp_path)


def test_its_games_pass_the_contract(data: Path) -> None:
    rows = ["solution", "task set", "leaves nothing", "the process"]
    findings = check("turncredit/ALFWorld-v0", {"data": str(data)}, seeds=2, deadline_s=60, rows=rows)
    assert {f.row: f.detail for f in findings if f.verdict == "fail"} == {}
