"""Every example runs, at its smallest size, and does what it says."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder; what an example registers is forgotten."""
    from turncredit.trainer.algorithms import ALGORITHMS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    environments, algorithms = dict(gymnasium.registry), dict(ALGORITHMS)
    yield tmp_path
    for registry, before in ((gymnasium.registry, environments), (ALGORITHMS, algorithms)):
        registry.clear()
        registry.update(before)


def run(monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    capsys.readouterr()
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return str(capsys.readouterr().out)


def test_an_environment_is_registered_and_holds_to_the_contract(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    said = run(monkeypatch, capsys, "register_environment.py")
    assert "reward 1.0" in said and "0 fail" in said


def test_an_agent_is_trained(monkeypatch: pytest.MonkeyPatch, capsys: Any, place: Path) -> None:
    said = run(monkeypatch, capsys, "train_agent.py", "--warmstart", "2")
    assert "step 0: mean reward" in said and "of 16 episodes" in said
    assert (place / "runs" / "example" / "report.html").is_file()


def test_an_agent_is_evaluated_where_it_was_trained_and_where_it_was_not(monkeypatch: pytest.MonkeyPatch, capsys: Any,
                                                                         trained_run: Path) -> None:
    said = run(monkeypatch, capsys, "evaluate_agent.py", str(trained_run))
    assert "Calculator-v0" in said and "LeftToRight-v0" in said and "expert" in said


def test_an_algorithm_of_one_s_own_says_what_episodes_earn(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert "{'route quickest': 4}" in run(monkeypatch, capsys, "own_algorithm.py", "--warmstart", "2")


def test_the_credit_of_an_answer_is_drawn(monkeypatch: pytest.MonkeyPatch, capsys: Any, trained_run: Path,
                                          place: Path) -> None:
    said = run(monkeypatch, capsys, "credit_heatmap.py", str(trained_run))
    assert said.count("weight") == 5 and (place / "credit.html").is_file()


def test_the_notebook_runs_cell_by_cell(place: Path, capsys: Any) -> None:
    """Without a kernel: its cells are plain Python."""
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
    names: dict[str, Any] = {"__name__": "tour"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "clear the notebook's outputs before it is kept"
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert len(names["episodes"]) == 16 and len(names["told"]["text"]) > 1
    assert "mean over environments" in capsys.readouterr().out


def test_every_example_is_run_and_named_in_the_folder_s_page() -> None:
    files = {file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")}
    page, tests = (EXAMPLES / "README.md").read_text(), Path(__file__).read_text()
    assert len(files) == 6
    assert [name for name in files if f"({name})" not in page or f'"{name}"' not in tests] == []
