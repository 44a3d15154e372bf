"""Math over several turns with a Python interpreter, on the problems of any math environment or question file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from turncredit.envs.python_env import PythonEnv
from turncredit.envs.registry import make
from turncredit.envs.text_env import TextEnv
from turncredit.envs.tools import tool
from turncredit.episode import Task
from turncredit.errors import UserError
from turncredit.verifiers import MathAnswer

_EXPRESSION = re.compile(r"What is ([\d\s()+*-]+)\?")


class MathPython(PythonEnv):
    """Problems of another environment, solved with Python and judged by mathematical equivalence.

    Args:
        problems: an environment whose tasks have `hidden["answer"]`.
        arguments: for its constructor, such as `data` for "turncredit/Questions-v0".
    """

    instructions = (r"Solve the problem. Call python to compute; variables stay from call to call. "
                    r"Then answer without a call, with the final answer in \boxed{}.")
    verifier = MathAnswer()

    def __init__(self, problems: str = "turncredit/Calculator-v0", arguments: Mapping[str, Any] | None = None,
                 split: str = "train", level: int = 1, **kwargs: Any) -> None:
        source = make(problems, split=split, level=level, **(arguments or {})).unwrapped
        if not isinstance(source, TextEnv):
            raise UserError(f"problems is {problems!r}, a {type(source).__name__}: it must be a TextEnv")
        self._source = source
        self.levels, self.num_tasks = source.levels, source.num_tasks
        self.split_is_label = source.split_is_label
        super().__init__(split=split, level=level, **kwargs)

    def make_task(self, rng: np.random.Generator) -> Task:
        """A task of the other environment."""
        return self._checked(self._source.make_task(rng))

    def task_at(self, index: int) -> Task:
        """The other environment's task at `index`."""
        return self._checked(self._source.task_at(index))

    def _checked(self, task: Task) -> Task:
        if "answer" not in task.hidden:
            raise UserError(f"problems is {self._source}: its tasks have no answer to compare with")
        return task

    @tool
    def python(self, code: str) -> str:
        """Run Python code. The value of the last expression comes back, and what was printed.

        Args:
            code: Python source.
        """
        return self.run_python(code)

    def expert_action(self) -> str:
        """Work out an expression in Python, then the answer as the data has it."""
        expression = _EXPRESSION.fullmatch(self.task.prompt)
        if expression and not self.turns:
            return self.call("python", code=expression.group(1))
        return rf"\boxed{{{self.task.hidden['answer']}}}"
