"""The configurations of algorithms and ablations: each is valid, and each runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from turncredit.audit import audit
from turncredit.config import load_config
from turncredit.store import RunFolder
from turncredit.trainer.algorithms import ALGORITHMS, make_algorithm
from turncredit.trainer.loop import train
from turncredit.trainer.start import starting_policy

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("algorithms/*.yaml")) + sorted(CONFIGS.glob("ablations/*.yaml"))
SMALLEST = [
    "model.tiny.vocabulary=400", "model.tiny.width=32", "model.tiny.layers=1", "model.tiny.heads=2",
    "rollout.groups=3", "rollout.group_size=3", "rollout.episode_tokens=48", "trainer.steps=2", "trainer.save_every=1",
    "warmstart.steps=30", "warmstart.until_success=null", "warmstart.batch=8", "warmstart.demonstrations=64",
    "evaluation.tasks=2", "evaluation.k=2", "envs.0.arguments.level=1", "warmstart.envs.0.arguments.level=1"]
CHEAPEST = ("reinforce++", "sc-grpo-on-dapo")


class Unwatched:
    def warming(self, *_: Any) -> None: ...
    def training(self, *_: Any) -> None: ...


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_configuration_is_valid_and_has_a_run_folder_of_its_name(file: Path) -> None:
    config = load_config(file)
    assert config.name == f"{file.parent.name}/{file.stem}"
    assert config.envs == load_config(CONFIGS / "quickstart.yaml").envs


def test_every_algorithm_has_a_configuration_of_its_name() -> None:
    for name, algorithm in ALGORITHMS.items():
        if algorithm.__module__.startswith("turncredit."):
            assert load_config(CONFIGS / "algorithms" / f"{name}.yaml").algorithm["name"] == name


def test_rows_of_the_ablations_differ_from_sc_grpo_in_their_algorithm_alone() -> None:
    first, *others = [load_config(CONFIGS / "ablations" / f"{file.stem}.yaml").model_dump(exclude={"name"})
                      for file in sorted(CONFIGS.glob("ablations/*.yaml"), key=lambda f: f.stem != "sc-grpo")]
    algorithms = [repr(make_algorithm(**one.pop("algorithm"))) for one in [first, *others]]
    assert all(one == first for one in others) and len(set(algorithms)) == len(algorithms) == 14


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """run(file): two steps at the smallest size, from a warm start that all of them share."""
    runs = tmp_path_factory.mktemp("runs")

    def go(file: Path, *overrides: str) -> RunFolder:
        config = load_config(file, [*SMALLEST, f"runs={runs}", *overrides])
        if config.evaluation.every:
            config = load_config(file, [*SMALLEST, f"runs={runs}", *overrides, "evaluation.every=2"])
        folder = RunFolder(config.folder)
        start = runs / "start"
        if not start.exists():
            plain = load_config(CONFIGS / "quickstart.yaml", [*SMALLEST, f"runs={runs}", "name=warm"])
            starting_policy(plain, RunFolder(plain.folder), lambda *_: None)
            (plain.folder / "start").rename(start)
        shutil.copytree(start, folder.path / "start")
        return train(config, Unwatched())

    return go


@pytest.mark.parametrize("file", [pytest.param(file, marks=[] if file.stem in CHEAPEST else [pytest.mark.slow],
                                               id=f"{file.parent.name}/{file.stem}") for file in FILES])
def test_two_steps_of_a_configuration_can_be_run_and_audited(file: Path, run: Callable[..., RunFolder]) -> None:
    teacher = []
    if file.stem == "opd":
        teacher = [f"teacher.path={run(CONFIGS / 'algorithms/sc-grpo.yaml', 'name=teacher').path / 'policy'}"]
    folder = run(file, *teacher)
    lines = folder.read_metrics()
    assert [line["step"] for line in lines] == [0, 1]
    assert all(np.isfinite([line["loss"], line["gradient_norm"]]).all() for line in lines)
    if file.parent.name == "ablations":
        assert [len(one["pass_at"]) for one in lines[-1]["evaluation"]] == [2, 2]
    weights = load_file(folder.path / "policy" / "model.safetensors")
    before = load_file(folder.path / "start" / "model.safetensors")
    assert weights.keys() == before.keys() and all(torch.isfinite(value).all() for value in weights.values())
    learnt = any(line["updated"] for line in lines)
    assert learnt == any(not torch.equal(weights[name], before[name]) for name in weights)
    assert {f.row: f.problems for f in audit(folder.path, episodes=2) if f.problems} == {}
