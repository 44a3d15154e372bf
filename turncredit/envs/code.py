"""Programming tasks that are generated from a seed, judged on hidden tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from turncredit.envs.program_env import ProgramEnv
from turncredit.envs.programs import Problem, draw_problem
from turncredit.episode import Task
from turncredit.verifiers.code import Call, CodeTests, Program, tokens

VISIBLE, HIDDEN = 3, 12  # tests


class Code(ProgramEnv):
    """Write a function (or, out of distribution, a program that reads standard input) in one turn.

    Levels 1 to 3 are templates of which the test split has its own, level 4 compositions of three steps, in other
    combinations in the test split; "ood" has simulations.

    Args:
        fraction: the reward is the share of the hidden tests that pass, instead of all or nothing.
    """

    levels = 4

    def __init__(self, fraction: bool = False, several_turns: bool = False, **kwargs: Any) -> None:
        super().__init__(several_turns, **kwargs)
        self.fraction = fraction

    def make_task(self, rng: np.random.Generator) -> Task:
        """A template with its parameters, some visible and more hidden tests."""
        cases = None
        while cases is None:
            problem = draw_problem(rng, self.split, self.level)
            cases = problem.cases(rng, VISIBLE + HIDDEN)
        examples = "\n".join(_example(problem, args, expected) for args, expected in cases[:VISIBLE])
        what = f"a Python function `{problem.signature.removeprefix('def ')}`"
        if problem.is_program:
            what = "a Python program that reads standard input and writes standard output"
        hidden = {
            "tests": _code_tests(problem, cases[VISIBLE:], hidden=True, fraction=self.fraction),
            "visible": _code_tests(problem, cases[:VISIBLE], hidden=False),
            "solution": problem.solution, "template": problem.name, "parameters": problem.parameters,
        }
        return Task(f"Write {what}.\n\n{problem.statement}\n\nExamples:\n{examples}", hidden, self.split, self.level)


class CodeRepl(Code):
    """The same over several turns, with an interpreter and the visible tests."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(several_turns=True, **kwargs)


def _code_tests(problem: Problem, cases: Sequence[Any], hidden: bool, fraction: bool = False) -> CodeTests:
    if problem.is_program:
        return CodeTests([Program(text, f"{expected}\n", tokens, hidden) for (text,), expected in cases],
                         fraction=fraction)
    return CodeTests([Call(args, expected=expected, hidden=hidden) for args, expected in cases], problem.name,
                     fraction=fraction)


def _example(problem: Problem, args: tuple[Any, ...], expected: Any) -> str:
    if problem.is_program:
        return f"input:\n{args[0]}output:\n{expected}"
    return f">>> {problem.name}({', '.join(map(repr, args))})\n{expected!r}"
