"""Math problems of any source, solved with Python."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env

from turncredit.envs import SPLITS
from turncredit.errors import UserError


def test_gymnasium_s_own_checker_passes(make: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*render_modes.*")
        check_env(make("MathPython"), skip_render_check=True)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("problems", ["Arithmetic", "Calculator", "Brackets"])
def test_problems_of_every_math_environment_are_solved(make: Any, play: Callable[..., float], problems: str,
                                                       split: str) -> None:
    for level in range(1, make(problems).levels + 1):
        env = make("MathPython", problems=f"turncredit/{problems}-v0", split=split, level=level)
        assert [play(env, seed) for seed in range(3)] == [1.0] * 3
        assert env.turns[0].observation == str(env.task.hidden["answer"])


def test_a_question_file_is_a_source_too(make: Any, play: Callable[..., float], tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    rows = [{"question": f"Half of {n}?", "answer": f"as one sees #### {n}/2"} for n in (3, 5, 8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = {"data": str(file), "answer_pattern": "#### (.+)"}
    env = make("MathPython", problems="turncredit/Questions-v0", arguments=arguments)
    assert env.num_tasks == 3
    env.reset(options={"task": 1})
    assert env.task.prompt == "Half of 5?"
    assert env.step(env.call("python", code="from fractions import Fraction\nprint(Fraction(5, 2))"))[0] == "5/2"
    assert env.step(r"So it is \boxed{2.5}.")[1] == 1.0
    env.reset(options={"task": 1})
    assert env.step(r"\boxed{2.4}")[1] == 0.0
    assert play(env, 0) == 1.0


def test_gsm8k_loads(make: Any, play: Callable[..., float], data_file: Callable[[str], str]) -> None:
    arguments = {"data": data_file("gsm8k/test.jsonl.gz"), "answer_pattern": "#### (.+)"}
    env = make("MathPython", problems="turncredit/Questions-v0", arguments=arguments, split="test")
    assert env.num_tasks == 1319
    assert play(env, 0) == 1.0


def test_problems_without_an_answer_are_refused(make: Any) -> None:
    env = make("MathPython", problems="turncredit/Pantry-v0")
    with pytest.raises(UserError, match="its tasks have no answer"):
        env.reset(seed=0)
    with pytest.raises(UserError, match="did you mean 'turncredit/Calculator-v0'"):
        make("MathPython", problems="turncredit/Calculater-v0")


def test_the_answer_stays_out_of_the_interpreter(make: Any) -> None:
    env = make("MathPython", level=4)
    for seed in range(4):
        env.reset(seed=seed)
        look = "import os; print(list(os.walk('.')), dict(os.environ), {n: v for n, v in globals().items()})"
        assert str(env.task.hidden["answer"]) not in env.step(env.call("python", code=look))[0]
