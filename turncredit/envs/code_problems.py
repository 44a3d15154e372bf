"""Programming problems from data files: HumanEval, MBPP, LeetCode, LiveCodeBench, Codeforces, CodeContests."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from turncredit.envs.problem_files import FORMATS, CodeProblem, format_of
from turncredit.envs.program_env import ProgramEnv
from turncredit.envs.questions import held_out, read_rows
from turncredit.episode import Task
from turncredit.errors import UserError, did_you_mean
from turncredit.verifiers.code import CodeTests, more_tests
from turncredit.verifiers.code.shared import shared_sandbox, wait_for


class CodeProblems(ProgramEnv):
    """One problem of a data file, judged by the file's tests.

    Of LiveCodeBench each problem's tests are parted in two halves: split "train" is judged by the one, every other
    split by the other, so that training and evaluation share problems and no test.

    Args:
        data: a .jsonl, .json or .parquet file (also .gz), or "hf:name" for a data set of the hub.
        format: "humaneval", "mbpp", "leetcode", "livecodebench" or "codeforces"; seen from the fields where None.
        data_split: of an "hf:" data set; "test" where None.
        hold_out: a fifth of the problems, chosen by their statement, are "test" and all others "train".
        several_turns: the agent may run code and see the visible tests before it answers.
        settings: for the tests, such as {"fraction": true, "test_s": 10} (see `CodeTests`).
        more_tests: calls that a program is judged by besides the file's tests, up to so many a problem: on inputs near
            those of the tests, with the values of the file's solution (see `turncredit.verifiers.code.more_tests`).
    Raises:
        UserError: no such file or format, a field that a row lacks (named with its row), no problem with tests, or
            more tests asked for and a problem without a solution.
    """

    def __init__(self, data: str, format: str | None = None, data_split: str = "test", hold_out: bool = False,
                 several_turns: bool = False, settings: dict[str, Any] | None = None,
                 more_tests: int = 0, **kwargs: Any) -> None:
        super().__init__(several_turns, **kwargs)
        if format is not None and format not in FORMATS:
            known = ", ".join(FORMATS)
            raise UserError(f"format {format!r} is unknown{did_you_mean(format, FORMATS)} (known: {known})")
        # YAML and JSON alone can write settings, so they have a JSON text to be told apart by
        text = json.dumps(settings or {}, sort_keys=True)
        self._problems: Sequence[CodeProblem] = _problems(data, format, data_split, self.split, text)
        self.split_is_label = not hold_out
        if hold_out:
            self._problems = held_out(self._problems, self.split, data, lambda problem: problem.prompt)
        self.num_tasks = len(self._problems)
        self.more_tests = more_tests
        if more_tests < 0:
            raise UserError(f"more_tests is {more_tests}: it must be 0 or above")
        if more_tests and any(problem.solution is None for problem in self._problems):
            raise UserError(f"more_tests is {more_tests}, and {data!r} has problems without a solution: set it to 0")

    def make_task(self, rng: np.random.Generator) -> Task:
        """Any problem, uniformly."""
        return self.task_at(int(rng.integers(len(self._problems))))

    def task_at(self, index: int) -> Task:
        """The problem at `index`, of those that have tests for the split."""
        problem = self._problems[index]
        tests = problem.tests
        if self.more_tests and problem.solution is not None:
            tests = wait_for(self._with_more(problem.solution, tests))
        hidden = {"tests": tests, "visible": problem.visible, "solution": problem.solution}
        return Task(problem.prompt, {k: v for k, v in hidden.items() if v is not None}, self.split, self.level)

    @property
    def solvable(self) -> bool:
        """Where the file has a solution of every problem."""
        return all(problem.solution is not None for problem in self._problems)


    async def _with_more(self, solution: str, tests: CodeTests) -> CodeTests:
        sandbox = await shared_sandbox(self.home, self.sandbox)
        return await more_tests(sandbox, solution, tests, self.more_tests)


@functools.lru_cache(maxsize=16)  # a file is read once a process, not once an environment
def _problems(data: str, format: str | None, data_split: str, split: str, settings: str) -> tuple[CodeProblem, ...]:
    rows = list(read_rows(data, data_split))
    if not rows:
        raise UserError(f"data {data!r} holds no rows")
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise UserError(f"{data}, {where} is a {type(row).__name__}: it must be an object")
    name = format or format_of(rows[0][1], data)
    problems: list[CodeProblem | None] = []
    for where, row in rows:
        try:
            problems.append(FORMATS[name](row, split, json.loads(settings)))
        except KeyError as error:
            raise UserError(f"{data}, {where} has no field {error}, which the format {name} has") from None
        except (ValueError, TypeError) as error:
            raise UserError(f"{data}, {where} is not in the format {name}: {error}") from None
    found = tuple(problem for problem in problems if problem is not None)
    if not found:
        raise UserError(f"data {data!r} holds no problem with tests for split {split!r}")
    return found
