"""The check passes a sound environment, and names the row that a broken one breaks."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import turncredit
from turncredit.cli import main
from turncredit.envs.check import Finding, check
from turncredit.errors import MissingExtra, UserError


def _load() -> Any:
    """The test-bed, under a name by which another process can import it too."""
    folder = str(Path(__file__).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("broken")


bed = _load()


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def examined(environment: Any, **options: Any) -> dict[str, Finding]:
    turncredit.register("broken/One-v0", f"broken:{environment.__name__}")
    return {finding.row: finding for finding in check("broken/One-v0", deadline_s=1.0, **options)}


def failed(findings: dict[str, Finding]) -> list[str]:
    return [row for row, finding in findings.items() if finding.verdict == "fail"]


def test_a_sound_environment_passes_every_row() -> None:
    findings = examined(bed.Sound)
    assert failed(findings) == []
    assert len(findings) > 40
    assert {row for row, f in findings.items() if f.verdict == "skip"} == {"tools", "task set", "levels"}


def test_tasks_that_begin_alike_are_told_apart_by_ids_where_the_environment_says_so(monkeypatch: Any) -> None:
    rows = ["other seed", "splits", "task ids"]
    assert failed(examined(bed.BeginsAlike, rows=rows)) == []
    monkeypatch.setattr(bed.BeginsAlike, "begins_alike", False)
    assert sorted(failed(examined(bed.BeginsAlike, rows=rows))) == rows


@pytest.mark.parametrize("what", bed.BROKEN)
def test_a_broken_environment_is_caught_in_its_row(what: str) -> None:
    environment, row = bed.BROKEN[what]
    findings = examined(environment, seeds=6, rows=[row])
    assert failed(findings) == [row]
    assert findings[row].mend and findings[row].detail


@pytest.mark.slow
@pytest.mark.parametrize("what", bed.BROKEN)
def test_of_a_broken_environment_few_rows_fail(what: str) -> None:
    environment, row = bed.BROKEN[what]
    findings = examined(environment, quick=row != "another process")
    assert row in failed(findings) and len(failed(findings)) <= 9, failed(findings)


def test_there_are_enough_of_them_and_each_row_is_broken_by_some() -> None:
    from turncredit.envs.check import ROWS

    assert len(bed.BROKEN) >= 25
    untested = {row.name for row in ROWS} - {row for _, row in bed.BROKEN.values()}
    # Echo and random actions are as the other trivial agents; time and length fail beyond a second and 128,000 tokens.
    assert untested <= {"trivial: echo", "trivial: random", "time", "length"}


@pytest.mark.parametrize("name", ["Arithmetic", "Calculator", "Brackets", "LeftToRight", "Pantry"])
def test_environments_that_we_ship_pass(name: str) -> None:
    findings = check(f"turncredit/{name}-v0", quick=True)
    assert [(f.row, f.detail) for f in findings if f.verdict == "fail"] == []


QUESTIONS = [{"question": f"What is {n} times {n + 3}?", "answer": str(n * (n + 3))} for n in range(11, 80)]
PROBLEMS = [{"task_id": f"Add/{n}", "prompt": f'def add_{n}(a, b):\n    """Return a + b + {n}."""\n',
             "entry_point": f"add_{n}", "canonical_solution": f"    return a + b + {n}\n",
             "test": f"def check(candidate):\n    assert candidate(1, 2) == {n + 3}\n"
                     f"    assert candidate(9, -4) == {n + 5}\n"}
            for n in range(40)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Questions", "CodeProblems", "Code", "CodeRepl", "MathPython", "DataAnalysis",
                                  "WebShop", "FrozenLake", "Taxi", "CliffWalking", "MiniGrid", "ReasoningGym",
                                  "TextArena", "BFCL", "TextWorld", "ScienceWorld", "ALFWorld"])
def test_environments_that_take_longer_pass_too(name: str, tmp_path: Path) -> None:
    rows = {"Questions": QUESTIONS, "CodeProblems": PROBLEMS}.get(name)
    if rows is not None:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    try:
        findings = check(f"turncredit/{name}-v0", {} if rows is None else {"data": str(tmp_path / "rows.jsonl")},
                         quick=True, deadline_s=60.0)
    except MissingExtra as error:
        pytest.skip(str(error))
    assert [(f.row, f.detail) for f in findings if f.verdict == "fail"] == []


def test_an_unknown_environment_is_no_finding() -> None:
    with pytest.raises(UserError, match="did you mean"):
        check("turncredit/Calculater-v0")


def test_the_command_exits_with_1_and_says_how_to_mend(monkeypatch: Any, capsys: Any) -> None:
    turncredit.register("broken/Silent-v0", "broken:PaysSilence")
    for arguments, code in (("broken/Silent-v0", 1), ("turncredit/Calculator-v0", 0)):
        monkeypatch.setattr(sys, "argv", ["turncredit", "envs", "check", arguments, "--quick"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
        said = capsys.readouterr().out
        assert ("mend:" in said) == bool(code)
    monkeypatch.setattr(sys, "argv", ["turncredit", "envs", "check", "broken/Silent-v0", "--quick", "--json"])
    with pytest.raises(SystemExit):
        main()
    found = json.loads(capsys.readouterr().out)
    assert {f["row"] for f in found if f["verdict"] == "fail"} == {"trivial: silent"}
